"""What makes a conversion harder: transposed, noisy and sung sources."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyworld
from numpy.typing import NDArray

from autovoice_training.evaluate.dataset import Audio

PITCH_SHIFTS = (-12.0, -8.0, -4.0, 4.0, 8.0, 12.0)
NOISE_DB = (20.0, 10.0)
GLIDE_SEMITONES = 6.0
VIBRATO_HZ = 5.5
VIBRATO_SEMITONES = 1.0


def unchanged(audio: Audio, rate: int) -> Audio:
    """The source as recorded."""
    return audio


@dataclass(frozen=True)
class Condition:
    """A way to make a conversion harder.

    Attributes:
        name: in the tables.
        change: what happens to the source, samples [T] at a rate in Hz.
        shift_semitones: of the conversion, beyond what matches the medians.
        keeps_melody: whether the source's melody is that of the recording.
    """

    name: str
    change: Callable[[Audio, int], Audio] = unchanged
    shift_semitones: float = 0.0
    keeps_melody: bool = True


def noisy(audio: Audio, rate: int, decibels: float) -> Audio:
    """Adds pink noise, always the same, at a signal-to-noise ratio."""
    white = np.random.default_rng(0).standard_normal(len(audio))
    spectrum = np.fft.rfft(white)
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1.0))
    pink = np.fft.irfft(spectrum, len(audio))
    level = np.sqrt(np.mean(np.square(audio, dtype=np.float64)) / np.mean(pink**2)) * 10 ** (-decibels / 20)
    mixed: Audio = (audio + level * pink).astype(np.float32)
    return mixed


def sung(audio: Audio, rate: int, semitones: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Audio:
    """Gives a recording another melody with the WORLD vocoder.

    Args:
        audio: samples [T].
        rate: Hz.
        semitones: transposition by time in seconds.
    """
    samples = audio.astype(np.float64)
    f0, times = pyworld.dio(samples, rate)
    f0 = pyworld.stonemask(samples, f0, times, rate)
    envelope = pyworld.cheaptrick(samples, f0, times, rate)
    aperiodicity = pyworld.d4c(samples, f0, times, rate)
    made = pyworld.synthesize(f0 * 2.0 ** (semitones(times) / 12.0), envelope, aperiodicity, rate)
    result = np.zeros(len(audio), dtype=np.float32)
    result[: len(made)] = made[: len(audio)]
    return result


def glide(audio: Audio, rate: int) -> Audio:
    """The melody rises by twelve semitones from the first to the last sample."""
    seconds = len(audio) / rate
    return sung(audio, rate, lambda time: GLIDE_SEMITONES * (2.0 * time / seconds - 1.0))


def vibrato(audio: Audio, rate: int) -> Audio:
    """The melody swings by a semitone to both sides."""
    return sung(audio, rate, lambda time: VIBRATO_SEMITONES * np.sin(2.0 * np.pi * VIBRATO_HZ * time))


PLAIN = Condition("as recorded")


def harder_conditions() -> tuple[Condition, ...]:
    """Every condition but the plain one."""
    return (
        *(Condition(f"{shift:+.0f} semitones", shift_semitones=shift) for shift in PITCH_SHIFTS),
        *(
            Condition(f"pink noise at {level:.0f} dB", functools.partial(noisy, decibels=level))
            for level in NOISE_DB
        ),
        Condition("glide over an octave", glide, keeps_melody=False),
        Condition("vibrato", vibrato, keeps_melody=False),
    )
