"""Starting and stopping: whatever happens in between, nothing is left behind."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from serve_processes import end, ended, family, serve
from triton_calls import (
    KEY,
    PATIENCE,
    STRAYS,
    Array,
    Connect,
    backend_processes,
    grpc_client,
    http_client,
    hum,
    kill,
    local_options,
    shared_memory,
    until,
    voice,
)
from tritonclient.utils import InferenceServerException

from autovoice.cli import serve as command
from autovoice.errors import ConfigurationError, RepositoryError, VoiceConversionError
from autovoice.server import control, installation
from autovoice.server import server as serving
from autovoice.server.logs import LogRecord
from autovoice.server.options import ServeOptions
from autovoice.server.server import ServerError, TritonServer

pytestmark = pytest.mark.server
PROXIES = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which a server must leave as it found it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert list(folder.glob("autovoice-*")) == []


def test_serve_says_when_it_is_ready_and_ends_on_a_signal(small: Path, environment: dict[str, str]) -> None:
    process = serve(small, environment, "--log-format", "json")
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("ready: grpc://127.0.0.1:")
        regions = shared_memory(process.pid)
        assert regions
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert sum('"loaded ' in line for line in log.splitlines()) == len(list(small.glob("*/config.pbtxt")))
    assert all(line.startswith("{") for line in log.splitlines())
    assert not any(region.exists() for region in regions)


@pytest.mark.parametrize("quarter", range(4))
def test_sigterm_while_serve_starts(
    small: Path, environment: dict[str, str], time_to_ready: float, quarter: int
) -> None:
    process = serve(small, environment)
    time.sleep((quarter + random.random()) / 4 * time_to_ready)
    children = family(process.pid) - {process.pid}
    process.send_signal(signal.SIGTERM)
    try:
        _, log = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    # While Python still starts, its own answer to the signal holds.
    allowed = {0} if children else {0, -signal.SIGTERM, 128 + signal.SIGTERM}
    assert process.returncode in allowed, log
    assert "Traceback" not in log
    until(lambda: ended(children))


@pytest.mark.parametrize(
    "moment",
    [
        (command, "read_key"),
        (serving, "ModelRepository"),
        (serving, "find_installation"),
        (serving, "backend_directory"),
        (subprocess, "Popen"),
        (control, "is_ready"),
        (command, "_announce"),
    ],
    ids=lambda moment: moment[1],
)
def test_sigterm_at_any_step(
    small: Path,
    cache: Path,
    installed: None,
    moment: tuple[Any, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The signal comes just before the step and has been taken note of after it."""
    owner, name = moment
    step = getattr(owner, name)
    seen: list[set[int]] = []
    own = psutil.Process().pid
    before = family(own)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if not seen:
            seen.append(family(own) - before)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments, **options)

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(owner, name, interrupted)
    handler = signal.getsignal(signal.SIGTERM)
    code = command.serve(repository=small, http_port=0, grpc_port=0, metrics_port=0)
    assert seen, "the step was never taken"
    assert code == 0
    assert signal.getsignal(signal.SIGTERM) is handler
    assert ("ready:" in capsys.readouterr().out) == (name == "_announce")
    until(lambda: ended(seen[0]))


def test_server_that_was_told_to_stop_does_not_start(small: Path, cache: Path) -> None:
    server = TritonServer(local_options(small), cache=cache)
    server.terminate()
    with pytest.raises(ServerError, match="told to stop before it started"):
        server.start()
    assert server.process is None


class Senders:
    """Threads that send without a pause over both protocols, as long as the server answers.

    Args:
        options: of the server.
        model: they ask.
        feeds: they send.

    Attributes:
        errors: status of each request that failed.
    """

    def __init__(self, options: ServeOptions, model: str, feeds: dict[str, Array]) -> None:
        self.errors: list[str] = []
        self._options = options
        self._model = model
        self._feeds = feeds
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(connect,)) for connect in (grpc_client, http_client) * 3
        ]

    def __enter__(self) -> Senders:
        for thread in self._threads:
            thread.start()
        time.sleep(1)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads), "a sender hangs"

    def _run(self, connect: Connect) -> None:
        with connect(self._options) as client:
            while not self._stop.is_set():
                try:
                    client.infer(self._model, self._feeds)
                except Exception as error:  # those of the two clients have no common base
                    status = error.status() if isinstance(error, InferenceServerException) else error
                    self.errors.append(str(status))
                    time.sleep(0.05)


