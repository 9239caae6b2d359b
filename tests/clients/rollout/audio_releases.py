"""Releases of one model that answers audio: a good one, and ones with a fault that no gate has seen."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto, helper
from triton_calls import Client

from autovoice.releases.publishing import publish
from autovoice.releases.release import Release
from autovoice.rollout.state import Service

MODEL = "voice_conversion"
_TENSORS = """
max_batch_size: 8
input { name: "SOURCE_AUDIO" data_type: TYPE_FP32 dims: [-1] }
output { name: "CONVERTED_AUDIO" data_type: TYPE_FP32 dims: [-1] }
"""
_CONVERT = f'name: "convert" backend: "onnxruntime" {_TENSORS} instance_group {{ count: 1 kind: KIND_CPU }}'
_ENSEMBLE = f"""
name: "{MODEL}" platform: "ensemble" {_TENSORS}
ensemble_scheduling {{ step {{
  model_name: "convert" model_version: -1
  input_map {{ key: "SOURCE_AUDIO" value: "SOURCE_AUDIO" }}
  output_map {{ key: "CONVERTED_AUDIO" value: "CONVERTED_AUDIO" }}
}} }}
"""
GAINS = {"good": 0.5, "silent": 0.0, "clipped": 100.0, "not finite": 3e38}
"""What a release of a kind multiplies audio with, twice."""


def publish_audio(releases: Path, number: int, kind: str) -> Release:
    """Publish a release of a kind; see `GAINS`."""
    source = releases.parent / f"source-{number}"
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "T"])
        for name in ("SOURCE_AUDIO", "CONVERTED_AUDIO")
    )
    gain = helper.make_tensor("gain", TensorProto.FLOAT, [1], [GAINS[kind]])
    nodes = [
        helper.make_node("Mul", ["SOURCE_AUDIO", "gain"], ["once"]),
        helper.make_node("Mul", ["once", "gain"], ["CONVERTED_AUDIO"]),
    ]
    graph = helper.make_graph(nodes, "convert", [x], [y], [gain])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    for name, config in (("convert", _CONVERT), (MODEL, _ENSEMBLE)):
        (source / name / "1").mkdir(parents=True)
        (source / name / "config.pbtxt").write_text(config)
    onnx.save(model, source / "convert" / "1" / "model.onnx")
    try:
        return publish(source, releases, number)
    finally:
        shutil.rmtree(source)


def tone(samples: int = 2400) -> np.ndarray:
    """A loud sound [1, samples]."""
    return (0.5 * np.sin(np.arange(samples, dtype=np.float32) / 8))[None].astype(np.float32)


@dataclass
class Load:
    """Clients over HTTP and gRPC that ask without end, until told to stop.

    Attributes:
        answers: when each right answer came.
        failures: when each request failed, or was answered wrongly, and how.
    """

    service: Service
    clients: int = 4
    pause: float = 0.02
    answers: list[float] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(k,)) for k in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, place: int) -> None:
        module, port = (
            (tritonclient.http, self.service.http) if place % 2 else (tritonclient.grpc, self.service.grpc)
        )
        client = Client(module, module.InferenceServerClient(f"127.0.0.1:{port}"))
        while not self._stopped.wait(self.pause * (0.5 + secrets.randbelow(100) / 100)):
            try:
                made = client.infer(MODEL, {"SOURCE_AUDIO": tone()})["CONVERTED_AUDIO"]
                np.testing.assert_allclose(made, tone() / 4)
                self.answers.append(time.monotonic())
            except Exception as error:
                self.failures.append((time.monotonic(), str(error)))
        client.connection.close()
