"""Level, rate and length of the rendered speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 24000
HOP = 240
FRAME_SECONDS = HOP / SAMPLE_RATE
ACTIVE_DBFS = -23.0
SILENT_RMS = 1e-4
_PEAK = 0.97
_ACTIVE_RANGE_DB = 35.0  # frames within this much of the loudest one count as active


class SilentAudioError(RuntimeError):
    """An engine returned silence or nothing."""


def active_rms(audio: np.ndarray) -> float:
    """Root mean square over the active frames of float audio [T], full scale 1."""
    frames = audio[: len(audio) // HOP * HOP].reshape(-1, HOP)
    power = np.mean(np.square(frames, dtype=np.float64), axis=1)
    if power.size == 0 or power.max() <= 0:
        return 0.0
    return float(np.sqrt(power[power > power.max() * 10 ** (-_ACTIVE_RANGE_DB / 10)].mean()))


def normalise(audio: np.ndarray, name: str) -> np.ndarray:
    """Bring float audio [T] to -23 dBFS active level, or less where the peak would clip; returns int16 [T].

    Raises:
        SilentAudioError: the audio is silent.
    """
    audio = audio - audio.mean()
    level = active_rms(audio)
    if level < SILENT_RMS:
        raise SilentAudioError(
            f"{name}: the engine returned silence ({len(audio)} samples, active RMS {level:.2g})"
        )
    gain = min(10 ** (ACTIVE_DBFS / 20) / level, _PEAK / np.abs(audio).max())
    scaled: np.ndarray = np.round(audio * gain * 32767).astype(np.int16)
    return scaled


def read(path: Path) -> tuple[np.ndarray, int]:
    """Read a file: float32 [T] at 24 kHz, the mean of its channels, and the rate it was made at in Hz."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(audio.mean(axis=1), rate, SAMPLE_RATE, quality="HQ"), int(rate)


def fit(audio: np.ndarray, frames: int) -> np.ndarray:
    """Cut or zero-pad audio [T] to exactly ``frames`` frames."""
    wanted = frames * HOP
    return np.pad(audio[:wanted], (0, max(0, wanted - len(audio))))
