"""Calls to a server with nothing but tritonclient: the tests must not share the package's own client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from autovoice.serving.options import ServeOptions

Array = np.ndarray[Any, np.dtype[Any]]
HOP, LOOKAHEAD, EMBEDDING = 240, 600, 256


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


def voice(seed: int, semitones: float = 0.0) -> dict[str, Array]:
    """A target voice as tensors."""
    embedding = np.random.default_rng(seed).standard_normal((1, EMBEDDING)).astype(np.float32)
    return {
        "TARGET_EMBEDDING": embedding / np.linalg.norm(embedding),
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
