"""Servers that end by themselves, as Triton does on some requests, and come back."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import urllib3
from geventhttpclient.response import HTTPConnectionClosed
from serve_processes import end, ended, family, serve
from triton_calls import CONTROL_KEY, KEY, PATIENCE, http_client, local_options, shared_memory, until
from tritonclient.grpc import service_pb2

from autovoice.address import API_KEY_HEADER
from autovoice.server import supervision

pytestmark = pytest.mark.server
DEEP = b"[" * 5_000_000


def with_shape(*shape: int, datatype: str = "FP32") -> bytes:
    """A request that claims to hold more values than its one."""
    tensor = {"name": "X", "datatype": datatype, "shape": shape, "data": [0]}
    return json.dumps({"inputs": [tensor]}).encode()


DEADLY = {
    "size beyond 64 bits": ("models/roots/infer", with_shape(1, 2**62), {"SIGSEGV"}),
    "size beyond 64 bits over three axes": (
        "models/roots/infer",
        with_shape(1, 2**31, 2**31, datatype="INT32"),
        {"SIGSEGV"},
    ),
    "more than there is memory": ("models/roots/infer", with_shape(1, 10**12), {"SIGABRT, std::bad_alloc"}),
    "another type": (
        "models/roots/infer",
        with_shape(1, 10**13, datatype="UINT8"),
        {"SIGABRT, std::bad_alloc"},
    ),
    "nested without end": ("models/roots/infer", DEEP, {"SIGSEGV"}),
    "generate": ("models/roots/generate", DEEP, {"SIGSEGV"}),
    "model control": ("repository/models/roots/load", DEEP, {"SIGSEGV"}),
}


@dataclass
class Service:
    """A running `autovoice serve`.

    Attributes:
        process: of the command.
        ready: the line that told its addresses.
    """

    process: subprocess.Popen[str]
    ready: str

    @property
    def url(self) -> str:
        return self.ready.split()[2]

    @property
    def server(self) -> int:
        """Process id of tritonserver."""
        (pid,) = [child.pid for child in psutil.Process(self.process.pid).children() if is_server(child)]
        return pid

    def next_ready(self) -> str:
        """Wait for the line that says that the next server is ready; empty when the command ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready:"):
                return line
        return ""

    def post(self, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> int | None:
        """Status of a request; None when it brings no answer."""
        with suppress(urllib3.exceptions.HTTPError):
            url = f"{self.url}/v2/{path}"
            return urllib3.request("POST", url, body=body, headers=headers, retries=False, timeout=30).status
        return None

    def crash(self) -> None:
        path, body, _ = DEADLY["size beyond 64 bits"]
        assert self.post(path, body) is None

    def roots(self, headers: dict[str, str] | None = None) -> list[float]:
        """What the server answers for the roots of 4 and 9."""
        tensor = {"name": "X", "datatype": "FP32", "shape": [1, 2], "data": [4.0, 9.0]}
        body = json.dumps({"inputs": [tensor]}).encode()
        answer = urllib3.request("POST", f"{self.url}/v2/models/roots/infer", body=body, headers=headers)
        return list(answer.json()["outputs"][0]["data"])

    def loaded(self, headers: dict[str, str] | None = None) -> set[str]:
        answer = urllib3.request("GET", f"{self.url}/v2/models/stats", headers=headers)
        return {model["name"] for model in answer.json()["model_stats"]}


def is_server(process: psutil.Process) -> bool:
    return process.name() == "tritonserver" and process.status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., Service]]:
    """Starts `autovoice serve` of a repository."""
    started: list[Service] = []

    def begin(repository: Path, *arguments: str) -> Service:
        service = Service(serve(repository, environment, *arguments), "")
        started.append(service)
        service.ready = service.next_ready()
        assert service.ready, service.process.communicate()[1]
        return service

    yield begin
    for service in started:
        service.process.kill()
        service.process.wait()


@pytest.fixture
def own(small: Path, tmp_path: Path) -> Path:
    """A repository that a test may change."""
    shutil.copytree(small, tmp_path / "models", ignore=shutil.ignore_patterns("lost+found", ".*"))
    return tmp_path / "models"


def zombies(pid: int) -> set[int]:
    """Descendants that ended and were not collected."""
    found = set()
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                found.add(child.pid)
    return found


