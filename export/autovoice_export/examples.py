"""Plausible inputs for stages, by the names of their tensors, to compare implementations on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovoice_export.base.stages.sizes import ENVELOPE_SIZE, IDENTITY_SIZE, PHONES
from autovoice_plugins.geometry import PHASE_GRID, SAMPLE_RATE


def example(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float32]:
    """One input: voiced sound with a gliding pitch, not noise, so that pitch decisions are clear-cut.

    Args:
        name: of the tensor; states are zeros.
        shape: with the batch axis.
        generator: source of everything random.
    """
    if "STATE" in name:
        value: NDArray[Any] = np.zeros(shape)
    elif name.endswith("AUDIO"):
        value = _voice(shape, generator)
    elif name.endswith("F0"):
        track = 150.0 * np.exp(0.02 * generator.standard_normal(shape).cumsum(axis=1))
        value = np.clip(track, 60.0, 900.0) * (generator.random(shape) < 0.8)
    elif name == "PERIODICITY":
        value = 1.0 / (1.0 + np.exp(-generator.standard_normal(shape)))
    elif name == "LOUDNESS":
        value = generator.standard_normal(shape) - 3.0
    elif name.endswith("EMBEDDING"):
        value = _embedding(shape, generator)
    elif name == "PITCH_SHIFT":
        value = 4.0 * generator.standard_normal(shape)
    elif name == "SPEAKER_ID":
        value = np.zeros(shape)
    elif name.endswith("_FRAME"):
        value = generator.integers(0, 200, shape)
    elif name == "ANCHOR_PHASE":
        value = generator.integers(0, PHASE_GRID, shape) / PHASE_GRID
    elif name in ("INDEX_RATE", "PROTECT", "RMS_MIX"):
        value = 0.5 * generator.random(shape)
    else:
        value = generator.standard_normal(shape)
    return value.astype(np.float32)


def _voice(shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float64]:
    time = np.arange(shape[1]) / SAMPLE_RATE
    base = 100.0 + 150.0 * generator.random((shape[0], 1))
    phase = base * (time + 0.02 * np.sin(2.0 * math.pi * 1.5 * time))
    audio = sum(np.sin(2.0 * math.pi * harmonic * phase) / harmonic for harmonic in range(1, 9))
    return 0.1 * np.asarray(audio) + 0.001 * generator.standard_normal(shape)


def _embedding(shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float64]:
    """A voice whose phones have envelopes of a few nepers, most of it in the low cosines."""
    identity = np.maximum(generator.standard_normal((shape[0], IDENTITY_SIZE)), 0.0)
    identity /= np.maximum(np.linalg.norm(identity, axis=1, keepdims=True), 1e-12)
    shares = generator.dirichlet(np.ones(PHONES), shape[0])
    spread = 2.0 / (1.0 + np.arange(ENVELOPE_SIZE))
    sums = shares[:, :, None] * spread * generator.standard_normal((shape[0], PHONES, ENVELOPE_SIZE))
    value = np.concatenate([identity, np.ones((shape[0], 1)), shares, sums.reshape(shape[0], -1)], axis=1)
    return np.asarray(value / np.linalg.norm(value, axis=1, keepdims=True))
