"""Random equaliser on a target and its reference alike.

A colour that no identity of the speaker encoder knows can only come from the reference's envelopes: so
training learns to take it from there.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from autovoice_export.stages.blocks import mel_points
from autovoice_export.stages.mel import ENVELOPE_SIZE, HIGH_HZ, LOW_HZ, MEL_BANDS, cosine_basis
from autovoice_export.stages.voice import IDENTITY_SIZE, PHONES
from autovoice_plugins.geometry import SAMPLE_RATE

NEPERS = (0.5, 0.4, 0.3, 0.25, 0.2)
"""Largest amplitude of each cosine over the mel bands that a curve is made of."""


def random_curve(random: np.random.Generator) -> NDArray[np.float64]:
    """A smooth gain in nepers at the bands of the mel analysis, [80]."""
    position = np.pi * (np.arange(MEL_BANDS) + 0.5) / MEL_BANDS
    curve: NDArray[np.float64] = sum(
        random.uniform(-limit, limit) * np.cos(order * position)
        for order, limit in enumerate(NEPERS, start=1)
    )
    return curve


def equalise(audio: NDArray[np.float32], curve: NDArray[np.float64]) -> NDArray[np.float32]:
    """Filters audio [T] at 24 kHz without delay; its RMS stays."""
    frequencies = np.fft.rfftfreq(len(audio), 1.0 / SAMPLE_RATE)
    gain = np.exp(np.interp(frequencies, _centres(), curve))
    result = np.fft.irfft(np.fft.rfft(audio) * gain, len(audio))
    level = np.sqrt(np.mean(np.square(audio)) / max(float(np.mean(np.square(result))), 1e-20))
    return (result * level).astype(np.float32)


def colour(embedding: NDArray[np.float32], curve: NDArray[np.float64]) -> NDArray[np.float32]:
    """The embedding [1282] of a reference heard through the curve; its identity stays."""
    result = embedding.copy()
    shares = result[IDENTITY_SIZE + 1 : IDENTITY_SIZE + 1 + PHONES]
    shift = curve.astype(np.float32) @ cosine_basis(MEL_BANDS, ENVELOPE_SIZE).numpy()
    result[IDENTITY_SIZE + 1 + PHONES :] += np.outer(shares, shift).ravel()
    return result


@cache
def _centres() -> NDArray[np.float64]:
    return np.asarray(mel_points(MEL_BANDS + 2, LOW_HZ, HIGH_HZ)[1:-1])
