"""Harder conditions and the baseline without learning: what is done to a source."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy import signal

from autovoice_training.evaluate.audio import RATE, Audio, at_judge_rate, read_audio
from autovoice_training.evaluate.conditions import (
    PLAIN,
    glide,
    harder_conditions,
    noisy,
    vibrato,
)
from autovoice_training.evaluate.pitch import f0_track
from autovoice_training.evaluate.systems import world_shift


def buzz(seconds: float = 1.5, hertz: float = 130.0, vowels: float = 3.0) -> Audio:
    """A harmonic tone whose formant moves ``vowels`` times a second."""
    time = np.arange(round(seconds * RATE)) / RATE
    formant = 900.0 + 500.0 * np.sin(2 * np.pi * vowels * time)
    total = np.zeros_like(time)
    for k in range(1, 40):
        total += np.exp(-(((k * hertz - formant) / 400.0) ** 2)) * np.sin(2 * np.pi * k * hertz * time)
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.1 * total + 1e-3 * noise).astype(np.float32)


@pytest.mark.parametrize("decibels", [20.0, 10.0])
def test_noise_has_the_level_asked_for(decibels: float) -> None:
    audio = buzz()
    noise = noisy(audio, decibels) - audio
    ratio = 10 * np.log10(np.mean(audio.astype(float) ** 2) / np.mean(noise.astype(float) ** 2))
    assert ratio == pytest.approx(decibels, abs=0.1)
    power = np.abs(np.fft.rfft(noise.astype(float))) ** 2
    octave = len(power) // 16
    assert power[octave : 2 * octave].sum() == pytest.approx(power[2 * octave : 4 * octave].sum(), rel=0.3)


def test_sung_sources_have_the_melody_asked_for() -> None:
    """Zero crossings of the fundamental tell the pitch at both ends of a glide."""
    audio = glide(buzz(2.0))
    track = f0_track(at_judge_rate(audio))
    voiced = track[track > 0]
    assert voiced[2] < 0.8 * 130.0
    assert voiced[-3] > 1.25 * 130.0
    swung = f0_track(at_judge_rate(vibrato(buzz(2.0))))
    cents = 1200 * np.log2(swung[swung > 0] / 130.0)
    assert 120.0 < np.percentile(cents, 95) - np.percentile(cents, 5) < 260.0


def test_every_condition_keeps_the_length() -> None:
    audio = buzz(0.6)
    everything = (PLAIN, *harder_conditions())
    assert len({condition.name for condition in everything}) == len(everything) == 11
    for condition in everything:
        assert condition.change(audio).shape == audio.shape
    # They are sent to other processes.
    assert [one.name for one in pickle.loads(pickle.dumps(everything))] == [one.name for one in everything]


def test_the_world_baseline_moves_pitch() -> None:
    audio = read_audio(Path(__file__).resolve().parents[2] / "demo" / "target_awb.flac")[: 2 * RATE]
    shifted = world_shift(audio, 7.0)
    assert shifted.shape == audio.shape
    before, after = f0_track(at_judge_rate(audio)), f0_track(at_judge_rate(shifted))
    both = (before > 0) & (after > 0)
    assert np.median(12 * np.log2(after[both] / before[both])) == pytest.approx(7.0, abs=0.3)


def test_the_world_baseline_moves_formants_less_than_pitch() -> None:
    noise = np.random.default_rng(0).standard_normal(4 * RATE)
    resonance = 0.05 * signal.lfilter([1.0], np.poly(0.97 * np.exp([0.6j, -0.6j])).real, noise)

    def peak(samples: Audio) -> float:
        hertz, power = signal.welch(samples, RATE, nperseg=256)
        return float((hertz * power).sum() / power.sum())

    shifted = world_shift(resonance.astype(np.float32), 12.0)
    assert peak(shifted) / peak(resonance) == pytest.approx(2.0**0.3, rel=0.06)
