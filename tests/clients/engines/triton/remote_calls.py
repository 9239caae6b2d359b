"""What the tests of the clients send, and how exact they want the answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.server.server import TritonServer

ROOT = Path(__file__).resolve().parents[4]
RATE = 24_000
KEY = "0123456789abcdef"
Open = Callable[..., VoiceConversionPipeline]


def url(server: TritonServer, protocol: str) -> str:
    """Address of a server by protocol."""
    return server.options.grpc_url if protocol == "grpc" else server.options.http_url


def hum(seconds: float, hertz: float = 140.0, rate: int = RATE) -> np.ndarray:
    """A voiced sound with a little noise [T]."""
    time = np.arange(round(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 12))
    noise = np.random.default_rng(round(hertz)).standard_normal(time.size)
    return (0.1 * tone + 0.005 * noise).astype(np.float32)


@cache
def _recorded_voices() -> list[np.ndarray]:
    with VoiceConversionPipeline(PipelineConfig(threads=1)) as pipeline:
        return [pipeline.embed_file(path) for path in sorted((ROOT / "demo").glob("target_[as]*.flac"))]


def speaker(seed: int) -> np.ndarray:
    """A target voice [E], somewhere between two recorded ones.

    On a random vector, a voice that nobody has, the models answer with filters so loud that float32 rounding
    alone exceeds the tolerance.
    """
    first, second = _recorded_voices()
    weight = seed * 0.618 % 1.0
    embedding = (1.0 - weight) * first + weight * second
    return (embedding / np.linalg.norm(embedding)).astype(np.float32)


def assert_same(made: np.ndarray, expected: np.ndarray) -> None:
    """Hold audio to the exactness that every way of running the models promises."""
    np.testing.assert_allclose(made, expected, atol=1e-4, rtol=0)
    assert np.abs(expected).max() > 1e-2  # silence would agree with anything
