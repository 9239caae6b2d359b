"""Calls to a server with nothing but tritonclient: the tests must not share the package's own client."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import psutil
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto, helper

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.server.options import ServeOptions
from autovoice.server.server import TritonServer

Array = np.ndarray[Any, np.dtype[Any]]
LOOKAHEAD = 600
PATIENCE = 60.0  # never waited for when all is well
ROOT = Path(__file__).resolve().parents[3]


class Client:
    """One connection, gRPC or HTTP.

    Args:
        module: `tritonclient.grpc` or `tritonclient.http`.
        connection: its InferenceServerClient.
    """

    def __init__(self, module: ModuleType, connection: Any) -> None:
        self.module = module
        self.connection = connection

    def infer(self, model: str, feeds: Mapping[str, Array], **options: Any) -> dict[str, Array]:
        """Every output of one request."""
        inputs = []
        for name, value in feeds.items():
            kind = {"float32": "FP32", "float64": "FP64", "int32": "INT32"}[str(value.dtype)]
            item = self.module.InferInput(name, value.shape, kind)
            item.set_data_from_numpy(value)
            inputs.append(item)
        result = self.connection.infer(model, inputs, **options)
        response = result.get_response()
        outputs = response["outputs"] if isinstance(response, dict) else response.outputs
        names = [output["name"] if isinstance(output, dict) else output.name for output in outputs]
        return {name: result.as_numpy(name) for name in names}

    def stream(
        self,
        feeds: Mapping[str, Array],
        chunks: list[Array],
        sequence: int,
        model: str = "voice_conversion_stream",
    ) -> list[Array]:
        """Converted chunks of one whole sequence."""
        return [
            self.infer(
                model,
                {**feeds, "SOURCE_AUDIO": chunk},
                sequence_id=sequence,
                sequence_start=position == 0,
                sequence_end=position == len(chunks) - 1,
            )["CONVERTED_AUDIO"]
            for position, chunk in enumerate(chunks)
        ]


@contextmanager
def _connect(module: ModuleType, url: str, **options: Any) -> Iterator[Client]:
    connection = module.InferenceServerClient(url.split("://")[1], **options)
    try:
        yield Client(module, connection)
    finally:
        connection.close()


def grpc_client(options: ServeOptions) -> Any:
    """Context manager of a gRPC `Client`."""
    return _connect(tritonclient.grpc, options.grpc_url)


def http_client(options: ServeOptions) -> Any:
    """Context manager of an HTTP `Client`."""
    return _connect(tritonclient.http, options.http_url, network_timeout=120.0)


Connect = Callable[[ServeOptions], Any]


def find_repository() -> Path:
    """The repository of the checkout when its models are there, else the one in $AUTOVOICE_REPOSITORY."""
    committed = ROOT / "model_repository"
    if (committed / "voice_conversion" / "config.pbtxt").is_file():
        return committed
    configured = os.environ.get("AUTOVOICE_REPOSITORY")
    if not configured:
        raise FileNotFoundError(f"no models in {committed}; build them or set AUTOVOICE_REPOSITORY")
    return Path(configured)


@cache
def _recorded_voices() -> list[Array]:
    with VoiceConversionPipeline(PipelineConfig(repository=find_repository(), threads=1)) as pipeline:
        return [pipeline.embed_file(path) for path in sorted((ROOT / "demo").glob("target_[as]*.flac"))]


def voice(seed: int, semitones: float = 0.0) -> dict[str, Array]:
    """A target voice as tensors: somewhere between two recorded ones.

    No random vector: on a voice that nobody has, the models answer with filters so loud that float32 rounding
    alone exceeds the tolerance.
    """
    first, second = _recorded_voices()
    weight = seed * 0.618 % 1.0
    embedding = ((1.0 - weight) * first + weight * second)[None]
    return {
        "TARGET_EMBEDDING": (embedding / np.linalg.norm(embedding)).astype(np.float32),
        "PITCH_SHIFT": np.full((1, 1), semitones, np.float32),
    }


def hum(samples: int, hertz: float = 140.0) -> Array:
    """A voiced sound with a little noise, [1, samples]."""
    time = np.arange(samples) / 24000.0
    tone = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 12))
    noise = np.random.default_rng(samples).standard_normal(samples)
    return (0.1 * tone + 0.005 * noise).astype(np.float32)[None]


def cut(audio: Array, sizes: list[int]) -> list[Array]:
    """Pieces of the given sizes, in turn, of audio padded so that a stream gives its last sample."""
    needed = audio.shape[1] + LOOKAHEAD
    pieces, start = [], 0
    while start < needed:
        size = sizes[len(pieces) % len(sizes)]
        piece = np.zeros((1, size), np.float32)
        part = audio[:, start : start + size]
        piece[:, : part.shape[1]] = part
        pieces.append(piece)
        start += size
    return pieces


def joined(chunks: list[Array], samples: int) -> Array:
    """What a stream made of the source's samples."""
    return np.concatenate(chunks, axis=1)[:, LOOKAHEAD : LOOKAHEAD + samples]


KEY, CONTROL_KEY = "inference-0123456789", "control-0123456789"
STRAYS = (".ipynb_checkpoints", "lost+found")
_ROOTS = """
name: "roots" backend: "onnxruntime" max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: [-1] }
output { name: "Y" data_type: TYPE_FP32 dims: [-1] }
instance_group { count: 1 kind: KIND_CPU }
"""


def write_small_repository(folder: Path, repository: Path) -> None:
    """Write models that load in a second: one of the repository's, and square roots (of -1 too).

    Beside them lie folders that are no models.
    """
    name = "target_pitch"
    shutil.copytree(repository / name, folder / name)
    (folder / "roots" / "1").mkdir(parents=True)
    (folder / "roots" / "config.pbtxt").write_text(_ROOTS)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "T"]) for name in "XY")
    graph = helper.make_graph([helper.make_node("Sqrt", ["X"], ["Y"])], "roots", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "roots" / "1" / "model.onnx")
    for stray in STRAYS:
        (folder / stray).mkdir()
    (folder / STRAYS[0] / "model-checkpoint.onnx").touch()


def local_options(repository: Path, **changes: object) -> ServeOptions:
    """Options of a server that shares this machine with others."""
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    return ServeOptions(repository, **(ports | changes))  # type: ignore[arg-type]


def shared_memory(pid: int) -> set[Path]:
    """Regions of the backend processes below a process; other servers may run on this machine."""
    commands = (" ".join(child.cmdline()) for child in psutil.Process(pid).children(recursive=True))
    names = {name for command in commands for name in re.findall(r"triton_\w+_shm_region_[\w-]+", command)}
    return {Path("/dev/shm", name) for name in names}


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def backend_processes(pid: int, model: str) -> list[psutil.Process]:
    """Processes below `pid` that serve a model."""
    children = psutil.Process(pid).children(recursive=True)
    living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in living if any(f"/{model}/" in part for part in child.cmdline())]


def kill(server: TritonServer) -> None:
    """End a server that has nothing to finish."""
    server.terminate()
    server.terminate()
    server.wait()
