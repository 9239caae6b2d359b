"""What makes the audio that is judged beside recordings: the voice under test and the baselines."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyworld
from numpy.typing import NDArray

from autovoice_training.evaluate.audio import RATE, Audio

# Vocal tracts differ far less than vocal folds: between men and women about 1.17 in formants for 1.7 in F0.
FORMANT_EXPONENT = 0.3


class Converter(Protocol):
    """A voice conversion under test."""

    def embed(self, reference: Audio) -> NDArray[np.float32]:
        """Describes a voice from a recording [T] at RATE."""

    def convert(self, audio: Audio, embedding: NDArray[np.float32], shift_semitones: float) -> Audio:
        """Converts a recording [T] at RATE into as many samples."""


def world_shift(audio: Audio, shift_semitones: float | NDArray[np.float64]) -> Audio:
    """Transposes pitch and, by its usual share, formants with the WORLD vocoder (Morise et al. 2016).

    The baseline without learning: what a voice changer does. By no semitones it is copy-synthesis, the
    recording's analysis made audible again.

    Args:
        audio: samples [T] at RATE.
        shift_semitones: of the pitch; or by frame of 5 ms [1 + T / 120], and formants stay.

    Returns:
        Samples [T] at RATE.
    """
    samples = audio.astype(np.float64)
    f0, times = pyworld.harvest(samples, RATE)
    f0 = pyworld.stonemask(samples, f0, times, RATE)
    envelope = pyworld.cheaptrick(samples, f0, times, RATE)
    aperiodicity = pyworld.d4c(samples, f0, times, RATE)
    ratio = 2.0 ** (np.asarray(shift_semitones) / 12.0)
    if ratio.ndim == 0:
        stretch = float(ratio) ** FORMANT_EXPONENT
        envelope, aperiodicity = _stretch(envelope, stretch), _stretch(aperiodicity, stretch)
    made = pyworld.synthesize(f0 * ratio, envelope, aperiodicity, RATE)
    result = np.zeros(len(audio), dtype=np.float32)
    result[: len(made)] = made[: len(audio)]
    return result


def _stretch(frames: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """Moves what is at frequency f to f * factor; frames are [F, bins]."""
    bins = np.arange(frames.shape[1])
    origin = np.minimum(bins / factor, bins[-1])
    below = np.minimum(origin.astype(np.int64), bins[-1] - 1)
    weight = origin - below
    stretched: NDArray[np.float64] = frames[:, below] * (1.0 - weight) + frames[:, below + 1] * weight
    return np.ascontiguousarray(stretched)