@pytest.mark.parametrize("kind", DEADLY)
def test_request_that_ends_the_server_does_not_end_the_service(
    small: Path, start: Callable[..., Service], kind: str
) -> None:
    service = start(small)
    regions, former = shared_memory(service.server), service.server
    path, body, signals = DEADLY[kind]
    assert service.post(path, body) is None
    assert service.next_ready() == service.ready  # the same addresses
    assert service.roots() == [2.0, 3.0]
    children = psutil.Process(service.process.pid).children(recursive=True)
    assert former not in {child.pid for child in children}
    until(lambda: not zombies(service.process.pid))
    assert not any(region.exists() for region in regions)
    log = end(service.process)
    assert service.process.returncode == 0
    (line,) = [line for line in log.splitlines() if "ended by itself" in line]
    match = re.fullmatch(
        r"error tritonserver ended by itself: signal \d+ \((.*)\); live sequences are lost; "
        r"it is started again",
        line,
    )
    assert match
    assert match[1] in signals


def test_memory_of_processes_that_ended_before_the_server_is_given_back(
    small: Path, start: Callable[..., Service]
) -> None:
    service = start(small)
    server = service.server
    regions = shared_memory(server)
    assert regions
    os.kill(server, signal.SIGSTOP)  # so that it sees nothing of it
    for child in psutil.Process(server).children(recursive=True):
        child.kill()
    until(lambda: all(pid == server for pid in family(server) - zombies(server)))
    os.kill(server, signal.SIGKILL)
    assert service.next_ready() == service.ready
    assert not any(region.exists() for region in regions)


def test_models_that_were_loaded_are_loaded_again(own: Path, start: Callable[..., Service]) -> None:
    """Not those of the repository: one was unloaded, one came later, and the keys are still asked for."""
    keys = {"AUTOVOICE_API_KEY": KEY, "AUTOVOICE_CONTROL_KEY": CONTROL_KEY}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        service = start(own, "--api-key-file", str(write(own.parent / "key", KEY)), *control(own))
    key, control_key = {API_KEY_HEADER: KEY}, {API_KEY_HEADER: CONTROL_KEY}
    shutil.copytree(own / "roots", own / "later")
    config = own / "later" / "config.pbtxt"
    config.write_text(config.read_text().replace('"roots"', '"later"'))
    assert service.post("repository/models/later/load", b"{}", control_key) == 200
    assert service.post("repository/models/target_pitch/unload", b"{}", control_key) == 200
    until(lambda: service.loaded(key) == {"roots", "later"})
    time.sleep(1)  # it looks ten times a second
    path, body, _ = DEADLY["size beyond 64 bits"]
    assert service.post(path, body, key) is None
    assert service.next_ready() == service.ready
    assert service.loaded(key) == {"roots", "later"}
    assert service.roots(key) == [2.0, 3.0]
    assert service.post("models/roots/infer", body, {API_KEY_HEADER: CONTROL_KEY}) == 403


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def control(own: Path) -> tuple[str, str]:
    return "--control-key-file", str(write(own.parent / "control", CONTROL_KEY))


def test_model_that_no_longer_loads_is_left_out(own: Path, start: Callable[..., Service]) -> None:
    service = start(own)
    model = own / "target_pitch" / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[:50])
    service.crash()
    assert service.next_ready() == service.ready
    assert service.roots() == [2.0, 3.0]
    assert service.loaded() == {"roots"}
    service.crash()
    assert service.next_ready() == service.ready
    log = end(service.process)
    (line,) = [line for line in log.splitlines() if "goes on without" in line]
    assert line.startswith("error the server goes on without target_pitch: model target_pitch did not load: ")


def test_nothing_loads_any_more(own: Path, start: Callable[..., Service]) -> None:
    service = start(own)
    for name in ("roots", "target_pitch"):
        shutil.rmtree(own / name / "1")
        (own / name / "1").mkdir()
    service.crash()
    assert service.next_ready() == ""
    assert service.process.wait(PATIENCE) == 1
    assert service.process.stderr is not None
    last = service.process.stderr.read().splitlines()[-1]
    assert "did not load" in last


def test_server_that_keeps_ending_is_given_up(small: Path, start: Callable[..., Service]) -> None:
    service = start(small)
    pids = set()
    for _ in range(supervision.RESTARTS + 1):
        pids |= family(service.server)
        os.kill(service.server, signal.SIGKILL)
        line = service.next_ready()
    assert line == ""
    assert service.process.wait(PATIENCE) == 1
    assert service.process.stderr is not None
    lines = service.process.stderr.read().splitlines()
    assert sum("it is started again" in line for line in lines) == supervision.RESTARTS
    assert lines[-1].startswith("autovoice: tritonserver ended by itself again and again")
    assert "signal 9 (SIGKILL" in lines[-1]
    assert ended(pids)


