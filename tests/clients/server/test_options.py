"""Options, log lines and the backend directory: what needs no server."""

from __future__ import annotations

import ipaddress
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autovoice.errors import ConfigurationError
from autovoice.repository.reader import ModelRepository
from autovoice.server import installation as installing
from autovoice.server.installation import Installation, backend_directory, find_installation
from autovoice.server.logs import parse_line
from autovoice.server.options import ServeOptions

NOBODY = 65534
KEY = "0123456789abcdef"


def arguments(**changes: Any) -> list[str]:
    options = ServeOptions(Path("models"), **changes).closed()
    return options.arguments(Path("models"), Path("backends"), ["a", "b"])


def rules(**changes: Any) -> dict[str, str]:
    """Key of each restricted API group, by the first API in it."""
    found = [item.split("=", 1)[1] for item in arguments(**changes) if "http-restricted" in item]
    return {rule.split(",")[0]: rule.partition("autovoice-key=")[2] for rule in found}


def test_stays_on_this_machine_unless_told() -> None:
    given = arguments()
    for service in ("http", "grpc", "metrics"):
        assert f"--{service}-address=127.0.0.1" in given
    assert "--model-control-mode=explicit" in given
    assert "--strict-readiness=true" in given


@given(st.ip_addresses())
def test_only_loopback_addresses_are_loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert ServeOptions(Path("m"), host=str(address)).is_loopback == address.is_loopback


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("no such name", False),
        ("a..b", False),
    ],
)
def test_names_count_for_their_addresses(host: str, loopback: bool) -> None:
    assert ServeOptions(Path("m"), host=host).is_loopback is loopback
    assert ("model-repository" in rules(host=host)) is not loopback


def test_name_with_one_address_that_others_reach_is_no_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `/etc/hosts` or DNS may say; the server may bind to either."""
    known = {"lo": ["127.0.0.1", "::1"], "both": ["127.0.0.1", "192.0.2.7"]}

    def resolve(host: str, *arguments: object, **options: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", (address, 0)) for address in known[host]]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    assert ServeOptions(Path("m"), host="lo").is_loopback
    assert not ServeOptions(Path("m"), host="both").is_loopback


def test_every_model_is_named() -> None:
    """Triton's `*` would take each folder of the repository for a model."""
    assert [item for item in arguments() if "load-model" in item] == ["--load-model=a", "--load-model=b"]


def test_model_control_is_closed_to_strangers() -> None:
    assert rules() == {}
    assert rules(api_key=KEY) == {"inference": KEY, "model-repository": KEY}
    assert rules(api_key=KEY, control_key=KEY[::-1]) == {"inference": KEY, "model-repository": KEY[::-1]}
    first, second = rules(host="0.0.0.0"), rules(host="0.0.0.0")
    assert list(first) == ["model-repository"]
    assert first != second
    assert len(first["model-repository"]) >= 32


def test_both_protocols_get_the_same_rules() -> None:
    given = arguments(api_key=KEY)
    http = {item.partition("=")[2] for item in given if item.startswith("--http-restricted-api=")}
    grpc = {item.partition("=")[2] for item in given if item.startswith("--grpc-restricted-protocol=")}
    assert http == grpc
    assert len(http) == 2


