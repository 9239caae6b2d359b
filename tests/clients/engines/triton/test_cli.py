"""The commands with `--server`, against a real server that asks for a key and speaks TLS."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from remote_calls import KEY, RATE, assert_same, hum, speaker, url

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.cli.main import run
from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server

SOURCE = hum(0.5)


@pytest.fixture
def folder(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source, a voice and two keys, the right one and a wrong one."""
    soundfile.write(tmp_path / "in.wav", SOURCE, RATE, subtype="FLOAT")
    np.save(tmp_path / "voice.npy", speaker(1))
    (tmp_path / "right").write_text(f"{KEY}\n")
    (tmp_path / "wrong").write_text("fedcba9876543210")
    monkeypatch.setenv("AUTOVOICE_REPOSITORY", str(repository))
    monkeypatch.delenv("AUTOVOICE_API_KEY", raising=False)
    return tmp_path


@pytest.fixture(params=["grpc", "http"])
def server_options(
    request: pytest.FixtureRequest, guarded: TritonServer, certificate: Path, folder: Path
) -> list[str]:
    """What reaches the guarded server, the key left out; only its gRPC has TLS."""
    address = url(guarded, request.param).replace("grpc:", "grpcs:")
    return ["--server", address, "--tls-ca", str(certificate), "--fallback", "raise"]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def conversion(folder: Path) -> list[str]:
    return ["convert", str(folder / "in.wav"), "-t", str(folder / "voice.npy"), "-o", str(folder / "out.wav")]


