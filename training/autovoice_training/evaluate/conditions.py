"""What makes a conversion harder: transposed, noisy and sung sources."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autovoice_training.evaluate.audio import RATE, Audio
from autovoice_training.evaluate.systems import world_shift

PITCH_SHIFTS = (-12.0, -8.0, -4.0, 4.0, 8.0, 12.0)
NOISE_DB = (20.0, 10.0)
GLIDE_SEMITONES = 6.0
VIBRATO_HZ = 5.5
VIBRATO_SEMITONES = 1.0


def unchanged(audio: Audio) -> Audio:
    """The source as recorded."""
    return audio


@dataclass(frozen=True)
class Condition:
    """A way to make a conversion harder.

    Attributes:
        name: in the tables.
        change: what happens to the source, samples [T] at RATE.
        shift_semitones: of the conversion, beyond what matches the medians.
        keeps_melody: whether the source's melody is that of the recording.
    """

    name: str
    change: Callable[[Audio], Audio] = unchanged
    shift_semitones: float = 0.0
    keeps_melody: bool = True


def noisy(audio: Audio, decibels: float) -> Audio:
    """Adds pink noise, always the same, at a signal-to-noise ratio."""
    white = np.random.default_rng(0).standard_normal(len(audio))
    spectrum = np.fft.rfft(white)
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1.0))
    pink = np.fft.irfft(spectrum, len(audio))
    level = np.sqrt(np.mean(np.square(audio, dtype=np.float64)) / np.mean(pink**2)) * 10 ** (-decibels / 20)
    mixed: Audio = (audio + level * pink).astype(np.float32)
    return mixed


def glide(audio: Audio) -> Audio:
    """The melody rises by twelve semitones from the first to the last sample."""
    frames = 1 + len(audio) // (RATE // 200)
    return world_shift(audio, np.linspace(-GLIDE_SEMITONES, GLIDE_SEMITONES, frames))


def vibrato(audio: Audio) -> Audio:
    """The melody swings by a semitone to both sides."""
    time = np.arange(1 + len(audio) // (RATE // 200)) / 200.0
    return world_shift(audio, VIBRATO_SEMITONES * np.sin(2.0 * np.pi * VIBRATO_HZ * time))


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
