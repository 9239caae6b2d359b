"""Small releases that tell each other apart, `autovoice serve --rollout` as a process, and load on it."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import psutil
import urllib3
from onnx import TensorProto, helper
from serve_processes import ANY_PORT, autovoice
from triton_calls import PATIENCE
from tritonclient.grpc import service_pb2, service_pb2_grpc

from autovoice.address import API_KEY_HEADER, GRPC_HEADER_PREFIX
from autovoice.releases import documents
from autovoice.releases.publishing import publish
from autovoice.releases.release import GATE_FILENAME, Release, read_release
from autovoice.releases.verifying import GATED_RELEASE
from autovoice.rollout.state import RolloutFolder

HEADER = "autovoice-release"
KEY = "rollout-0123456789"
LENGTH = "Inference-Header-Content-Length"
_MARK = """
name: "mark" backend: "onnxruntime" max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: [1] }
output { name: "Y" data_type: TYPE_FP32 dims: [1] }
instance_group { count: 1 kind: KIND_CPU }
"""
_COUNT = """
name: "count" backend: "onnxruntime" max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: [1] }
output { name: "Y" data_type: TYPE_FP32 dims: [1] }
instance_group { count: 1 kind: KIND_CPU }
sequence_batching {
  max_sequence_idle_microseconds: 1500000
  oldest { max_candidate_sequences: 64 }
  state {
    input_name: "SUM_IN" output_name: "SUM_OUT" data_type: TYPE_FP32 dims: [1]
    initial_state { name: "zero" data_type: TYPE_FP32 dims: [1] zero_data: true }
  }
}
"""


def write_repository(folder: Path, mark: float) -> Path:
    """Write two models: `mark` adds 1000 `mark` to X, `count` to the sum of all X of its sequence."""

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 1])

    offset = helper.make_tensor("offset", TensorProto.FLOAT, [1], [1000.0 * mark])
    add = helper.make_node("Add", ["SUM_OUT", "offset"], ["Y"])
    graphs = {
        "mark": (_MARK, [helper.make_node("Identity", ["X"], ["SUM_OUT"]), add], ["X"], ["Y"]),
        "count": (
            _COUNT,
            [helper.make_node("Add", ["X", "SUM_IN"], ["SUM_OUT"]), add],
            ["X", "SUM_IN"],
            ["Y", "SUM_OUT"],
        ),
    }
    for name, (config, nodes, inputs, outputs) in graphs.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(config)
        graph = helper.make_graph(
            nodes, name, [value(item) for item in inputs], [value(item) for item in outputs], [offset]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, folder / name / "1" / "model.onnx")
    return folder


def publish_marked(releases: Path, number: int) -> Release:
    """Publish a release whose mark is its number."""
    source = releases.parent / f"source-{number}"
    try:
        return publish(write_repository(source, number), releases, number)
    finally:
        shutil.rmtree(source)


def flip_byte(path: Path) -> None:
    """Change one byte in the middle of a file; files that are hard links to it stay as they are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def set_gate(release: Path, *, passed: bool) -> None:
    """Write a report of the gate."""
    content = {GATED_RELEASE: read_release(release).sha256, "passed": passed}
    (release / GATE_FILENAME).write_text(documents.dumps(content))


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        release: of the header.
        version: `model_version`.
        value: Y.
    """

    release: str | None
    version: str
    value: float

    def is_of(self, number: int, expected: float) -> bool:
        """Whether every part of it is that of a release."""
        return (
            self.release == str(number)
            and self.version == str(number)
            and self.value == expected + 1000 * number
        )

    @property
    def mark(self) -> int:
        return int(self.value // 1000)


class Connection:
    """A keep-alive connection over HTTP, or a channel of gRPC.

    Args:
        url: `http://...` or `grpc://...`.
        key: that the servers ask for.
    """

    def __init__(self, url: str, key: str = KEY) -> None:
        self._protocol, _, address = url.partition("://")
        self._key = {(GRPC_HEADER_PREFIX if self._protocol == "grpc" else "") + API_KEY_HEADER: key}
        if self._protocol == "http":
            self._pool = urllib3.HTTPConnectionPool(address, maxsize=1, retries=False, timeout=60)
        else:
            # Each its own connection, as if the clients were on different machines.
            self._channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        if self._protocol == "http":
            self._pool.close()
        else:
            self._channel.close()

    def infer(
        self, model: str, x: float, headers: dict[str, str] | None = None, **parameters: int | bool
    ) -> Answer:
        """One request; raises what the library does, or `Refused`."""
        data = np.array([[x]], np.float32).tobytes()
        headers = {**self._key, **(headers or {})}
        if self._protocol == "grpc":
            return self._infer_grpc(model, data, headers, parameters)
        tensor = {"name": "X", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}}
        described = json.dumps(
            {"parameters": {"binary_data_output": True, **parameters}, "inputs": [tensor]}
        ).encode()
        answer = self._pool.request(
            "POST",
            f"/v2/models/{model}/infer",
            body=described + data,
            headers={LENGTH: str(len(described)), **headers},
        )
        if answer.status != 200:
            raise Refused(answer.status, answer.data.decode())
        length = int(answer.headers[LENGTH])
        told = json.loads(answer.data[:length])
        (value,) = np.frombuffer(answer.data[length:], np.float32)
        return Answer(answer.headers.get(HEADER), told["model_version"], float(value))

    def _infer_grpc(
        self, model: str, data: bytes, headers: dict[str, str], parameters: dict[str, int | bool]
    ) -> Answer:
        request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[data])
        request.inputs.add(name="X", datatype="FP32", shape=[1, 1])
        for name, value in parameters.items():
            kind = "bool_param" if isinstance(value, bool) else "int64_param"
            setattr(request.parameters[name], kind, value)
        response, call = self._stub.ModelInfer.with_call(request, metadata=tuple(headers.items()), timeout=60)
        (value,) = np.frombuffer(response.raw_output_contents[0], np.float32)
        release = dict(call.initial_metadata()).get(HEADER)
        return Answer(release, response.model_version, float(value))


class Refused(Exception):
    """An HTTP status other than 200, and the body."""


@dataclass
class Load:
    """Clients that ask without end, until told to stop.

    Attributes:
        answers: of the offline clients: time, and what came.
        sequences: of the live clients: each a list of answers.
        failures: what went wrong: time, and the error.
        gaps: seconds that each chunk of a live client took.
    """

    answers: list[tuple[float, Answer]] = field(default_factory=list)
    sequences: list[list[Answer]] = field(default_factory=list)
    failures: list[tuple[float, Exception]] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    goes_on: bool = True

    @property
    def requests(self) -> int:
        """How many were answered."""
        return len(self.answers) + sum(map(len, self.sequences))

    def mixed(self) -> list[Any]:
        """Answers whose header, version and content disagree, and sequences that are not whole."""
        wrong: list[Any] = [
            answer for _, answer in self.answers if not answer.is_of(answer.mark, answer.value % 1000)
        ]
        for answers in self.sequences:
            number = answers[0].mark
            if not all(answer.is_of(number, place + 1) for place, answer in enumerate(answers)):
                wrong.append(answers)
        return wrong

    def offline(self, url: str, pause: float) -> None:
        connection = Connection(url)
        place = 0
        while not self.stopped.wait(pause):
            place = place % 900 + 1
            try:
                answer = connection.infer("mark", place)
                if answer.value % 1000 != place:
                    raise ValueError(answer)
                self.answers.append((time.monotonic(), answer))
            except Exception as error:
                self.failures.append((time.monotonic(), error))
                if not self.goes_on:
                    break
        connection.close()

    def live(self, url: str, pause: float, chunks: int) -> None:
        connection = Connection(url)
        while not self.stopped.is_set():
            sequence = secrets.randbits(63) | 1
            answers: list[Answer] = []
            headers: dict[str, str] = {}
            try:
                for place in range(chunks):
                    begun = time.monotonic()
                    answer = connection.infer(
                        "count",
                        1.0,
                        headers,
                        sequence_id=sequence,
                        sequence_start=place == 0,
                        sequence_end=place == chunks - 1,
                    )
                    self.gaps.append((begun, time.monotonic() - begun))
                    answers.append(answer)
                    headers = {HEADER: answers[0].version}
                    time.sleep(pause)
                self.sequences.append(answers)
            except Exception as error:
                self.failures.append((time.monotonic(), error))
                if not self.goes_on:
                    break
        connection.close()


@contextmanager
def under_load(
    urls: dict[str, str],
    offline: int,
    live: int,
    *,
    pause: float = 0.01,
    chunks: int = 60,
    goes_on: bool = True,
) -> Iterator[Load]:
    """Clients of both protocols in turn; with `goes_on` False each stops at its first failure."""
    load = Load(goes_on=goes_on)
    both = [urls["http"], urls["grpc"]]
    threads = [
        threading.Thread(target=load.offline, args=(both[number % 2], pause)) for number in range(offline)
    ]
    threads += [
        threading.Thread(target=load.live, args=(both[number % 2], 2 * pause, chunks))
        for number in range(live)
    ]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stopped.set()
        for thread in threads:
            thread.join(PATIENCE)


class RolloutProcess:
    """A running `autovoice serve --rollout`.

    Attributes:
        folder: the rollout folder.
        process: of the command.
        urls: `http`, `grpc` and `metrics`.
    """

    def __init__(
        self, folder: Path, environment: dict[str, str], *arguments: str, releases: Path | None = None
    ) -> None:
        self.folder = RolloutFolder(folder)
        self.environment = environment
        self.urls: dict[str, str] = {}
        options = [] if releases is None else ["--releases", str(releases)]
        self.process = autovoice(
            "serve", "--rollout", str(folder), *options, *ANY_PORT, *arguments, environment=environment
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(iter(self.process.stderr.readline, ""))

    def wait_ready(self) -> None:
        """Wait for the lines that name the addresses."""
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        assert ready.startswith("ready: "), self.log
        _, grpc_url, http_url = ready.split()
        metrics = self.process.stdout.readline().split()[1]
        self.urls = {"grpc": grpc_url, "http": http_url, "metrics": metrics}

    def rollout(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """An `autovoice rollout` of this folder, to its end."""
        process = self.begin_rollout(*arguments)
        out, error = process.communicate(timeout=2 * PATIENCE)
        return subprocess.CompletedProcess(arguments, process.returncode, out, error)

    def begin_rollout(self, *arguments: str) -> subprocess.Popen[str]:
        """An `autovoice rollout` of this folder."""
        folder = str(self.folder.path)
        return autovoice("rollout", *arguments, "--rollout", folder, environment=self.environment)

    def envoy(self) -> psutil.Process:
        """Envoy's process."""
        children = psutil.Process(self.process.pid).children()
        (found,) = [child for child in children if is_envoy(child)]
        return found

    def stop(self) -> str:
        """Tell it to end, and wait; returns the log."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return "".join(self.log)

    def stop_log(self) -> list[str]:
        """The log of a command that has ended."""
        self._reader.join(PATIENCE)
        return self.log

    def kill(self) -> None:
        """End it at once, with all its processes."""
        if self.process.poll() is None:
            for _ in range(2):
                self.process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
            self.process.wait(PATIENCE)


def is_envoy(process: psutil.Process) -> bool:
    return re.match("envoy", process.name()) is not None and process.status() != psutil.STATUS_ZOMBIE
