"""Random formants and a random equaliser for a target and its reference alike.

A timbre that no identity of the speaker encoder knows can only come from the reference's envelopes: so
training learns to take it from there, and a voice that resembles one heard in training does not become it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import istft, stft

from autovoice_export.base.stages.blocks import mel_points
from autovoice_export.base.stages.mel import ENVELOPE_SIZE, HIGH_HZ, LOW_HZ, MEL_BANDS, cosine_basis
from autovoice_export.base.stages.synthesizer import formant_shifts
from autovoice_export.base.stages.voice import IDENTITY_SIZE, PHONES
from autovoice_plugins.geometry import HOP, SAMPLE_RATE

MOST_MOVED = 0.15
FRAME = 4 * HOP
# Wide enough to bridge the harmonics of any voice, narrower than formants lie apart.
SMOOTH_HZ = 125.0
NEPERS = (0.7, 0.55, 0.4, 0.35, 0.25)
"""Largest amplitude of each cosine over the mel bands that a curve is made of."""


def random_curve(random: np.random.Generator) -> NDArray[np.float64]:
    """A smooth gain in nepers at the bands of the mel analysis, [80]."""
    position = np.pi * (np.arange(MEL_BANDS) + 0.5) / MEL_BANDS
    curve: NDArray[np.float64] = sum(
        random.uniform(-limit, limit) * np.cos(order * position)
        for order, limit in enumerate(NEPERS, start=1)
    )
    return curve


def random_factor(random: np.random.Generator) -> float:
    """By how much formants are moved: up to a seventh up or down."""
    return float(np.exp(random.uniform(-MOST_MOVED, MOST_MOVED)))


def move_formants(audio: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Multiplies the formants of audio [T] at 24 kHz; its harmonics and its RMS stay.

    Every frame is filtered by the quotient of its smoothed spectrum, stretched and as it is.
    """
    _, _, spectrum = stft(audio, nperseg=FRAME, noverlap=FRAME - HOP)
    power = gaussian_filter1d(np.abs(spectrum) ** 2, SMOOTH_HZ * FRAME / SAMPLE_RATE, axis=0)
    envelope = 0.5 * np.log(power + 1e-10)
    bins = np.arange(len(envelope))
    place = np.minimum(bins / factor, bins[-1])
    low = np.minimum(place.astype(np.int64), bins[-1] - 1)
    share = (place - low)[:, None]
    stretched = envelope[low] * (1.0 - share) + envelope[low + 1] * share
    _, result = istft(spectrum * np.exp(stretched - envelope), nperseg=FRAME, noverlap=FRAME - HOP)
    return _at_level_of(audio, result[: len(audio)])


def equalise(audio: NDArray[np.float32], curve: NDArray[np.float64]) -> NDArray[np.float32]:
    """Filters audio [T] at 24 kHz without delay; its RMS stays."""
    frequencies = np.fft.rfftfreq(len(audio), 1.0 / SAMPLE_RATE)
    gain = np.exp(np.interp(frequencies, _centres(), curve))
    return _at_level_of(audio, np.fft.irfft(np.fft.rfft(audio) * gain, len(audio)))


def colour(embedding: NDArray[np.float32], factor: float, curve: NDArray[np.float64]) -> NDArray[np.float32]:
    """The embedding [1282] of a reference, formants moved and heard through the curve; its identity stays."""
    result = embedding.copy()
    shares = result[IDENTITY_SIZE + 1 : IDENTITY_SIZE + 1 + PHONES]
    sums = result[IDENTITY_SIZE + 1 + PHONES :].reshape(PHONES, ENVELOPE_SIZE)
    moved = sums @ formant_shifts(ENVELOPE_SIZE, (factor,)).numpy()
    shift = curve.astype(np.float32) @ cosine_basis(MEL_BANDS, ENVELOPE_SIZE).numpy()
    result[IDENTITY_SIZE + 1 + PHONES :] = (moved + np.outer(shares, shift)).ravel()
    return result


def _at_level_of(audio: NDArray[np.float32], changed: NDArray[np.float64]) -> NDArray[np.float32]:
    level = np.sqrt(np.mean(np.square(audio)) / max(float(np.mean(np.square(changed))), 1e-20))
    return (changed * level).astype(np.float32)


@cache
def _centres() -> NDArray[np.float64]:
    return np.asarray(mel_points(MEL_BANDS + 2, LOW_HZ, HIGH_HZ)[1:-1])
