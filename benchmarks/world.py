"""WORLD (Morise, Yokomori and Ozawa, 2016): a yardstick for speed, and speech whose F0 is known."""

from __future__ import annotations

import warnings
from types import ModuleType

import numpy as np
import numpy.typing as npt
from speech import FloatArray

FRAME_MS = 5.0


def load_pyworld() -> ModuleType:
    """Imports pyworld without the warning about pkg_resources that it prints.

    Raises:
        ImportError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyworld
    return pyworld


def world_missing() -> str:
    """Why WORLD cannot be used; empty when it can."""
    try:
        load_pyworld()
    except ImportError as error:
        return f"{error}; pip install pyworld 'setuptools<81'"
    return ""


def analyse_and_resynthesise(audio: FloatArray, sample_rate: int) -> npt.NDArray[np.float64]:
    """What a WORLD voice changer does to audio [T], less the changing."""
    world = load_pyworld()
    samples = audio.astype(np.float64)
    f0, times = world.dio(samples, sample_rate, frame_period=FRAME_MS)
    envelope = world.cheaptrick(samples, f0, times, sample_rate)
    aperiodicity = world.d4c(samples, f0, times, sample_rate)
    return world.synthesize(f0, envelope, aperiodicity, sample_rate, FRAME_MS)
