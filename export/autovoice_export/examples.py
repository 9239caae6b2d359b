"""Plausible inputs of models, by the names of their tensors, to compare implementations on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovoice_export.base.stages.sizes import ENVELOPE_SIZE, IDENTITY_SIZE, KEY_SIZE, TOKENS
from autovoice_plugins.geometry import PHASE_GRID, SAMPLE_RATE


def example(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float32]:
    """One input.

    Args:
        name: of the tensor; states are zeros.
        shape: with the batch axis.
        generator: source of everything random.
    """
    if "STATE" in name:
        value: NDArray[Any] = np.zeros(shape)
    elif name.endswith("AUDIO"):
        value = voice(shape, SAMPLE_RATE, generator)
    elif name.endswith("F0"):
        track = 150.0 * np.exp(0.02 * generator.standard_normal(shape).cumsum(axis=1))
        value = np.clip(track, 60.0, 900.0) * (generator.random(shape) < 0.8)
    elif name == "PERIODICITY":
        value = 1.0 / (1.0 + np.exp(-generator.standard_normal(shape)))
    elif name == "LOUDNESS":
        value = generator.standard_normal(shape) - 3.0
    elif name.endswith("EMBEDDING"):
        value = _embedding(shape, generator)
    elif name == "CONTENT":
        value = _content(shape, generator)
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


def voice(shape: tuple[int, ...], sample_rate: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Something like voices, [batch, samples]: harmonics of a gliding pitch with pauses, and a little noise.

    Unlike noise, it leaves little doubt about its pitch.
    """
    time = np.arange(shape[1]) / sample_rate
    base = 100.0 + 150.0 * generator.random((shape[0], 1))
    phase = base * (time + 0.02 * np.sin(2.0 * math.pi * 1.5 * time))
    tone = sum(np.sin(2.0 * math.pi * harmonic * phase) / harmonic for harmonic in range(1, 12))
    envelope = np.maximum(np.sin(2.0 * math.pi * 1.1 * time) + 0.6, 0.0)
    audio = 0.12 * np.asarray(tone) * envelope + 0.002 * generator.standard_normal(shape)
    return np.asarray(audio, np.float32)


def _content(shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float64]:
    """Content of the base voice: speech with pauses, keys of unit length. Imported voices take any values."""
    value = generator.standard_normal(shape)
    value[:, :, 0] = generator.random(shape[:2]) < 0.8
    key = value[:, :, 1 : 1 + KEY_SIZE]
    key /= np.linalg.norm(key, axis=2, keepdims=True)
    return value


def _embedding(shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float64]:
    """A voice whose frames have envelopes of a few nepers, most of it in the low cosines."""
    identity = np.maximum(generator.standard_normal((shape[0], IDENTITY_SIZE)), 0.0)
    identity /= np.maximum(np.linalg.norm(identity, axis=1, keepdims=True), 1e-12)
    keys = generator.standard_normal((shape[0], TOKENS, KEY_SIZE))
    keys /= np.linalg.norm(keys, axis=2, keepdims=True)
    spread = 2.0 / (1.0 + np.arange(ENVELOPE_SIZE))
    frames = np.concatenate(
        [keys, spread * generator.standard_normal((shape[0], TOKENS, ENVELOPE_SIZE))], axis=2
    )
    value = np.concatenate([identity, np.ones((shape[0], 1)), frames.reshape(shape[0], -1)], axis=1)
    return np.asarray(value / np.linalg.norm(value, axis=1, keepdims=True))
