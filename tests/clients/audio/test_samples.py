"""Samples in memory: what is refused and why, how channels and integers are read, resampling in pieces."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autovoice.audio.samples import (
    Resampler,
    as_mono,
    check_sample_rate,
    frame_count,
    output_length,
    passthrough_gain,
    resample,
    resampling_delay_seconds,
)
from autovoice.errors import AudioInputError, SampleRateError


@pytest.mark.parametrize(
    ("audio", "says"),
    [
        (np.zeros(0, np.float32), "is empty"),
        (np.zeros((0, 2), np.float32), "is empty"),
        (np.float32(0.5), "rank 0"),
        (np.zeros((2, 3, 4), np.float32), "rank 3"),
        (np.array([0, np.nan, 0], np.float32), "nan at sample 1"),
        (np.array([0, 0, -np.inf], np.float32), "-inf at sample 2"),
        (np.array([0.0, 1e300]), "inf at sample 1"),
        (np.array([0, 20000], np.float32), "20000 at sample 1"),
        (np.array([0, 40000], np.int32), "int32 from 0 to 40000"),
        (np.array([-40000, 0], np.int64), "int64 from -40000 to 0"),
        (np.array([0, 255], np.uint8), "dtype uint8"),
        (np.array([True, False]), "dtype bool"),
        (np.array(["a", "b"]), "dtype <U1"),
        (np.array([1j, 2j]), "dtype complex128"),
        ([[0.1, 0.2], [0.3]], "ragged"),
        (np.zeros((100, 100), np.float32), "100 channels"),
        (None, "dtype object"),
    ],
)
def test_refusals_name_the_value(audio: object, says: str) -> None:
    with pytest.raises(AudioInputError, match=says.replace("[", r"\[")):
        as_mono(audio)  # type: ignore[arg-type]


def test_int16_full_scale_and_wider_integers_in_its_range() -> None:
    samples = np.array([-32768, -1, 0, 16384, 32767], np.int16)
    expected = samples / 32768
    np.testing.assert_array_equal(as_mono(samples), expected.astype(np.float32))
    np.testing.assert_array_equal(as_mono(samples.astype(np.int64)), expected.astype(np.float32))


@pytest.mark.parametrize("transposed", [False, True])
def test_channels_are_averaged_on_either_axis(transposed: bool) -> None:
    left, right = np.linspace(-1, 1, 1000), np.linspace(0.5, -0.25, 1000)
    stereo = np.stack([left, right], axis=1)
    mono = as_mono(stereo.T if transposed else stereo)
    np.testing.assert_allclose(mono, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [0, -1, 3999, 768_001, 44_100.5, "48000", None, True, float("nan"), np.inf])
def test_absurd_sample_rates(rate: object) -> None:
    with pytest.raises(SampleRateError, match="sample rate is"):
        check_sample_rate(rate)


@pytest.mark.parametrize("rate", [8000, 192_000, np.int64(44_100), 48_000.0])
def test_sensible_sample_rates(rate: object) -> None:
    assert check_sample_rate(rate) == int(rate)  # type: ignore[call-overload]


@given(
    rates=st.sampled_from([(8000, 24000), (44100, 24000), (24000, 22050), (24000, 192000), (24000, 24000)]),
    cuts=st.lists(st.integers(0, 3000), max_size=6),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_resampling_is_the_same_for_any_chunking(rates: tuple[int, int], cuts: list[int], seed: int) -> None:
    source, target = rates
    audio = np.random.default_rng(seed).uniform(-1, 1, 3000).astype(np.float32)
    resampler = Resampler(source, target)
    edges = [0, *sorted(cuts), audio.size]
    parts = [resampler.push(audio[a:b]) for a, b in pairwise(edges)]
    parts.append(resampler.push(np.zeros(0, np.float32), last=True))
    np.testing.assert_array_equal(np.concatenate(parts), resample(audio, source, target))


@pytest.mark.parametrize("rate", [8000, 22_050, 48_000, 192_000])
def test_resampling_keeps_a_tone_in_place(rate: int) -> None:
    seconds = np.arange(rate) / rate
    tone = np.sin(2 * np.pi * 440 * seconds)
    made = resample(tone.astype(np.float32), rate, 24_000)
    middle = slice(2400, 21_600)
    expected = np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)
    np.testing.assert_allclose(made[middle], expected[middle], atol=2e-4)


def test_measured_resampling_delay_is_never_passed() -> None:
    delay = resampling_delay_seconds(48_000, 24_000)
    assert 0.005 < delay < 0.06
    assert resampling_delay_seconds(24_000, 24_000) == 0.0
    assert resampling_delay_seconds(48_000, 24_000, "LQ") < delay


@given(samples=st.integers(0, 10**9), source=st.integers(8000, 192_000), target=st.integers(8000, 192_000))
def test_output_length_rounds_to_nearest(samples: int, source: int, target: int) -> None:
    made = output_length(samples, source, target)
    assert abs(made * source - samples * target) * 2 <= source
    assert output_length(samples, source, source) == samples


@given(samples=st.integers(1, 10**7), rate=st.integers(8000, 192_000))
def test_frame_count_covers_the_audio_and_no_more(samples: int, rate: int) -> None:
    frames = frame_count(samples, rate)
    assert (frames - 1) * rate < samples * 100 <= frames * rate


def test_passthrough_gain_reaches_the_level_unless_it_would_clip() -> None:
    assert passthrough_gain(0.1, 0.01**2) == pytest.approx(9.9)  # limited by the peak
    assert passthrough_gain(0.1, 0.05**2) == pytest.approx(2.0)  # to 0.1 RMS
    assert passthrough_gain(0.0, 0.0) == 1.0
