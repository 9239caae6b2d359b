"""What the tests of the clients send, and how exact they want the answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from autovoice import VoiceConversionPipeline
from autovoice.serving.server import TritonServer

RATE = 24_000
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


def speaker(seed: int) -> np.ndarray:
    """A target voice [256]."""
    embedding = np.random.default_rng(seed).standard_normal(256)
    return (embedding / np.linalg.norm(embedding)).astype(np.float32)


def assert_same(made: np.ndarray, expected: np.ndarray) -> None:
    """Hold audio to the exactness that every way of running the models promises."""
    np.testing.assert_allclose(made, expected, atol=1e-4, rtol=0)
    assert np.abs(expected).max() > 1e-2  # silence would agree with anything
