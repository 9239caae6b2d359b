"""Speech for benchmarks: the demo's recordings, or a folder of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr

from autovoice import read_audio

FloatArray = npt.NDArray[np.float32]

DEMO = Path(__file__).resolve().parents[1] / "demo"
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


class SpeechError(Exception):
    """No speech to run on."""


def find_recordings(folder: Path | None, limit: int) -> list[Path]:
    """Returns up to `limit` recordings, spread evenly over a folder and its subfolders.

    Args:
        folder: None for the demo's recordings.
        limit: how many at most.

    Raises:
        SpeechError: the folder holds none.
    """
    root = DEMO if folder is None else folder
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise SpeechError(
            f"no recording ({', '.join(SUFFIXES)}) in {root}; give a folder with speech to --speech"
        )
    if len(found) <= limit:
        return found
    return [found[round(place)] for place in np.linspace(0, len(found) - 1, limit)]


def load(path: Path, sample_rate: int) -> FloatArray:
    """Returns a recording as mono float32 [T] at `sample_rate` Hz."""
    audio, rate = read_audio(path)
    return np.asarray(soxr.resample(audio, rate, sample_rate), np.float32)


def looped(audio: FloatArray, samples: int) -> FloatArray:
    """Returns audio [T] repeated, or cut, to exactly `samples`."""
    return np.resize(audio, samples)
