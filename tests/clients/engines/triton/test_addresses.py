"""Addresses that name the wrong port or protocol, and servers that are not there yet: the true reason."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import soundfile
from remote_calls import RATE, hum
from serve_processes import autovoice
from triton_calls import kill, until, write_small_repository

from autovoice import PipelineConfig
from autovoice.cli.main import run
from autovoice.engines.opening import connect
from autovoice.errors import UnavailableError
from autovoice.server.options import ServeOptions
from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server
SCHEMES = ("http", "https", "grpc", "grpcs")


@pytest.fixture(scope="module")
def small(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "models"
    write_small_repository(folder, repository)
    return folder


@pytest.fixture(scope="module")
def begin(small: Path, cache: Path) -> Iterator[Callable[..., TritonServer]]:
    """Starts servers of the small repository, without waiting for them."""
    started: list[TritonServer] = []

    def start(**options: Any) -> TritonServer:
        ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
        started.append(TritonServer(ServeOptions(small, **(ports | options)), cache=cache))
        started[-1].start()
        return started[-1]

    yield start
    for server in started:
        kill(server)


def speak(line: bytes) -> int:
    """Port of a server that says `line` to everybody; it ends with the process."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(line)

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def ports(begin: Callable[..., TritonServer], certificate: Path) -> dict[str, int]:
    """A port of each kind."""
    key = certificate.with_name("key.pem")
    plain = begin()
    encrypted = begin(tls_certificate=certificate, tls_key=key, metrics=False)
    mutual = begin(tls_certificate=certificate, tls_key=key, tls_client_ca=certificate, metrics=False)
    for server in (plain, encrypted, mutual):
        server.wait_ready()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    web = ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    secure_web = ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    secure_web.socket = context.wrap_socket(secure_web.socket, server_side=True)
    for server_of_pages in (web, secure_web):
        threading.Thread(target=server_of_pages.serve_forever, daemon=True).start()
    return {
        "http": plain.options.http_port,
        "grpc": plain.options.grpc_port,
        "grpcs": encrypted.options.grpc_port,
        "mutual": mutual.options.grpc_port,
        "metrics": plain.options.metrics_port,
        "https": secure_web.server_port,
        "web": web.server_port,
        "ssh": speak(b"SSH-2.0-OpenSSH_9.2p1\r\n"),
        "mail": speak(b"220 mail.example.org ESMTP\r\n"),
    }


