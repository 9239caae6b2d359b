"""How loud audio is: the level of its loud parts, and the gain that brings it to a usual one."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from autovoice.errors import ConfigurationError
from autovoice.results import FloatArray

FRAME_SECONDS = 0.05
USUAL_LEVEL = 10 ** (-23 / 20)  # of the speech that the base voice was trained on
MAX_GAIN_DB = 80.0
_GATE = 0.1  # of the mean power; what lies below is a pause
_SILENT_POWER = 1e-8  # -80 dB of full scale
_RISE = 1 - math.exp(-0.01 / 0.5)  # per frame of 10 ms: half a second up, five down
_FALL = 1 - math.exp(-0.01 / 5.0)
_PAUSE = 0.01
_LEAK = 10 ** (-0.01 / 10)  # 1 dB a second
_KNEE = 0.9  # of full scale; from here on peaks are bent
_MOST_BACK_DB = 12.0  # given back to bounded results: speech has peaks some 12 dB above its level
AUTO_GAIN = "auto"
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
    gain_db = round(20 * math.log10(USUAL_LEVEL / level), 4)  # the same however the level was summed up
    return min(max(gain_db, -MAX_GAIN_DB), MAX_GAIN_DB)


def check_gain(gain_db: Any, name: str = "input gain") -> float | Literal["auto"]:
    """Return a gain in dB, or `"auto"`.

    Raises:
        ConfigurationError: it is neither, or beyond 80 dB.
    """
    if isinstance(gain_db, str) and gain_db == AUTO_GAIN:
        return "auto"
    if isinstance(gain_db, bool) or not isinstance(gain_db, Real) or not abs(float(gain_db)) <= MAX_GAIN_DB:
        raise ConfigurationError(
            f"{name} is {gain_db!r}; give dB from {-MAX_GAIN_DB:g} to {MAX_GAIN_DB:g}, or 'auto'"
        )
    return float(gain_db)


class FixedGain:
    """One gain for all of a source, taken back from what is made of it.

    Args:
        gain_db: dB.
        share: how much of it is taken back, 0 to 1.
        bounded: whether results stay within full scale, see `bend`; a loud source is then given back 12 dB at
            most, so that little is bent.
    """

    def __init__(self, gain_db: float, share: float = 1.0, *, bounded: bool = False) -> None:
        back_db = -share * gain_db
        self._gain = np.float32(10 ** (gain_db / 20))
        self._back = np.float32(10 ** ((min(back_db, _MOST_BACK_DB) if bounded else back_db) / 20))
        self._bounded = bounded

    def apply(self, samples: FloatArray) -> FloatArray:
        """The next samples of the source [n], at the level for the voice."""
        return samples if self._gain == 1.0 else samples * self._gain

    def restore(self, samples: FloatArray) -> FloatArray:
        """The next converted samples [m], at the level of the source."""
        restored = samples if self._back == 1.0 else samples * self._back
        return bend(restored) if self._bounded else restored


class FollowedGain:
    """A gain that follows the level of a live source slowly, by what was heard so far, and is taken back.

    Args:
        sample_rate: of the source, Hz.
        output_sample_rate: of what is made of it, Hz.
        share: how much of the gain is taken back, 0 to 1.
        bounded: see `FixedGain`.
    """

    def __init__(
        self, sample_rate: int, output_sample_rate: int, share: float = 1.0, *, bounded: bool = False
    ) -> None:
        self._bounded = bounded
        self._frame = max(1, sample_rate // 100)
        self._step = sample_rate / (output_sample_rate * self._frame)  # frames per output sample
        self._share = share
        self._level = 0.0  # mean power of the loud parts; 0 before the first sound
        self._heard = np.zeros(0, np.float32)  # of the frame that has begun
        self._gains = [1.0, 1.0]  # at the edges of frames, the first of which is edge `_first`
        self._first = 0
        self._returned = 0

    def apply(self, samples: FloatArray) -> FloatArray:
        """The next samples of the source [n], at the level for the voice."""
        made = np.empty_like(samples)
        done = 0
        while done < samples.size:
            begun = self._heard.size
            piece = samples[done : done + self._frame - begun]
            before, after = self._gains[-2:]
            share = (np.arange(begun, begun + piece.size) / self._frame).astype(np.float32)
            made[done : done + piece.size] = piece * (np.float32(before) + np.float32(after - before) * share)
            self._heard = np.concatenate((self._heard, piece))
            done += piece.size
            if self._heard.size == self._frame:
                self._follow(float(self._heard.var(dtype=np.float64)))
                self._heard = self._heard[:0]
        return made

    def restore(self, samples: FloatArray) -> FloatArray:
        """The next converted samples [m], at the level of the source."""
        places = np.arange(self._returned, self._returned + samples.size) * self._step - self._first
        gains = np.interp(places, np.arange(len(self._gains)), self._gains) ** self._share
        self._returned += samples.size
        passed = min(int(self._returned * self._step) - self._first, len(self._gains) - 2)
        if passed > 0:
            del self._gains[:passed]
            self._first += passed
        if self._bounded:
            gains = np.maximum(gains, 10 ** (-_MOST_BACK_DB / 20))
        restored = (samples / gains).astype(np.float32)
        return bend(restored) if self._bounded else restored

    def _follow(self, power: float) -> None:
        if power > _SILENT_POWER:
            if not self._level:
                self._level = power
            elif power > self._level:
                self._level += _RISE * (power - self._level)
            elif power > _PAUSE * self._level:
                self._level += _FALL * (power - self._level)
            else:
                self._level *= _LEAK
        gain_db = usual_gain_db(math.sqrt(self._level))
        self._gains.append(10 ** (gain_db / 20))


def bend(samples: FloatArray) -> FloatArray:
    """Samples [n] within [-1, 1]: as they are up to 0.9, from there on ever less steep."""
    if np.abs(samples).max(initial=0.0) <= _KNEE:
        return samples
    plain = np.clip(samples, -_KNEE, _KNEE)
    bent: FloatArray = plain + (1.0 - _KNEE) * np.tanh((samples - plain) / (1.0 - _KNEE))
    return bent.astype(np.float32)


def _power(frames: FloatArray) -> npt.NDArray[np.float32]:
    powers: npt.NDArray[np.float64] = frames.var(axis=-1, dtype=np.float64)
    return powers.astype(np.float32)