def test_server_ends_while_clients_keep_sending(
    small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told that the request was wrong."""
    monkeypatch.setattr(serving, "EXIT_SECONDS", 1)
    log: list[LogRecord] = []
    with TritonServer(local_options(small), cache=cache, on_log=log.append) as server:
        assert server.process is not None
        pids = family(server.process.pid)
        with Senders(server.options, "roots", {"X": np.ones((8, 100_000), np.float32)}) as senders:
            assert senders.errors == []
            server.stop()
    assert ended(pids)
    assert "StatusCode.INVALID_ARGUMENT" not in senders.errors
    assert "400" not in senders.errors
    assert not any("loaded again" in record.text for record in log)


def test_server_that_ends_refuses_new_connections_and_finishes_the_old(
    small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose connection is refused may turn to another server; one that is reset cannot know."""
    monkeypatch.setattr(serving, "EXIT_SECONDS", 2)
    log: list[LogRecord] = []
    with TritonServer(local_options(small), cache=cache, on_log=log.append) as server:
        assert server.process is not None
        kept = http.client.HTTPConnection(server.options.host, server.options.http_port, timeout=PATIENCE)
        kept.request("GET", "/v2/health/live")
        assert kept.getresponse().read() == b""
        server.terminate()
        answers = set()
        tries = 0
        while server.process.poll() is None and tries < 50:
            tries += 1
            try:
                with socket.create_connection((server.options.host, server.options.http_port), 5) as new:
                    new.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n")
                    answers.add(new.recv(1 << 10)[:12] or b"closed")
            except OSError as error:
                answers.add(type(error).__name__.encode())
            time.sleep(0.01)
        kept.request("GET", "/v2/health/live")
        assert kept.getresponse().status == 200
    assert tries == 50
    assert answers == {b"ConnectionRefusedError"}
    assert len(log) < 20_000  # the process is not woken for connections that nobody makes


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_serve_ends_while_clients_keep_sending(
    repository: Path, environment: dict[str, str], attempt: int
) -> None:
    """In one of three attempts Triton crashes and then waits for ever."""
    process = serve(repository, environment)
    assert process.stdout is not None
    _, grpc_url, http_url = process.stdout.readline().split()
    grpc_port, http_port = (int(url.rpartition(":")[2]) for url in (grpc_url, http_url))
    options = local_options(repository, grpc_port=grpc_port, http_port=http_port)
    try:
        pids = family(process.pid)
        with Senders(options, "voice_conversion", {"SOURCE_AUDIO": hum(24_000), **voice(0)}) as senders:
            assert senders.errors == []
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert ended(pids)


def test_server_that_hangs_is_killed(small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "KILL_SECONDS", 0.5)
    log: list[LogRecord] = []
    server = TritonServer(local_options(small), cache=cache, on_log=log.append)
    with server:
        assert server.process is not None
        pids = family(server.process.pid)
        server.process.send_signal(signal.SIGSTOP)
        assert server.stop() == -signal.SIGKILL
    assert [record.text for record in log if "killed" in record.text] == [
        "the server did not end in time and is killed"
    ]
    assert ended(pids)


def test_second_call_kills_at_once(small: Path, cache: Path) -> None:
    with TritonServer(local_options(small), cache=cache) as server:
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        server.terminate()
        server.terminate()
        assert server.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def time_to_ready(small: Path, cache: Path, installed: None) -> float:
    """Seconds that `serve` takes to start."""
    begun = time.monotonic()
    process = serve(small, {**os.environ, "XDG_CACHE_HOME": str(cache)})
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("ready:")
        return time.monotonic() - begun
    finally:
        end(process)


def test_server_outlives_the_thread_that_started_it(small: Path, cache: Path) -> None:
    server = TritonServer(local_options(small), cache=cache)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join(PATIENCE)
    try:
        server.wait_ready()
        assert server.process is not None
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(1)
    finally:
        kill(server)


def test_server_ends_with_a_process_that_is_killed(small: Path, environment: dict[str, str]) -> None:
    """Started from a thread that has ended, too."""
    script = f"""
        import threading, time
        from pathlib import Path
        from autovoice.server.options import ServeOptions
        from autovoice.server.server import TritonServer
        ports = dict(http_port=0, grpc_port=0, metrics_port=0)
        server = TritonServer(ServeOptions(Path({str(small)!r}), **ports))
        starter = threading.Thread(target=server.__enter__)
        starter.start()
        starter.join()
        print(server.process.pid, flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert parent.stdout is not None
        pids = family(int(parent.stdout.readline()))
        assert len(pids) > 1
    finally:
        parent.kill()
        parent.wait()
    until(lambda: ended(pids))


def test_killed_server_leaves_nothing_behind(small: Path, cache: Path) -> None:
    with TritonServer(local_options(small, threads=1), cache=cache) as server:
        assert server.process is not None
        regions = shared_memory(server.process.pid)
        pids = family(server.process.pid)
        assert len(pids) > 1
        assert any(region.exists() for region in regions)
        server.process.kill()
        assert server.wait() == -signal.SIGKILL
    assert ended(pids)
    assert not any(region.exists() for region in regions)


def test_log_that_cannot_be_written_does_not_stop_the_server(small: Path, cache: Path) -> None:
    def fail(record: LogRecord) -> None:
        raise BrokenPipeError

    with TritonServer(local_options(small), cache=cache, on_log=fail) as server:
        assert server.is_ready()
        kill(server)


def test_no_server(small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="no Triton server found"):
        TritonServer(local_options(small, threads=1), cache=cache).start()


def test_config_that_cannot_be_read(installed: None, cache: Path, tmp_path: Path) -> None:
    broken = tmp_path / "models" / "broken"
    broken.mkdir(parents=True)
    (broken / "config.pbtxt").write_text("nonsense {")
    with pytest.raises(RepositoryError, match="nonsense"):
        TritonServer(local_options(broken.parent, threads=1), cache=cache).start()


def test_cache_that_cannot_be_written(installed: None, small: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="XDG_CACHE_HOME"):
        TritonServer(local_options(small, threads=1), cache=tmp_path / "file" / "cache").start()


def test_program_that_cannot_run(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "opt" / "bin" / "tritonserver"
    library = tmp_path / "opt" / "backends" / "onnxruntime" / "libtriton_onnxruntime.so"
    for path in (program, library):
        path.parent.mkdir(parents=True)
        path.write_text("no program")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ConfigurationError, match=r"tritonserver cannot be run \(Exec format error\)"):
        TritonServer(local_options(small, threads=1)).start()


def test_no_temporary_folder(
    installed: None, small: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="TMPDIR"):
        TritonServer(local_options(small, threads=1), cache=cache).start()


def test_interrupt_while_the_backends_are_copied(
    installed: None, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(installation.shutil, "copy2", interrupt)
    with pytest.raises(KeyboardInterrupt):
        TritonServer(local_options(small, threads=1), cache=tmp_path / "cache").start()
    assert list((tmp_path / "cache").iterdir()) == []


def test_model_that_does_not_load(small: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    broken = tmp_path / "models"
    (broken / "roots" / "1").mkdir(parents=True)
    (broken / "roots" / "config.pbtxt").write_bytes((small / "roots" / "config.pbtxt").read_bytes())
    model = small / "roots" / "1" / "model.onnx"
    (broken / "roots" / "1" / "model.onnx").write_bytes(model.read_bytes()[:50])
    process = serve(broken, environment, "--threads", "1")
    _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    last = log.splitlines()[-1]
    assert last.startswith("autovoice: model roots did not load: ")
    assert "model.onnx" in last or "protobuf" in last.lower()


def test_option_that_triton_does_not_know(small: Path, environment: dict[str, str]) -> None:
    process = serve(small, environment, "--threads", "1", "--", "--no-such-option")
    _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "no-such-option" in log.splitlines()[-1]


def test_port_in_use_is_named(small_server: TritonServer, small: Path) -> None:
    port = small_server.options.http_port
    with pytest.raises(ConfigurationError, match=f"port {port} of 127.0.0.1 is in use"):
        TritonServer(local_options(small, http_port=port))


def test_proxies_of_the_environment_are_not_asked(small: Path, environment: dict[str, str]) -> None:
    """Neither for the server's health nor for loading a model again."""
    for name in ("no_proxy", "NO_PROXY"):
        environment.pop(name, None)
    process = serve(small, environment | PROXIES)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("ready:")
        (victim,) = backend_processes(process.pid, "roots")
        victim.kill()
        until(lambda: any(child != victim for child in backend_processes(process.pid, "roots")))
    finally:
        log = end(process)
    assert process.returncode == 0, log
    assert "a process of model roots died; the model is loaded again" in log


def test_refused_control_is_an_error(small_server: TritonServer) -> None:
    with pytest.raises(VoiceConversionError, match="403"):
        control.reload_model(small_server.options.http_url, "roots", {})


def test_folders_that_are_no_models_are_ignored(
    small_server: TritonServer, small_log: list[LogRecord]
) -> None:
    assert small_server.is_ready()
    (line,) = [record for record in small_log if "ignored" in record.text]
    assert line.level == "warning"
    assert all(name in line.text for name in STRAYS)


def test_output_that_is_no_number_is_the_models_fault(small_server: TritonServer) -> None:

    root = np.array([[-1.0, 4.0]], np.float32)
    for connect, header, status in (
        (grpc_client, "triton-grpc-protocol-autovoice-key", "StatusCode.INTERNAL"),
        (http_client, "autovoice-key", "500"),
    ):
        with connect(small_server.options) as client, pytest.raises(InferenceServerException) as caught:
            client.infer("roots", {"X": root}, headers={header: KEY})
        assert "Y came out as not a number" in str(caught.value)
        assert caught.value.status() == status
