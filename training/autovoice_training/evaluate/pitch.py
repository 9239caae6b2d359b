"""The judge of melody: swift-f0 on result and source."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from swift_f0 import SwiftF0
from swift_f0.core import FRAME_PERIOD

from autovoice_training.evaluate.audio import JUDGE_RATE, Audio

FRAME_SECONDS = FRAME_PERIOD
F0_MIN = 50.0
F0_MAX = 1100.0

# The range a conversion accepts.
MAX_SHIFT_SEMITONES = 24.0
GROSS_ERROR = 0.2


@dataclass(frozen=True)
class F0Agreement:
    """How well a melody follows the one it should.

    Attributes:
        f0_corr: Pearson correlation of log-F0 on frames voiced in both; 0 where fewer than two are.
        gross_error: share of the frames voiced in both that are more than 20 % off.
        voicing_error: share of all frames voiced in one and not in the other.
    """

    f0_corr: float
    gross_error: float
    voicing_error: float


@functools.cache
def _detector() -> SwiftF0:
    return SwiftF0(threads=1, spin=False)


def f0_track(audio: Audio) -> NDArray[np.float64]:
    """Estimates F0 every 16 ms.

    Args:
        audio: samples [T] at JUDGE_RATE.

    Returns:
        F0 [T // 256] in Hz, 0 where unvoiced.
    """
    found = _detector().detect(audio, JUDGE_RATE, fmin=F0_MIN, fmax=F0_MAX)
    track: NDArray[np.float64] = np.where(found.confidence >= 0.5, found.pitch_hz, 0.0)
    return track


def compare_f0(
    result: NDArray[np.float64], reference: NDArray[np.float64], shift_semitones: float
) -> F0Agreement:
    """Holds a melody against the transposed one of the source.

    Args:
        result: F0 [F] in Hz, 0 where unvoiced.
        reference: F0 [F] in Hz of what the result should follow, before transposition.
        shift_semitones: by how much it was transposed.
    """
    frames = min(len(result), len(reference))
    result, reference = result[:frames], reference[:frames] * 2.0 ** (shift_semitones / 12.0)
    both = (result > 0) & (reference > 0)
    voicing_error = float(np.mean((result > 0) != (reference > 0)))
    if np.count_nonzero(both) < 2:
        return F0Agreement(0.0, 1.0, voicing_error)
    log_result, log_reference = np.log(result[both]), np.log(reference[both])
    gross = np.abs(result[both] / reference[both] - 1.0) > GROSS_ERROR
    deviations = float(np.std(log_result) * np.std(log_reference))
    covariance = float(np.mean((log_result - log_result.mean()) * (log_reference - log_reference.mean())))
    correlation = covariance / deviations if deviations > 0 else 0.0
    return F0Agreement(correlation, float(np.mean(gross)), voicing_error)


def shift_to_match(source: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """Semitones that bring the median F0 of a source to that of a target.

    Args:
        source: F0 [F] in Hz, 0 where unvoiced.
        target: F0 [G] in Hz, 0 where unvoiced.

    Returns:
        Semitones within two octaves; 0 where one of them has no voiced frame.
    """
    if not source.any() or not target.any():
        return 0.0
    ratio = np.median(target[target > 0]) / np.median(source[source > 0])
    return float(np.clip(12.0 * np.log2(ratio), -MAX_SHIFT_SEMITONES, MAX_SHIFT_SEMITONES))
