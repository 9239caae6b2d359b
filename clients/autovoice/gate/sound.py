"""What is measured on a source and what a release made of it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from autovoice.audio.levels import level_of
from autovoice.results import FloatArray

FRAME_SECONDS = 0.02
SPEECH_DB = -25.0  # of the loud parts: what lies above is speech
LOST_DB = -30.0  # of the source's own frame: what lies below is silence
HELD_SAMPLES = 4
GROSS_ERROR = 0.2
_FLOOR = 1e-10


def level_difference_db(source: FloatArray, rate: int, made: FloatArray, made_rate: int) -> float:
    """Level of the loud parts of a result beyond those of its source, dB."""
    return decibels(level_of(made, made_rate)) - decibels(level_of(source, rate))


def lost_speech(source: FloatArray, rate: int, made: FloatArray, made_rate: int) -> float:
    """Share of the frames with speech of the source [T] that are silent in what was made of it [M]."""
    heard, kept = _frame_levels(source, rate), _frame_levels(made, made_rate)
    count = min(heard.size, kept.size)
    heard, kept = heard[:count], kept[:count]
    speech = heard > level_of(source, rate) * 10 ** (SPEECH_DB / 20)
    if not speech.any():
        return 0.0
    return float(np.mean(kept[speech] < heard[speech] * 10 ** (LOST_DB / 20)))


def clipped_share(audio: FloatArray) -> float:
    """Share of samples beyond full scale, or held at one value in the upper half of the range."""
    if not audio.size:
        return 0.0
    beyond = np.abs(audio) > 1.0
    same = np.concatenate(([False], (audio[1:] == audio[:-1]) & (np.abs(audio[1:]) > 0.5)))
    held = np.zeros(audio.size, bool)
    starts = np.flatnonzero(same & ~np.concatenate(([False], same[:-1])))
    ends = np.flatnonzero(same & ~np.concatenate((same[1:], [False])))
    for start, end in zip(starts, ends, strict=True):
        if end - start + 2 >= HELD_SAMPLES:
            held[start - 1 : end + 1] = True
    return float(np.mean(beyond | held))


def pitch_errors(
    source: npt.NDArray[np.float32], made: npt.NDArray[np.float32], shift: float
) -> tuple[float, float]:
    """Hold the pitch of a result against its source's.

    Args:
        source: F0 [F] in Hz, 0 where unvoiced.
        made: F0 [G] in Hz, of the result.
        shift: semitones by which it was to be transposed.

    Returns:
        Median deviation in semitones, and the share of frames voiced in both that are more than 20 % off; NaN
        and 1 where fewer than ten frames are voiced in both.
    """
    count = min(source.size, made.size)
    source, made = source[:count], made[:count]
    both = (source > 0) & (made > 0)
    if np.count_nonzero(both) < 10:
        return math.nan, 1.0
    ratio = made[both] / (source[both] * 2 ** (shift / 12))
    return float(12 * np.median(np.log2(ratio))), float(np.mean(np.abs(ratio - 1) > GROSS_ERROR))


def decibels(level: float) -> float:
    """A level in dB of full scale."""
    return 20 * math.log10(max(level, _FLOOR))


def _frame_levels(audio: FloatArray, rate: int) -> npt.NDArray[np.float64]:
    size = round(FRAME_SECONDS * rate)
    frames = audio[: audio.size // size * size].reshape(-1, size).astype(np.float64)
    levels: npt.NDArray[np.float64] = np.sqrt(np.mean(frames**2, axis=1))
    return levels
