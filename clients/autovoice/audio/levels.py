"""How loud audio is: the level of its loud parts, and the gain that brings it to a usual one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from autovoice.results import FloatArray

FRAME_SECONDS = 0.05
USUAL_LEVEL = 10 ** (-23 / 20)  # of the speech that the base voice was trained on
MAX_GAIN_DB = 80.0
_GATE = 0.1  # of the mean power; what lies below is a pause
Powers = npt.NDArray[np.float64]


class LevelMeter:
    """Power of audio in frames of 50 ms, without its offset, from pieces of any length.

    Args:
        sample_rate: Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        self._size = max(1, round(sample_rate * FRAME_SECONDS))
        self._rest: FloatArray | None = None
        self._powers: list[npt.NDArray[np.float32]] = []

    def push(self, audio: FloatArray) -> None:
        """Take the next samples [rows, n]; each row is measured on its own."""
        if self._rest is not None and self._rest.shape[1]:
            audio = np.concatenate((self._rest, audio), axis=1)
        whole = audio.shape[1] // self._size * self._size
        if whole:
            frames = audio[:, :whole].reshape(len(audio), -1, self._size)
            self._powers.append(_power(frames))
        self._rest = audio[:, whole:]

    def powers(self) -> Powers:
        """Power of every frame so far [rows, frames], that of the last one, which may be short, included."""
        parts = list(self._powers)
        if self._rest is not None and self._rest.shape[1]:
            parts.append(_power(self._rest[:, np.newaxis]))
        if not parts:
            return np.zeros((1, 0))
        return np.concatenate(parts, axis=1).astype(np.float64)


def loud_level(powers: npt.NDArray[Any]) -> float:
    """RMS level of the loud frames among `powers` [frames]; 0 for silence.

    Frames more than 10 dB below the mean of all are left out, and again those more than 10 dB below the mean
    of the rest, so that pauses do not count.
    """
    loud = powers
    for _ in range(2):
        loud = loud[loud > _GATE * loud.mean()] if loud.size else loud
    return math.sqrt(float(loud.mean())) if loud.size else 0.0


def level_of(audio: FloatArray, sample_rate: int) -> float:
    """RMS level of the loud frames of mono audio [T]; 0 for silence."""
    meter = LevelMeter(sample_rate)
    meter.push(audio[np.newaxis])
    return loud_level(meter.powers()[0])


def usual_gain_db(level: float) -> float:
    """Gain in dB that brings audio of an RMS `level` to the usual one; 0 for silence."""
    if level <= 0.0:
        return 0.0
    return min(max(20 * math.log10(USUAL_LEVEL / level), -MAX_GAIN_DB), MAX_GAIN_DB)


def _power(frames: FloatArray) -> npt.NDArray[np.float32]:
    powers: npt.NDArray[np.float64] = frames.var(axis=-1, dtype=np.float64)
    return powers.astype(np.float32)
