"""PitchYin: every implementation against the float64 definition, and the definition against known pitch."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autovoice_plugins.geometry import F0_MAX, F0_MIN, HOP, PITCH_YIN_STATE_SIZE, SAMPLE_RATE
from autovoice_plugins.pitch_yin import pitch_yin, pitch_yin_reference
from autovoice_plugins.pitch_yin.reference import (
    THRESHOLD,
    VOICING_THRESHOLD,
    normalised_difference,
    pick_pitch,
    prefilter,
)

SETTLED = 10
"""Frames until the window is full of the signal."""

Array = NDArray[np.float64]


def tone(f0: Array | float, seconds: float, harmonics: int = 1, amplitude: float = 0.5) -> Array:
    """A sum of harmonics below Nyquist, the k-th with amplitude 1/k and an arbitrary phase."""
    samples = round(seconds * SAMPLE_RATE) // HOP * HOP
    pitch = np.broadcast_to(f0, samples)
    phase = np.concatenate([[0.0], np.cumsum(pitch)[:-1]]) / SAMPLE_RATE
    parts = [
        np.where(k * pitch < SAMPLE_RATE / 2, np.cos(2 * np.pi * k * phase + k), 0.0) / k
        for k in range(1, harmonics + 1)
    ]
    return amplitude * np.sum(parts, axis=0)


def with_noise(signal: Array, snr_db: float, seed: int = 0) -> Array:
    noise = np.random.default_rng(seed).standard_normal(signal.shape)
    return signal + noise * signal.std() * 10 ** (-snr_db / 20)


def zeros(batch: int) -> NDArray[np.float32]:
    return np.zeros((batch, PITCH_YIN_STATE_SIZE), dtype=np.float32)


def signals() -> dict[str, Array]:
    rng = np.random.default_rng(7)
    sixty = np.concatenate(
        [
            with_noise(tone(np.geomspace(80, 400, 10 * SAMPLE_RATE), 10, 8), 30 - 5 * i, seed=i)
            for i in range(6)
        ]
    )
    jumps = np.repeat([110.0, 220.0, 440.0, 110.0, 55.0, 880.0], SAMPLE_RATE // 5)
    return {
        "one frame": tone(200.0, 0.01, 5)[None],
        "three short": np.stack([tone(f, 0.05, 3) for f in (60.0, 200.0, 700.0)]),
        "50 Hz": tone(50.0, 0.6)[None],
        "1100 Hz": tone(1100.0, 0.6)[None],
        "glide": tone(np.geomspace(50, 1100, 2 * SAMPLE_RATE), 2, 8)[None],
        "octave jumps": tone(jumps, 1.2, 12)[None],
        "silence": np.zeros((1, 50 * HOP)),
        "full-scale noise": rng.uniform(-1, 1, (3, 100 * HOP)),
        "offset": np.ones((1, 50 * HOP)),
        "offset and tone": 0.9 + tone(150.0, 0.6, 4, amplitude=0.05)[None],
        "60 s": 0.3 * sixty[None],
    }


OPTIONS: dict[str, Any] = {
    "sample_rate": SAMPLE_RATE,
    "hop": HOP,
    "f0_min": F0_MIN,
    "f0_max": F0_MAX,
    "threshold": THRESHOLD,
    "voicing_threshold": VOICING_THRESHOLD,
}

SIGNALS = {name: signal.astype(np.float32) for name, signal in signals().items()}


@lru_cache(maxsize=len(SIGNALS) + 4)
def reference(name: str, start: int = 0, end: int | None = None) -> tuple[Array, Array, NDArray[np.bool_]]:
    """F0, periodicity, and the frames where no decision hangs on a thousandth.

    Elsewhere rounding may choose another dip.
    """
    audio = SIGNALS[name][:, start:end].astype(np.float64)
    difference = normalised_difference(np.pad(audio, ((0, 0), (6 * HOP, 0))), SAMPLE_RATE, HOP)
    f0, periodicity = pick_pitch(difference, **OPTIONS)
    sure = np.ones(f0.shape, dtype=bool)
    for key in ("threshold", "voicing_threshold"):
        for change in (-1e-3, 1e-3):
            other, _ = pick_pitch(difference, **{**OPTIONS, key: OPTIONS[key] + change})
            sure &= np.abs(other - f0) < 0.1
    return f0, periodicity, sure


@pytest.mark.parametrize("name", SIGNALS)
def test_matches_reference(run: Any, name: str) -> None:
    audio = SIGNALS[name]
    f0, periodicity, sure = reference(name)
    got_f0, got_periodicity, got_state = run("PitchYin", audio, zeros(len(audio)))
    assert sure.mean() > 0.97
    np.testing.assert_allclose(got_f0[sure], f0[sure], atol=0.1)
    np.testing.assert_allclose(got_periodicity[sure], periodicity[sure], atol=5e-4)
    past = np.pad(audio, ((0, 0), (6 * HOP, 0)))
    np.testing.assert_array_equal(got_state, past[:, -6 * HOP :])


def test_reference_is_made_of_its_two_halves() -> None:
    audio = SIGNALS["glide"]
    f0, periodicity, _ = pitch_yin_reference(audio, zeros(1))
    np.testing.assert_array_equal(f0, reference("glide")[0])
    np.testing.assert_array_equal(periodicity, reference("glide")[1])


def test_difference_is_what_it_says() -> None:
    """One frame by the sums of the definition, without any transform."""
    audio = np.random.default_rng(1).standard_normal(7 * HOP)
    smooth = np.convolve(audio, prefilter(SAMPLE_RATE, HOP))[: 7 * HOP]
    blocks = [np.arange(k * HOP, (k + 1) * HOP) for k in (6, 5, 4, 3)]
    raw = np.empty(2 * HOP + 1)
    for lag in range(2 * HOP + 1):
        u = lag / HOP
        weights = (max(u - 1, 0), 1, 1, max(1 - u, 0))
        sums = [
            w * np.sum((smooth[m] - smooth[m - lag]) ** 2) for m, w in zip(blocks, weights, strict=True) if w
        ]
        raw[lag] = sum(sums) / (HOP * sum(weights))
    raw += 1e-5 * np.mean(smooth[3 * HOP :] ** 2) + 1e-7
    expected = [raw[lag] * lag / raw[1 : lag + 1].sum() for lag in range(1, 2 * HOP + 1)]
    got = normalised_difference(audio[None], SAMPLE_RATE, HOP)[0, 0]
    np.testing.assert_allclose(got[1:], expected, rtol=1e-9)


@pytest.mark.parametrize("harmonics", [1, 20])
@pytest.mark.parametrize("f0", [50.0, 61.7, 82.4, 110.0, 238.9, 440.0, 777.0, 1100.0])
def test_finds_known_pitch(run: Any, f0: float, harmonics: int) -> None:
    audio = tone(f0, 0.5, harmonics)[None]
    got, periodicity, _ = run("PitchYin", audio, zeros(1))
    # The parabola through three lags is the coarser the fewer samples a period has.
    np.testing.assert_allclose(got[0, SETTLED:], f0, rtol=2e-3 if f0 > 700 else 5e-4)
    assert periodicity[0, SETTLED:].min() > 0.98


@pytest.mark.parametrize("f0", [70.0, 120.0, 180.0, 280.0])
def test_is_robust_to_noise_and_octaves(run: Any, f0: float) -> None:
    time = np.arange(100 * HOP) / SAMPLE_RATE
    no_fundamental = sum(np.cos(2 * np.pi * k * f0 * time + k) for k in (2, 3, 4))
    strong_second = 0.2 * np.cos(2 * np.pi * f0 * time) + np.cos(4 * np.pi * f0 * time)
    plain = tone(f0, 1.0, 20)
    audio = 0.2 * np.stack([with_noise(s, 10) for s in (plain, no_fundamental, strong_second)])
    got, _, _ = run("PitchYin", audio, zeros(3))
    gross = np.abs(np.log2(np.maximum(got[:, SETTLED:], 1.0) / f0)) > 0.1
    assert gross.mean() < 0.02


def test_frame_describes_the_middle_of_the_block_two_before(run: Any) -> None:
    slope = 100.0
    pitch = 150 + slope * np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    got, _, _ = run("PitchYin", tone(pitch, 2.0, 10)[None], zeros(1))
    index = np.arange(SETTLED, got.shape[1])
    centre = (index - 2) * HOP + HOP // 2
    late = (pitch[centre] - got[0, index]) / slope
    # The prefilter delays by half its smoothing, 0.6 ms; a frame is 10 ms.
    assert abs(np.median(late)) < 1.5e-3


def test_offset_and_level_do_not_matter(run: Any) -> None:
    voice = with_noise(tone(np.linspace(100, 200, SAMPLE_RATE), 1.0, 15, amplitude=0.1), 20)
    got, periodicity, _ = run("PitchYin", np.stack([voice, voice + 0.5, 0.1 * voice]), zeros(3))
    for changed in (1, 2):
        np.testing.assert_allclose(got[changed, SETTLED:], got[0, SETTLED:], atol=0.2)
        np.testing.assert_allclose(periodicity[changed, SETTLED:], periodicity[0, SETTLED:], atol=5e-3)


def test_noise_and_silence_are_unvoiced(run: Any) -> None:
    rng = np.random.default_rng(3)
    loud, faint = rng.uniform(-1, 1, 400 * HOP), 1e-4 * rng.standard_normal(400 * HOP)
    audio = np.stack([loud, faint, np.ones(400 * HOP)])
    got, periodicity, _ = run("PitchYin", audio, zeros(3))
    assert (got[0] > 0).mean() < 0.02
    assert not got[1].any()
    assert not got[2, SETTLED:].any()
    assert periodicity[2, SETTLED:].max() < 0.01


def test_future_does_not_matter(run: Any) -> None:
    rng = np.random.default_rng(5)
    quiet = tone(140.0, 0.5, 10, amplitude=0.01)[None]
    loud = quiet.copy()
    loud[:, 30 * HOP :] = rng.uniform(-1, 1, loud[:, 30 * HOP :].shape)
    first, second = (run("PitchYin", audio, zeros(1)) for audio in (quiet, loud))
    for a, b in zip(first[:2], second[:2], strict=True):
        np.testing.assert_allclose(a[:, :30], b[:, :30], rtol=0, atol=1e-3)


@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(1, 59), max_size=10, unique=True))
def test_chunked_equals_whole(cuts: list[int]) -> None:
    audio = np.stack([SIGNALS["octave jumps"][0, : 60 * HOP], SIGNALS["full-scale noise"][0, : 60 * HOP]])
    whole, whole_periodicity, whole_state = pitch_yin_reference(audio, zeros(2))
    state, parts = np.zeros_like(whole_state), []
    edges = [0, *sorted(cuts), 60]
    for start, end in pairwise(edges):
        f0, periodicity, state = pitch_yin_reference(audio[:, start * HOP : end * HOP], state)
        parts.append((f0, periodicity))
    np.testing.assert_allclose(np.concatenate([f0 for f0, _ in parts], axis=1), whole, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([p for _, p in parts], axis=1), whole_periodicity, atol=1e-9)
    np.testing.assert_array_equal(state, whole_state)


@pytest.mark.parametrize("seed", range(4))
def test_chunked_equals_whole_in_float32(run: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    audio = SIGNALS["60 s"][:, seed * 400 * HOP : (seed + 1) * 400 * HOP]
    whole = run("PitchYin", audio, zeros(1))
    edges = [0, *np.sort(rng.choice(np.arange(1, 400), rng.integers(1, 40), replace=False)), 400]
    state, parts = zeros(1), []
    for start, end in pairwise(edges):
        *outputs, state = run("PitchYin", audio[:, start * HOP : end * HOP], state)
        parts.append(outputs)
    sure = reference("60 s", seed * 400 * HOP, (seed + 1) * 400 * HOP)[2]
    for index, tolerance in ((0, 0.01), (1, 1e-5)):
        chunked = np.concatenate([part[index] for part in parts], axis=1)
        np.testing.assert_allclose(chunked[sure], whole[index][sure], rtol=0, atol=tolerance)
    np.testing.assert_array_equal(state, whole[2])


def test_prefilter_passes_the_pitch_range_and_no_offset() -> None:
    kernel = prefilter(SAMPLE_RATE, HOP)
    assert len(kernel) <= HOP + 1
    response = np.abs(np.fft.rfft(kernel, SAMPLE_RATE))
    assert response[0] < 1e-12
    assert response[100:500].min() > 0.6
    assert response[2000:].max() < 0.1


@pytest.mark.parametrize("function", [pitch_yin, pitch_yin_reference])
@pytest.mark.parametrize(
    ("shapes", "attributes", "message"),
    [
        (((1, 239), (1, 1440)), {}, r"239 samples, .*not a multiple of 240; pad"),
        (((1, 0), (1, 1440)), {}, "0 samples"),
        (((240,), (1, 1440)), {}, r"audio has shape \[240\]"),
        (((2, 240), (1, 1440)), {}, r"state has shape \[1, 1440\], but \[2, 1440\]"),
        (((1, 240), (1, 1440)), {"f0_min": 40.0}, "two hops"),
        (((1, 240), (1, 1440)), {"f0_min": 300.0, "f0_max": 200.0}, "not a range"),
    ],
)
def test_refuses_nonsense(function: Any, shapes: Any, attributes: dict[str, float], message: str) -> None:
    arrays = [np.zeros(shape, dtype=np.float32) for shape in shapes]
    if function is pitch_yin:
        import torch

        arrays = [torch.from_numpy(array) for array in arrays]
    with pytest.raises(ValueError, match=message):
        function(*arrays, **attributes)