def test_options_reach_the_command_line(tmp_path: Path) -> None:
    pem = tmp_path / "a.pem"
    pem.touch()
    given = arguments(
        config_name="tensorrt",
        tls_certificate=pem,
        tls_key=pem,
        tls_client_ca=pem,
        trace_url="http://collector:4318/v1/traces",
        trace_rate=100,
        metrics=False,
        log_level="verbose",
        extra=("--pinned-memory-pool-byte-size=0",),
    )
    assert "--model-config-name=tensorrt" in given
    assert f"--grpc-server-cert={pem}" in given
    assert "--grpc-use-ssl-mutual=true" in given
    assert "--trace-config=mode=opentelemetry" in given
    assert "--trace-config=opentelemetry,url=http://collector:4318/v1/traces" in given
    assert "--trace-config=rate=100" in given
    assert "--allow-metrics=false" in given
    assert "--log-verbose=1" in given
    assert given[-1] == "--pinned-memory-pool-byte-size=0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": ""}, "host is empty"),
        ({"http_port": 70000}, "http_port is 70000"),
        ({"http_port": 8001}, "collide"),
        ({"api_key": "short"}, "at least 16 characters"),
        ({"api_key": "0123456789abcdef,x=y"}, "letters, digits"),
        ({"tls_key": Path("k.pem")}, "a certificate and its key"),
        ({"tls_client_ca": Path("k.pem")}, "a certificate and its key"),
        ({"tls_key": Path("k.pem"), "tls_certificate": Path("no.pem")}, r"no\.pem does not exist"),
        ({"log_level": "loud"}, "log level is 'loud'"),
        ({"instances": 0}, "instances is 0"),
        ({"threads": -1}, "threads is -1"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ServeOptions(Path("models"), **changes)


def test_free_ports_are_chosen_and_distinct() -> None:
    options = ServeOptions(Path("m"), http_port=0, grpc_port=0, metrics_port=0).with_free_ports()
    assert len({options.http_port, options.grpc_port, options.metrics_port, 0}) == 4
    with pytest.raises(ConfigurationError, match=r"cannot bind to 192\.0\.2\.1"):
        ServeOptions(Path("m"), host="192.0.2.1", http_port=0).with_free_ports()
    with pytest.raises(ConfigurationError, match=r"cannot bind to a\.\.b"):
        ServeOptions(Path("m"), host="a..b", http_port=0).with_free_ports()


def test_urls_can_be_reached() -> None:
    assert ServeOptions(Path("m"), host="0.0.0.0").http_url == "http://127.0.0.1:8000"
    assert ServeOptions(Path("m"), host="::1").grpc_url == "grpc://[::1]:8001"


def test_log_lines_of_both_formats() -> None:
    iso = parse_line('2026-11-23T15:09:11Z E 24748 grpc_server.cc:2558] "[request id: 7] it failed"\n')
    assert (iso.level, iso.text, iso.request_id) == ("error", "it failed", "7")
    assert json.loads(iso.as_json()) == {
        "time": "2026-11-23T15:09:11Z",
        "level": "error",
        "source": "grpc_server.cc:2558",
        "request_id": "7",
        "message": "it failed",
    }
    old = parse_line("I1123 15:09:11.549703 24748 model_lifecycle.cc:839] \"successfully loaded 'a_b'\"")
    assert (old.level, old.loaded_model) == ("info", "a_b")
    anonymous = parse_line('W1123 15:09:11.549703 1 a.cc:1] "[request id: <id_unknown>] hm"')
    assert (anonymous.text, anonymous.request_id) == ("hm", "")


def test_failures_are_told_from_noise() -> None:
    failed = parse_line(
        "E1123 15:09:11.549703 1 model_lifecycle.cc:642] \"failed to load 'm' version 1: Internal: broken\""
    )
    assert failed.failed_model == ("m", "Internal: broken")
    harmless = parse_line(
        'E1123 15:08:47.655333 1 server.cc:241] "CudaDriverHelper has not been initialized."'
    )
    assert harmless.level == "verbose"
    assert parse_line("+------+------+").level == "verbose"
    assert parse_line("/opt/bin/tritonserver: unrecognized option '--x'").level == "error"
    assert parse_line("error: creating server: Internal - failed").level == "error"


@pytest.mark.parametrize("level", ["error", "warning", "info", "verbose"])
def test_levels_show_what_is_as_bad_or_worse(level: Any) -> None:
    shown = [
        name
        for name, letter in (("error", "E"), ("warning", "W"), ("info", "I"), ("verbose", "V"))
        if parse_line(f'{letter}1123 15:08:47.655333 1 a.cc:1] "x"').shown_at(level)
    ]
    assert shown == ["error", "warning", "info", "verbose"][: len(shown)]
    assert shown[-1] == level


def test_folder_that_must_not_be_entered_is_no_model() -> None:
    """Such as `lost+found` at the root of a disk, for a user who is not root."""
    with tempfile.TemporaryDirectory() as name:
        repository = Path(name)
        repository.chmod(0o755)
        for folder in ("lost+found", "model"):
            (repository / folder).mkdir()
            (repository / folder / "config.pbtxt").touch()
        (repository / "lost+found").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            assert ModelRepository(repository).names() == ["model"]
        finally:
            if user == 0:
                os.seteuid(user)


def fake_server(root: Path, *, native: bool, python: bool = True) -> Path:
    executable = root / "bin" / "tritonserver"
    executable.parent.mkdir(parents=True)
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    for folder, library, there in (("onnxruntime", "onnxruntime", native), ("python", "python", python)):
        if there:
            (root / "backends" / folder).mkdir(parents=True)
            (root / "backends" / folder / f"libtriton_{library}.so").touch()
    return executable


def test_server_on_path_with_native_backend_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable = fake_server(tmp_path / "opt", native=True)
    monkeypatch.setenv("PATH", str(executable.parent) + os.pathsep + os.environ["PATH"])
    found = find_installation()
    assert found.executable == executable
    assert found.has_native_backend
    assert backend_directory(found, tmp_path / "cache") == tmp_path / "opt" / "backends"
    assert not (tmp_path / "cache").exists()


def test_backend_directory_is_assembled_once_and_anew_for_another_server(tmp_path: Path) -> None:
    executable = fake_server(tmp_path / "opt", native=False)
    found = Installation(executable, tmp_path / "opt" / "backends")
    made = backend_directory(found, tmp_path / "cache")
    assert {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()} == {
        "python/libtriton_python.so",
        "onnxruntime/model.py",
    }
    assert not any(path.is_symlink() for path in made.rglob("*"))
    assert backend_directory(found, tmp_path / "cache") == made
    (tmp_path / "opt" / "backends" / "python" / "libtriton_python.so").write_text("another")
    assert backend_directory(found, tmp_path / "cache") != made
    assert not list((tmp_path / "cache").glob(".*"))


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = fake_server(tmp_path / "opt", native=False, python=False)
    with pytest.raises(ConfigurationError, match="no backend for ONNX Runtime or Python"):
        backend_directory(Installation(executable, tmp_path / "opt" / "backends"), tmp_path / "cache")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(installing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'autovoice\[server\]'"):
        find_installation()


def test_unwritable_cache_is_named(tmp_path: Path) -> None:
    executable = fake_server(tmp_path / "opt", native=False)
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(ConfigurationError, match="XDG_CACHE_HOME"):
        backend_directory(Installation(executable, tmp_path / "opt" / "backends"), blocked / "cache")


def test_memory_settings_of_the_caller_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Installation(tmp_path / "tritonserver", tmp_path)
    names = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert "hugetlb=1" in found.environment()["GLIBC_TUNABLES"]
    for name in names:
        monkeypatch.setenv(name, "mine")
    assert {found.environment()[name] for name in names} == {"mine"}
