"""Harder conditions and naturalness: what is done to a source, and what the proxies hear."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from autovoice_training.evaluate.cepstrum import mel_cepstrum
from autovoice_training.evaluate.conditions import (
    PLAIN,
    glide,
    harder_conditions,
    noisy,
    vibrato,
)
from autovoice_training.evaluate.dataset import JUDGE_RATE, Audio
from autovoice_training.evaluate.naturalness import Naturalness, measure
from autovoice_training.evaluate.speaker import equal_error_rate


def buzz(seconds: float = 1.5, hertz: float = 130.0, vowels: float = 3.0) -> Audio:
    """A harmonic tone whose formant moves ``vowels`` times a second."""
    time = np.arange(round(seconds * JUDGE_RATE)) / JUDGE_RATE
    formant = 900.0 + 500.0 * np.sin(2 * np.pi * vowels * time)
    total = np.zeros_like(time)
    for k in range(1, 40):
        total += np.exp(-(((k * hertz - formant) / 400.0) ** 2)) * np.sin(2 * np.pi * k * hertz * time)
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.1 * total + 1e-3 * noise).astype(np.float32)


def proxies(audio: Audio, f0: np.ndarray | None = None) -> Naturalness:
    return measure(audio, np.full(90, 130.0) if f0 is None else f0, mel_cepstrum(audio))


@pytest.mark.parametrize("decibels", [20.0, 10.0])
def test_noise_has_the_level_asked_for(decibels: float) -> None:
    audio = buzz()
    noise = noisy(audio, JUDGE_RATE, decibels) - audio
    ratio = 10 * np.log10(np.mean(audio.astype(float) ** 2) / np.mean(noise.astype(float) ** 2))
    assert ratio == pytest.approx(decibels, abs=0.1)
    power = np.abs(np.fft.rfft(noise.astype(float))) ** 2
    octave = len(power) // 16
    assert power[octave : 2 * octave].sum() == pytest.approx(power[2 * octave : 4 * octave].sum(), rel=0.3)


def test_sung_sources_have_the_melody_asked_for() -> None:
    """Zero crossings of the fundamental tell the pitch at both ends of a glide."""
    audio = glide(buzz(2.0), JUDGE_RATE)
    from autovoice_training.evaluate.pitch import f0_track

    track = f0_track(audio)
    voiced = track[track > 0]
    assert voiced[2] < 0.8 * 130.0
    assert voiced[-3] > 1.25 * 130.0
    swung = f0_track(vibrato(buzz(2.0), JUDGE_RATE))
    cents = 1200 * np.log2(swung[swung > 0] / 130.0)
    assert 120.0 < np.percentile(cents, 95) - np.percentile(cents, 5) < 260.0


def test_every_condition_keeps_the_length() -> None:
    audio = buzz(0.6)
    everything = (PLAIN, *harder_conditions())
    assert len({condition.name for condition in everything}) == len(everything) == 11
    for condition in everything:
        assert condition.change(audio, JUDGE_RATE).shape == audio.shape
    # They are sent to other processes.
    assert [one.name for one in pickle.loads(pickle.dumps(everything))] == [one.name for one in everything]


def test_equal_error_rate_of_known_scores() -> None:
    assert equal_error_rate([0.9, 0.8, 0.7], [0.1, 0.2, 0.3]) == 0.0
    assert equal_error_rate([0.2, 0.9], [0.1, 0.8]) == pytest.approx(0.5)
    assert equal_error_rate([0.1], [0.9]) == 1.0


def test_proxies_hear_what_they_are_named_after() -> None:
    plain = proxies(buzz())
    jitter = 130.0 * 2 ** (0.02 * np.random.default_rng(1).standard_normal(90))
    assert plain.f0_roughness == 0.0
    assert proxies(buzz(), jitter).f0_roughness > 20.0
    assert proxies(buzz(), np.zeros(90)).f0_roughness == 0.0

    still = proxies(buzz(vowels=0.0))
    assert still.cepstral_delta < plain.cepstral_delta
    assert still.modulation < plain.modulation - 3.0

    hiss = buzz() + np.float32(0.02) * np.random.default_rng(2).standard_normal(24000).astype(np.float32)
    assert proxies(hiss).high_band > plain.high_band + 10.0

    clicked = buzz()
    clicked[12000] += 0.5
    assert proxies(clicked).click > 3 * plain.click

    assert proxies(buzz() + np.float32(0.1)).offset == pytest.approx(-20.0, abs=0.5)
    loud = buzz()
    assert proxies(loud / np.abs(loud).max()).peak == pytest.approx(0.0, abs=0.01)
