"""Audio as the evaluation handles it: mono, float32, at the rate of the voice, or of the judges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from autovoice_plugins.geometry import SAMPLE_RATE

Audio = NDArray[np.float32]

RATE = SAMPLE_RATE
"""Hz, of every recording and result; what lies above 8 kHz is seen in spectra only."""

JUDGE_RATE = 16000
"""Hz. The judges listen at this rate."""


def read_audio(path: Path) -> Audio:
    """Reads a recording of any rate.

    Returns:
        Samples [T] at RATE, the mean of its channels.

    Raises:
        ValueError: the file is no audio, silent or not finite.
    """
    try:
        channels, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} cannot be read: {error}; give WAV or FLAC files") from None
    if not channels.any() or not np.isfinite(channels).all():
        raise ValueError(f"{path} is silent, or has samples that are not finite; leave it out")
    audio: Audio = np.ascontiguousarray(soxr.resample(channels.mean(axis=1), rate, RATE), dtype=np.float32)
    return audio


def at_judge_rate(audio: Audio, rate: int = RATE) -> Audio:
    """Resamples to what the judges listen to.

    Args:
        audio: samples [T].
        rate: Hz.

    Returns:
        Samples [T * JUDGE_RATE / rate] at JUDGE_RATE.
    """
    resampled: Audio = soxr.resample(audio, rate, JUDGE_RATE).astype(np.float32)
    return resampled
