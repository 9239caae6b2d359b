"""The judge of spectrum: mel-cepstral distortion along the best time alignment.

MCD of Kubichek, "Mel-cepstral distance measure for objective speech quality assessment" (1993), on
mel-cepstra of the all-pass kind (Tokuda et al. 1994) of the CheapTrick envelope (Morise 2015):

    MCD = 10 / ln 10 * sqrt(2 * sum over d = 1..24 of (c_d - c'_d)^2)  dB

averaged over the path of dynamic time warping. c_0 is left out, so loudness does not count. Frames more than
40 dB below the loudest of their recording are left out: a pause has no timbre. Above 7 kHz the envelope is
held: there the anti-alias filters of a recording's history, up to 60 dB deep, would drown what the speaker
does (resampling a recording to 24 kHz and back would otherwise cost 2.5 dB).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pyworld
from librosa.feature import rms
from librosa.sequence import dtw
from numpy.typing import NDArray

from autovoice_training.evaluate.dataset import JUDGE_RATE, Audio

ORDER = 24
# The all-pass constant whose warp is nearest to the mel scale at 16 kHz.
ALL_PASS = 0.42
FRAME_SECONDS = 0.005
SILENCE_DB = 40.0
FFT_SIZE = 1024
TOP_HZ = 7000.0

_DECIBELS = 10.0 * math.sqrt(2.0) / math.log(10.0)


def mel_cepstrum(audio: Audio) -> NDArray[np.float64]:
    """Describes the timbre of a recording every 5 ms.

    Args:
        audio: samples [T] at JUDGE_RATE.

    Returns:
        Mel-cepstra c_1 to c_24 of the frames that are not silent, [frames, 24].
    """
    samples = np.ascontiguousarray(audio, dtype=np.float64)
    period_ms = 1000.0 * FRAME_SECONDS
    f0, times = pyworld.dio(samples, JUDGE_RATE, frame_period=period_ms)
    f0 = pyworld.stonemask(samples, f0, times, JUDGE_RATE)
    envelope = pyworld.cheaptrick(samples, f0, times, JUDGE_RATE, fft_size=FFT_SIZE)
    hop = round(FRAME_SECONDS * JUDGE_RATE)
    level = rms(y=samples, frame_length=4 * hop, hop_length=hop)[0]
    frames = min(len(level), len(envelope))
    heard = level[:frames] >= level.max() * 10.0 ** (-SILENCE_DB / 20.0)
    log_magnitude = 0.5 * np.log(envelope[:frames][heard])
    top = round(TOP_HZ / JUDGE_RATE * FFT_SIZE)
    log_magnitude[:, top:] = log_magnitude[:, top, None]
    return cepstrum_of(log_magnitude)[:, 1:]


def cepstrum_of(log_magnitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expands log spectra in cosines of the warped frequency.

    Args:
        log_magnitude: natural logarithm of the magnitude at the bins from 0 to Nyquist, [frames, bins].

    Returns:
        c_0 to c_24 with log|H(w)| = sum over m of c_m cos(m w'), w' the all-pass warp of w, [frames, 25].
    """
    cepstrum: NDArray[np.float64] = log_magnitude @ _analysis_matrix(log_magnitude.shape[1])
    return cepstrum


@functools.cache
def _analysis_matrix(bins: int) -> NDArray[np.float64]:
    """Fourier integral over the warped frequency, as a trapezoid sum over the unwarped bins: [bins, 25]."""
    omega = np.linspace(0.0, math.pi, bins)[:, None]
    warped = omega + 2.0 * np.arctan(ALL_PASS * np.sin(omega) / (1.0 - ALL_PASS * np.cos(omega)))
    slope = (1.0 - ALL_PASS**2) / (1.0 + ALL_PASS**2 - 2.0 * ALL_PASS * np.cos(omega))
    weight = np.full((bins, 1), 1.0 / (bins - 1))
    weight[[0, -1]] *= 0.5
    scale = np.where(np.arange(ORDER + 1) == 0, 1.0, 2.0)
    matrix: NDArray[np.float64] = weight * slope * scale * np.cos(np.arange(ORDER + 1) * warped)
    return matrix


def align(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """Warps two recordings in time so that their mel-cepstra are as alike as can be.

    Args:
        first: mel-cepstra [frames, 24].
        second: mel-cepstra [other frames, 24].

    Returns:
        The path [steps, 2] of frames from both, from first to last, and the sum of distances along it.
    """
    cost, path = dtw(first.T, second.T, metric="euclidean")
    return path[::-1].astype(np.int64), float(cost[-1, -1])


def mel_cepstral_distortion(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """MCD of two recordings in dB, 0 for the same.

    Args:
        first: mel-cepstra [frames, 24].
        second: mel-cepstra [other frames, 24].
    """
    path, distance = align(first, second)
    return _DECIBELS * distance / len(path)