class Redirecting(BaseHTTPRequestHandler):
    """Sends everybody elsewhere, as proxies do that want TLS."""

    def do_GET(self) -> None:
        self.send_response(301)
        self.send_header("Location", f"https://triton.example.org{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


MISTAKES = [
    *((scheme, kind, f"; use {kind}://") for scheme in SCHEMES for kind in SCHEMES if scheme != kind),
    *((scheme, "ssh", "SSH-2.0-OpenSSH_9.2p1") for scheme in SCHEMES),
    *((scheme, "mail", "220 mail.example.org ESMTP") for scheme in SCHEMES),
    ("http", "metrics", "Triton's metrics"),
    ("https", "metrics", "; use http://"),
    ("grpc", "metrics", "speaks HTTP, not gRPC"),
    ("http", "web", "301 Moved Permanently, to https://triton.example.org/v2"),
    ("grpc", "mutual", "; use grpcs://"),
    ("http", "mutual", "with TLS"),
]


@pytest.mark.parametrize(("scheme", "kind", "says"), MISTAKES)
def test_wrong_port_or_protocol(
    scheme: str, kind: str, says: str, ports: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The caller's mistake, told in one line, by every command and whatever the fallback."""
    address = f"{scheme}://127.0.0.1:{ports[kind]}"
    for command in (["voices"], ["info"], ["info", "--ready"]):
        assert run([*command, "--server", address]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith(f"autovoice: {address}")
        assert says in line


def test_no_library_adds_lines_of_its_own(ports: dict[str, int]) -> None:
    """As gRPC does about a TLS handshake that fails."""
    address = f"grpcs://127.0.0.1:{ports['grpc']}"
    _, log = autovoice("info", "--server", address, environment=dict(os.environ)).communicate(timeout=60)
    (line,) = log.splitlines()
    assert line.startswith(f"autovoice: {address}: what listens there speaks gRPC without TLS")


def test_wrong_port_is_told_before_any_fallback(
    ports: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "in.wav", hum(0.2), RATE)
    address = f"http://127.0.0.1:{ports['grpc']}"
    command = ["embed", str(tmp_path / "in.wav"), "-o", str(tmp_path / "made.npy"), "--server", address]
    assert run(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "use grpc://" in line
    assert not (tmp_path / "made.npy").exists()


@pytest.mark.parametrize(("scheme", "kind"), [("http", "http"), ("grpc", "grpc")])
def test_right_address(
    scheme: str, kind: str, ports: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["info", "--ready", "--server", f"{scheme}://127.0.0.1:{ports[kind]}"]) == 0
    assert capsys.readouterr().err == ""


def test_trust_is_no_matter_of_the_protocol(
    ports: dict[str, int], certificate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A certificate that nobody vouches for, and none shown where one is asked for, stay what they are."""
    for scheme, kind, options in (
        ("grpcs", "grpcs", []),
        ("https", "https", []),
        ("grpcs", "mutual", ["--tls-ca", str(certificate)]),
    ):
        address = f"{scheme}://127.0.0.1:{ports[kind]}"
        assert run(["info", "--server", address, *options]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "; use " not in line
        assert "no Triton server" not in line


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_server_that_still_loads(protocol: str, begin: Callable[..., TritonServer]) -> None:
    server = begin(metrics=False)
    address = server.options.grpc_url if protocol == "grpc" else server.options.http_url
    engine = connect(PipelineConfig(backend=address, fallback="raise"))
    try:
        with pytest.raises(UnavailableError, match="until its models are loaded it takes no connections"):
            engine.names()
        server.wait_ready()

        def answers() -> bool:
            try:
                return "roots" in engine.names()
            except UnavailableError:  # gRPC waits a second at most before it connects anew
                return False

        until(answers)
    finally:
        engine.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("variable", ["http_proxy", "HTTPS_PROXY", "grpc_proxy", "all_proxy"])
def test_proxy_that_is_not_asked_is_named(
    protocol: str, variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    address = f"{protocol}://no-such-host.invalid:8000"
    for proxy in (None, "http://127.0.0.1:9"):
        if proxy is not None:
            monkeypatch.setenv(variable, proxy)
        assert run(["info", "--server", address]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert (f"${variable}" in line) == (proxy is not None)


BOMS = {
    "utf-8": b"\xef\xbb\xbf0123456789abcdef",
    "utf-8, line end of Windows": b"\xef\xbb\xbf0123456789abcdef\r\n",
    "utf-16": "0123456789abcdef\r\n".encode("utf-16"),
    "utf-16, big-endian": b"\xfe\xff" + "0123456789abcdef\n".encode("utf-16-be"),
    "none": b"0123456789abcdef\n",
}


@pytest.fixture(scope="module")
def keyed(begin: Callable[..., TritonServer]) -> TritonServer:
    server = begin(api_key="0123456789abcdef", metrics=False)
    server.wait_ready()
    return server


@pytest.mark.parametrize("content", BOMS.values(), ids=BOMS)
def test_key_file_as_windows_writes_it(
    content: bytes, keyed: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    for address in (keyed.options.http_url, keyed.options.grpc_url):
        assert run(["info", "--server", address, "--api-key-file", str(path), "--json"]) == 0
        assert "roots" in capsys.readouterr().out


def test_key_of_the_environment_as_windows_wrote_it(
    keyed: TritonServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOVOICE_API_KEY", "\ufeff0123456789abcdef\r")
    assert run(["info", "--server", keyed.options.http_url, "--json"]) == 0
    assert "roots" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "nothing"),
        (b"\xef\xbb\xbf\n", "nothing"),
        (b"two words\nsecond\n", "several words"),
        (b"\xff\xfe\xff", "text file"),
    ],
)
@pytest.mark.parametrize("command", ["info", "serve"])
def test_key_file_without_a_key(
    command: str, content: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    address = ["--server", "http://127.0.0.1:9"] if command == "info" else []
    assert run([command, *address, "--api-key-file", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert says in line