def test_convert(
    server_options: list[str],
    folder: Path,
    embedded: VoiceConversionPipeline,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = ["--api-key-file", str(folder / "right")]
    assert run([*conversion(folder), "--json", *server_options, *key]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == server_options[1]
    made, _ = soundfile.read(folder / "out.wav")
    expected = embedded.convert(SOURCE, speaker(1), None, RATE)
    np.testing.assert_allclose(made, expected, atol=2e-4)  # 16 bits


def test_embed(server_options: list[str], folder: Path, embedded: VoiceConversionPipeline) -> None:
    key = ["--api-key-file", str(folder / "right"), "--timeout", "30", "--retries", "0"]
    assert run(["embed", str(folder / "in.wav"), "-o", str(folder / "made.npy"), *server_options, *key]) == 0
    np.testing.assert_allclose(np.load(folder / "made.npy"), embedded.embed(SOURCE, RATE), atol=1e-4)


def test_stream(
    server_options: list[str],
    folder: Path,
    embedded: VoiceConversionPipeline,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUTOVOICE_API_KEY", KEY)
    command = ["stream", "--simulate", str(folder / "in.wav"), "-t", str(folder / "voice.npy"), "--json"]
    command += ["--input-gain", "0"]
    assert run([*command, "-o", str(folder / "heard.wav"), *server_options]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == server_options[1]
    heard, _ = soundfile.read(folder / "heard.wav")
    expected = embedded.convert(SOURCE, speaker(1), None, RATE, input_gain_db=0.0)
    np.testing.assert_allclose(heard, expected, atol=2e-4)


@pytest.mark.parametrize("key", [None, "wrong"])
def test_without_the_key_there_is_one_line_and_no_output(
    server_options: list[str], folder: Path, key: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [] if key is None else ["--api-key-file", str(folder / key)]
    assert run([*conversion(folder), *server_options, *keys]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "another API key" in line
    assert not (folder / "out.wav").exists()


def test_a_server_that_is_not_there(
    folder: Path, embedded: VoiceConversionPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """Port 9 has no listener: the embedded runtime takes over, unless it is told not to."""
    absent = ["--server", "grpc://127.0.0.1:9", "--retries", "0"]
    assert run([*conversion(folder), *absent, "--fallback", "raise"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("autovoice: grpc://127.0.0.1:9")
    assert run([*conversion(folder), "--json", *absent]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "cpu"
    assert_same(soundfile.read(folder / "out.wav")[0], embedded.convert(SOURCE, speaker(1), None, RATE))


def test_the_timeout_ends_the_wait(
    silent_port: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = ["--server", f"http://127.0.0.1:{silent_port}", "--timeout", "0.3", "--fallback", "raise"]
    assert run([*conversion(folder), *silent]) == 1
    assert "no answer in time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--server", "localhost:8001"], "grpc://host:port"),
        (["--tls-ca", "ca.pem"], "--tls-ca ca.pem is for a server"),
        (["--api-key-file", "key"], "--api-key-file key is for a server"),
        (["--server", "grpcs://host", "--tls-ca", "absent.pem"], "absent.pem"),
        (["--server", "grpc://host", "--api-key-file", "absent"], "absent"),
        (["--server", "grpc://host", "--timeout", "0"], "timeout_seconds"),
        (["--server", "grpc://host", "--retries", "-1"], "retries"),
    ],
)
@pytest.mark.parametrize("command", ["convert", "embed", "stream"])
def test_mistakes(
    command: str, options: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, voice = str(folder / "in.wav"), str(folder / "voice.npy")
    commands = {
        "convert": conversion(folder),
        "embed": ["embed", source, "-o", str(folder / "made.npy")],
        "stream": ["stream", "--simulate", source, "-t", voice],
    }
    assert run([*commands[command], *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.fixture(params=["grpc", "http"])
def address(request: pytest.FixtureRequest, server: TritonServer) -> str:
    """A server that asks for no key, by both protocols."""
    return url(server, request.param)


def test_info_shows_where_the_time_of_a_server_goes(
    address: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["info", "--server", address]

    def models() -> dict[str, dict[str, Any]]:
        assert run([*command, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["server"] == "triton"
        assert re.fullmatch(r"\d+\.\d+\.\d+", report["version"])
        return {model["name"]: model for model in report["models"]}

    before = models()
    with VoiceConversionPipeline(PipelineConfig(backend=address, fallback="raise")) as pipeline:
        pipeline.convert(SOURCE, speaker(0), None, RATE)
    after = models()
    assert after.keys() == {path.parent.name for path in repository.glob("*/config.pbtxt")}
    for name in ("voice_conversion", "synthesizer"):
        assert after[name]["requests"] == before[name]["requests"] + 1
        parts = [
            after[name][f"{part}_ms"]
            for part in ("queue", "compute_input", "compute_infer", "compute_output")
        ]
        assert min(parts) >= 0
        assert 0 < after[name]["compute_infer_ms"] < after[name]["total_ms"]
    assert after["synthesizer"]["batch"] >= 1.0
    assert run(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{address}: triton ")
    rows = {line.split()[0]: line.split() for line in lines[3:]}
    assert rows.keys() == after.keys()
    assert rows["synthesizer"][1] == str(after["synthesizer"]["requests"])
    assert run([*command, "--ready"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", ["info", "voices"])
def test_what_is_shown_of_a_server_needs_its_key_and_certificate(
    command: str,
    guarded: TritonServer,
    server_options: list[str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The key from a file or from the environment, as for every other command."""
    *asked, _, _ = [command, *server_options]  # without --fallback
    for key in ([], ["--api-key-file", str(folder / "wrong")]):
        assert run([*asked, *key]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("autovoice: ")
        (line,) = captured.err.splitlines()
        assert "another API key" in line
    assert run([*asked, "--json", "--api-key-file", str(folder / "right")]) == 0
    assert "voice_conversion" in capsys.readouterr().out
    monkeypatch.setenv("AUTOVOICE_API_KEY", KEY)
    assert run(asked) == 0
    assert "voice_conversion" in capsys.readouterr().out
    if "grpcs:" in asked[2]:
        assert run(asked[:3]) == 1  # nobody vouches for the certificate
        assert capsys.readouterr().err.startswith(f"autovoice: {asked[2]}")


@pytest.mark.parametrize("command", [["info"], ["info", "--ready"], ["voices"]])
def test_a_server_is_never_asked_through_a_proxy(
    command: list[str], address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
            for variable in (name, name.upper()):
                monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for variable in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(variable, raising=False)
        assert run([*command, "--server", address]) == 0, capsys.readouterr().err
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.mark.parametrize("command", [["info"], ["info", "--ready"], ["voices"]])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_no_server_is_one_line(command: list[str], protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--server", f"{protocol}://127.0.0.1:9"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"autovoice: {protocol}://127.0.0.1:9")


@pytest.mark.parametrize(
    ("status", "says"), [(400, "is not ready"), (503, "HTTP status 503"), (500, "HTTP status 500")]
)
def test_a_server_that_is_not_ready(status: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Triton answers 400 until its models are loaded, a proxy before it 503."""

    class Unready(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unready) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        try:
            for ready in ([], ["--ready"]):
                assert run(["info", "--server", f"http://127.0.0.1:{listener.server_port}", *ready]) == 1
                (line,) = capsys.readouterr().err.splitlines()
                assert says in line
        finally:
            listener.shutdown()


def test_options_that_contradict_each_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, says in (
        (["info", "--ready"], "--ready is for a server"),
        (["info", "--check", "--server", "grpc://h"], "--check is for a repository"),
        (["info", "--repository", str(folder), "--server", "grpc://h"], "contradict"),
        (["voices", "--repository", str(folder), "--server", "grpc://h"], "contradict"),
        (["voices", "--api-key-file", str(folder / "right")], "--api-key-file"),
        (["info", "--tls-ca", "ca.pem"], "--tls-ca ca.pem is for a server"),
        (["info", "--server", "ftp://h"], "ftp://h"),
    ):
        assert run(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("autovoice: ")
        assert says in line
