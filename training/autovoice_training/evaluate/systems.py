"""What makes the audio that is judged: the voice under test and the baselines beside it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyworld
from numpy.typing import NDArray

from autovoice_training.evaluate.dataset import Audio

# Vocal tracts differ far less than vocal folds: between men and women about 1.17 in formants for 1.7 in F0.
FORMANT_EXPONENT = 0.3


class Converter(Protocol):
    """A voice conversion under test."""

    def embed(self, reference: Audio, rate: int) -> NDArray[np.float32]:
        """Describes a voice from a recording [T] at rate Hz."""

    def convert(
        self, audio: Audio, rate: int, embedding: NDArray[np.float32], shift_semitones: float
    ) -> Audio:
        """Converts a recording [T] at rate Hz into as many samples at the same rate."""


def world_shift(audio: Audio, rate: int, shift_semitones: float) -> Audio:
    """Transposes pitch and, by its usual share, formants with the WORLD vocoder (Morise et al. 2016).

    The baseline without learning: what a voice changer does.

    Args:
        audio: samples [T].
        rate: Hz.
        shift_semitones: of the pitch.

    Returns:
        Samples [T] at the same rate.
    """
    samples = audio.astype(np.float64)
    f0, times = pyworld.dio(samples, rate)
    f0 = pyworld.stonemask(samples, f0, times, rate)
    envelope = pyworld.cheaptrick(samples, f0, times, rate)
    aperiodicity = pyworld.d4c(samples, f0, times, rate)
    ratio = 2.0 ** (shift_semitones / 12.0)
    shifted = pyworld.synthesize(
        f0 * ratio,
        _stretch(envelope, ratio**FORMANT_EXPONENT),
        _stretch(aperiodicity, ratio**FORMANT_EXPONENT),
        rate,
    )
    result = np.zeros(len(audio), dtype=np.float32)
    result[: len(shifted)] = shifted[: len(audio)]
    return result


def _stretch(frames: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """Moves what is at frequency f to f * factor; frames are [F, bins]."""
    bins = np.arange(frames.shape[1])
    origin = np.minimum(bins / factor, bins[-1])
    below = np.minimum(origin.astype(np.int64), bins[-1] - 1)
    weight = origin - below
    stretched: NDArray[np.float64] = frames[:, below] * (1.0 - weight) + frames[:, below + 1] * weight
    return np.ascontiguousarray(stretched)