def test_server_that_serves_in_between_is_not_given_up(
    small: Path, cache: Path, installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "SERVED_SECONDS", 0.0)
    times = 0

    def kill_again(_: object) -> None:
        nonlocal times
        times += 1
        process = supervisor._server.process
        assert process is not None
        process.kill() if times < supervision.RESTARTS + 3 else supervisor.terminate()

    supervisor = supervision.Supervisor(
        local_options(small), on_ready=kill_again, on_log=lambda record: None, cache=cache
    )
    supervisor.run()
    assert times == supervision.RESTARTS + 3


@pytest.mark.parametrize(
    ("pause", "number"),
    zip([0.0, 0.15, 0.4, 0.8, 1.2], [signal.SIGTERM, signal.SIGINT] * 3, strict=False),
)
def test_signal_while_the_server_starts_again(
    small: Path, start: Callable[..., Service], number: int, pause: float
) -> None:
    service = start(small)
    children = family(service.process.pid) - {service.process.pid}
    os.kill(service.server, signal.SIGKILL)
    time.sleep(pause)
    children |= family(service.process.pid) - {service.process.pid}
    service.process.send_signal(number)
    _, log = service.process.communicate(timeout=PATIENCE)
    assert service.process.returncode == 0, log
    assert "autovoice: " not in log
    until(lambda: ended(children))


def test_no_process_is_left_to_a_parent_that_collects_none(
    small: Path, start: Callable[..., Service]
) -> None:
    """As the first process of many containers: here it is this one, for as long as the test takes."""
    prctl = ctypes.CDLL(None).prctl
    prctl(supervision._PR_SET_CHILD_SUBREAPER, 1)
    try:
        service = start(small)
        former = family(service.server)
        service.crash()
        assert service.next_ready() == service.ready
        assert not former & {child.pid for child in psutil.Process().children()}
    finally:
        prctl(supervision._PR_SET_CHILD_SUBREAPER, 0)


def test_json_log_stays_json(small: Path, start: Callable[..., Service]) -> None:
    service = start(small, "--log-format", "json", "--log-level", "error")
    service.crash()
    assert service.next_ready() == service.ready
    records = [json.loads(line) for line in end(service.process).splitlines()]
    (told,) = [record for record in records if "ended by itself" in record["message"]]
    assert told["level"] == "error"


def test_the_rest_of_the_clients_go_on(small: Path, start: Callable[..., Service]) -> None:
    """A client that keeps its connections has one clear failure, and answers after it."""
    service = start(small)
    options = local_options(small, http_port=int(service.url.rpartition(":")[2]))
    with http_client(options) as client:
        feeds = {"X": np.array([[4.0, 9.0]], np.float32)}
        np.testing.assert_allclose(client.infer("roots", feeds)["Y"], [[2.0, 3.0]])
        service.crash()
        with pytest.raises((OSError, EOFError, HTTPConnectionClosed)):
            client.infer("roots", feeds)
        assert service.next_ready() == service.ready
        np.testing.assert_allclose(client.infer("roots", feeds)["Y"], [[2.0, 3.0]])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_size_beyond_64_bits_in_binary_costs_one_model_a_moment(
    small: Path, start: Callable[..., Service], protocol: str
) -> None:
    """The process of that model dies, and the server goes on."""
    service = start(small)
    pid = service.server
    shape, data = [1, 2**62 + 1], np.zeros(1, np.float32).tobytes()
    if protocol == "grpc":
        request = service_pb2.ModelInferRequest(model_name="roots", raw_input_contents=[data])
        request.inputs.add(name="X", datatype="FP32", shape=shape)
        with grpc.insecure_channel(service.ready.split()[1].partition("://")[2]) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            assert call.future(request.SerializeToString(), timeout=30).code() is grpc.StatusCode.INTERNAL
    else:
        tensor = {"name": "X", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": 4}}
        text = json.dumps({"inputs": [tensor]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        assert service.post("models/roots/infer", text + data, headers) == 500

    def answers() -> bool:
        with suppress(KeyError):  # an error has no outputs
            return service.roots() == [2.0, 3.0]
        return False

    until(answers)
    assert service.server == pid
    assert "a process of model roots died; the model is loaded again" in end(service.process)
