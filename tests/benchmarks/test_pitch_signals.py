"""The signals have the pitch they are said to have, at the time they are said to have it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pitch_signals import (
    SAMPLE_RATE,
    KnownPitch,
    complexes,
    glides,
    resynthesised,
    telephone,
    tones,
    with_noise,
)
from speech import DEMO, load
from world import world_missing

FRAME = 1440


def periodicity(audio: np.ndarray, place: int, hz: float) -> float:
    """Correlation of 60 ms about `place` with the same one period later, by interpolation between samples."""
    inside = np.arange(place - FRAME // 2, place + FRAME // 2)
    now = audio[inside]
    later = np.interp(inside + SAMPLE_RATE / hz, np.arange(audio.size), audio)
    return float(np.dot(now, later) / np.sqrt(np.dot(now, now) * np.dot(later, later)))


def voiced_places(signal: KnownPitch) -> list[tuple[int, float]]:
    """Instants (sample, Hz) in the middle of what is voiced, 60 ms away from any change."""
    places = []
    for millisecond in range(100, signal.f0.size - 100, 10):
        if (signal.f0[millisecond - 60 : millisecond + 60] > 0).all():
            places.append((millisecond * SAMPLE_RATE // 1000, float(signal.f0[millisecond])))
    return places


@pytest.mark.parametrize("make", [tones, complexes, telephone], ids=lambda make: make.__name__)
def test_notes_repeat_with_the_period_given_and_no_shorter_one(make: Callable[..., KnownPitch]) -> None:
    signal = make([80.0, 170.0, 410.0], 0.4)
    places = voiced_places(signal)
    assert {hz for _, hz in places} == {80.0, 170.0, 410.0}
    for place, hz in places:
        assert periodicity(signal.audio, place, hz) > 0.98
        assert periodicity(signal.audio, place, 1.3 * hz) < 0.95


def test_telephone_has_no_fundamental() -> None:
    signal = telephone([120.0], 1.0)
    spectrum = np.abs(np.fft.rfft(signal.audio[:SAMPLE_RATE]))  # bins of 1 Hz
    assert spectrum[110:130].max() < 1e-2 * spectrum.max()
    assert spectrum[355:365].max() > 0.5 * spectrum.max()


def test_glides_are_where_they_should_be_at_every_instant() -> None:
    signal = glides(80.0, 640.0, 2.0)
    audio = signal.audio.astype(np.float64)
    # Phase of the fundamental, isolated around each instant by a window of three periods.
    for place, hz in voiced_places(signal)[::7]:
        span = np.arange(-round(1.5 * SAMPLE_RATE / hz), round(1.5 * SAMPLE_RATE / hz) + 1)
        window = np.hanning(span.size) * np.exp(-2j * np.pi * hz * span / SAMPLE_RATE)
        before, after = (np.dot(audio[place + span + shift], window) for shift in (-8, 8))
        advance = np.angle(after / before) / (2 * np.pi * 16 / SAMPLE_RATE)
        measured = advance + round((hz - advance) / (SAMPLE_RATE / 16)) * SAMPLE_RATE / 16
        assert measured == pytest.approx(hz, rel=0.02)


def test_truth_is_withheld_around_changes_of_voicing_and_outside() -> None:
    signal = tones([100.0], 0.5)
    times = np.array([-0.01, 0.25, 0.486, 0.514, 0.518, 0.6, 0.9])
    f0, judged = signal.at(times)
    assert judged.tolist() == [False, True, False, False, True, True, False]
    assert f0[judged].tolist() == [100.0, 0.0, 0.0]


@pytest.mark.parametrize("colour", ["white", "pink"])
def test_noise_has_the_level_and_colour_asked_for(colour: str) -> None:
    signal = tones([200.0], 2.0)
    noise = with_noise(signal, colour, 10.0, seed=3).astype(np.float64) - signal.audio
    voiced = signal.audio[: 2 * SAMPLE_RATE].astype(np.float64)
    assert 10 * np.log10(np.mean(voiced**2) / np.mean(noise**2)) == pytest.approx(10.0, abs=0.1)
    power = np.abs(np.fft.rfft(noise)) ** 2
    hz = np.fft.rfftfreq(noise.size, 1 / SAMPLE_RATE)
    low, high = (power[(hz > edge) & (hz < 2 * edge)].mean() for edge in (100, 3200))
    assert 10 * np.log10(low / high) == pytest.approx({"white": 0.0, "pink": 15.0}[colour], abs=1.5)


@pytest.mark.skipif(bool(world_missing()), reason="pyworld is not installed")
def test_rebuilt_speech_follows_the_curve_it_was_rebuilt_from() -> None:
    recording = load(DEMO / "target_slt.flac", SAMPLE_RATE)[: 3 * SAMPLE_RATE]
    signal = resynthesised("slt", recording, 0.7)
    assert signal.audio.size == recording.size
    medians = [np.median(each.f0[each.f0 > 0]) for each in (signal, resynthesised("slt", recording, 1.0))]
    assert medians[0] / medians[1] == pytest.approx(0.7, rel=0.01)
    scores = np.array([periodicity(signal.audio, place, hz) for place, hz in voiced_places(signal)])
    off = np.array([periodicity(signal.audio, place, hz / 0.7) for place, hz in voiced_places(signal)])
    assert scores.size > 20
    assert np.median(scores) > 0.9
    assert np.median(off) < 0.7
