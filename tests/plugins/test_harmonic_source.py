"""HarmonicSource: every implementation against the float64 definition, and the definition against sums."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autovoice_plugins.geometry import HOP, PHASE_GRID, SAMPLE_RATE
from autovoice_plugins.harmonic_source import harmonic_source, harmonic_source_reference

NYQUIST = SAMPLE_RATE / 2
Array = NDArray[np.float64]


def contours() -> dict[str, Array]:
    rng = np.random.default_rng(11)
    minute = 150 * np.exp(np.cumsum(0.02 * rng.standard_normal((1, 6000)), axis=1).clip(-1, 1))
    minute[:, np.repeat(rng.uniform(size=60) < 0.3, 100)] = 0.0
    return {
        "one frame": np.array([[123.4]]),
        "one unvoiced frame": np.zeros((1, 1)),
        "50 Hz": np.full((1, 80), 50.0),
        "1100 Hz": np.full((1, 80), 1100.0),
        "lowest after shift": np.full((1, 80), 12.0),
        "highest after shift": np.full((1, 80), 4400.0),
        "glide": np.geomspace(40, 4400, 80)[None],
        "octave jumps": np.repeat([100.0, 200.0, 400.0, 100.0, 50.0, 800.0], 10)[None],
        "voicing": np.array([[0, 100, 100, 0, 0, 200, 0, 300, 0, 0, 50, 60]], dtype=float),
        "three": np.stack([np.full(50, 97.3), np.zeros(50), np.geomspace(80, 1100, 50)]),
        "60 s": minute,
    }


CONTOURS = {name: contour.astype(np.float32) for name, contour in contours().items()}


def zeros(batch: int) -> NDArray[np.float32]:
    return np.zeros((batch, 2), dtype=np.float32)


def hiss(f0: NDArray[Any]) -> NDArray[np.float32]:
    rng = np.random.default_rng(2)
    return rng.standard_normal((len(f0), f0.shape[1] * HOP)).astype(np.float32)


def arguments(name: str, waveform: str) -> tuple[NDArray[np.float32], ...]:
    f0 = CONTOURS[name]
    return (f0, zeros(len(f0))) if waveform == "pulse" else (f0, zeros(len(f0)), hiss(f0))


@pytest.mark.parametrize("waveform", ["pulse", "sine"])
@pytest.mark.parametrize("name", CONTOURS)
def test_matches_reference(run: Any, name: str, waveform: str) -> None:
    inputs = arguments(name, waveform)
    excitation, state = harmonic_source_reference(*inputs, waveform=waveform)
    got, got_state = run("HarmonicSource", *inputs, waveform=waveform)
    pitch = CONTOURS[name][CONTOURS[name] > 0]
    # Full scale of the pulse is its peak, sqrt(2 x) with x harmonics.
    scale = np.sqrt(2 * NYQUIST / pitch.min()) if waveform == "pulse" and len(pitch) else 1.0
    np.testing.assert_allclose(got, excitation, rtol=0, atol=1e-4 * scale)
    np.testing.assert_array_equal(got_state, state.astype(np.float32))


@pytest.mark.parametrize("waveform", ["pulse", "sine"])
def test_phase_is_exact_after_a_minute(run: Any, waveform: str) -> None:
    inputs = arguments("60 s", waveform)
    f0 = CONTOURS["60 s"].astype(np.float64)[0]
    start = end = f0
    if waveform == "pulse":
        before = np.concatenate([[0.0], f0[:-1]])
        start, end = np.where(before > 0, before, f0), np.where(f0 > 0, f0, before)
    exact = np.sum((start + end) / 2) * HOP / SAMPLE_RATE
    _, state = run("HarmonicSource", *inputs, waveform=waveform)
    off = (state[0, 1] - exact + 0.5) % 1 - 0.5
    # Each frame rounds by at most half a step of the grid; the errors of a moving pitch do not add up.
    assert abs(off) < len(f0) / PHASE_GRID / 2
    assert abs(off) < 1e-5


@pytest.mark.parametrize("waveform", ["pulse", "sine"])
@pytest.mark.parametrize("seed", range(3))
def test_chunked_equals_whole(run: Any, waveform: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    f0, _, *noise = arguments("60 s", waveform)
    whole, whole_state = run("HarmonicSource", f0, zeros(1), *noise, waveform=waveform)
    edges = [0, *np.sort(rng.choice(np.arange(1, 6000), 60, replace=False)), 6000]
    state, parts = zeros(1), []
    for a, b in pairwise(edges):
        piece = [n[:, a * HOP : b * HOP] for n in noise]
        excitation, state = run("HarmonicSource", f0[:, a:b], state, *piece, waveform=waveform)
        parts.append(excitation)
    np.testing.assert_array_equal(state, whole_state)
    # ORT's vectorised sine differs in the last place with the position in its loop.
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("waveform", ["pulse", "sine"])
@pytest.mark.parametrize("pitch", [50.0, 440.0, 1100.0, 123.456789])
def test_phase_is_the_same_to_the_bit_over_ten_minutes(run: Any, pitch: float, waveform: str) -> None:
    rng = np.random.default_rng(round(pitch))
    frames = 60_000
    f0 = np.full((1, frames), pitch, dtype=np.float32)
    if pitch == 1100.0:  # and one that never stays
        f0 = rng.uniform(50.0, 1100.0, f0.shape).astype(np.float32)
    contour = f0.astype(np.float64)[0]
    before = np.concatenate([contour[:1], contour[:-1]]) if waveform == "pulse" else contour
    advance = np.round((before + contour) * (HOP / (2 * SAMPLE_RATE)) * PHASE_GRID).astype(np.int64)
    expected = np.cumsum(advance) % PHASE_GRID / PHASE_GRID
    state, done = zeros(1), 0
    while done < frames:
        end = min(
            frames, done + int(rng.choice([1, 2, 7, 100, 1000, 3000], p=[0.2, 0.1, 0.1, 0.2, 0.2, 0.2]))
        )
        noise = [np.zeros((1, (end - done) * HOP), dtype=np.float32)] if waveform == "sine" else []
        _, state = run("HarmonicSource", f0[:, done:end], state, *noise, waveform=waveform)
        assert state[0, 1] == expected[end - 1], f"after {end} frames"
        done = end


@settings(max_examples=40, deadline=None)
@given(
    f0=st.lists(st.one_of(st.just(0.0), st.floats(12, 4400, width=32)), min_size=2, max_size=30),
    cuts=st.sets(st.integers(1, 29)),
)
def test_phase_is_the_same_to_the_bit_in_all_implementations_and_chunkings(
    f0: list[float], cuts: set[int]
) -> None:
    contour = np.array([f0], dtype=np.float32)
    _, whole = harmonic_source_reference(contour, zeros(1))
    state = torch.zeros(1, 2)
    for a, b in pairwise([0, *sorted(c for c in cuts if c < len(f0)), len(f0)]):
        _, state = harmonic_source(torch.from_numpy(contour[:, a:b].copy()), state)
    np.testing.assert_array_equal(state.numpy(), whole)
    assert 0 <= whole[0, 1] < 1


@pytest.mark.parametrize("name", ["50 Hz", "1100 Hz", "glide", "octave jumps", "voicing"])
def test_pulse_is_the_sum_of_its_cosines(run: Any, name: str) -> None:
    """The closed form against harmonics added one by one, with the phase summed sample by sample."""
    f0 = CONTOURS[name][0].astype(np.float64)
    before = np.concatenate([[0.0], f0[:-1]])
    start, end = np.where(before > 0, before, f0), np.where(f0 > 0, f0, before)
    inside = np.arange(HOP) / HOP
    pitch = (start[:, None] + (end - start)[:, None] * inside).ravel()
    # The integral of a linear pitch over one sample is its mean with the next sample's.
    following = (start[:, None] + (end - start)[:, None] * (inside + 1 / HOP)).ravel()
    phase = np.concatenate([[0.0], np.cumsum((pitch + following) / 2 / SAMPLE_RATE)[:-1]])
    safe = np.where(pitch > 0, pitch, NYQUIST)
    x = NYQUIST / safe
    total = np.zeros_like(phase)
    for k in range(1, int(x.max()) + 1):
        weight = np.where(k < np.floor(x), 1.0, np.where(k == np.floor(x), x - k, 0.0))
        total += weight * np.cos(2 * np.pi * k * phase)
    expected = np.where(pitch > 0, np.sqrt(2 / x) * total, 0.0)
    got, _ = run("HarmonicSource", CONTOURS[name], zeros(1))
    peak = np.sqrt(2 * x.max())
    np.testing.assert_allclose(got[0], expected, rtol=0, atol=2e-4 * peak)


@pytest.mark.parametrize("f0", [50.0, 123.0, 440.0, 1100.0, 3000.0])
def test_pulse_has_unit_power_and_nothing_between_harmonics(run: Any, f0: float) -> None:
    excitation, _ = run("HarmonicSource", np.full((1, 400), f0, dtype=np.float32), zeros(1))
    signal = excitation[0, : 2 * SAMPLE_RATE].astype(np.float64)
    # One whole harmonic may be fading in: it is x - floor(x) of one.
    x = NYQUIST / f0
    fading = x - np.floor(x)
    assert np.mean(signal**2) == pytest.approx((np.floor(x) - 1 + fading**2) / x, rel=5e-3)
    power = np.abs(np.fft.rfft(signal * np.blackman(len(signal)))) ** 2
    frequency = np.fft.rfftfreq(len(signal), 1 / SAMPLE_RATE)
    distance = np.abs(frequency - f0 * np.round(frequency / f0))
    assert power[(distance > 5)].max() < 1e-8 * power.max()
    assert power[frequency < 5].max() < 1e-8 * power.max()


def test_harmonics_fade_in_and_out_continuously() -> None:
    """Across the pitch at which a harmonic appears the waveform barely changes."""
    edge = NYQUIST / 20
    below, above = (
        harmonic_source_reference(np.full((1, 3), edge * (1 + e)), zeros(1))[0] for e in (-1e-9, 1e-9)
    )
    np.testing.assert_allclose(below, above, atol=1e-3)


def test_sine_follows_its_noise_rule(run: Any) -> None:
    f0 = np.array([[0.0, 200.0]], dtype=np.float32)
    noise = np.ones((1, 2 * HOP), dtype=np.float32)
    excitation, state = run("HarmonicSource", f0, zeros(1), noise, waveform="sine")
    steps = np.arange(1, HOP + 1)
    np.testing.assert_allclose(excitation[0, :HOP], 0.1 / 3, rtol=1e-6)
    voiced = 0.1 * np.sin(2 * np.pi * 200 * steps / SAMPLE_RATE) + 0.003
    np.testing.assert_allclose(excitation[0, HOP:], voiced, atol=1e-6)
    assert state[0, 0] == 0


@pytest.mark.parametrize(("hop", "sample_rate"), [(400, 40000), (480, 48000), (320, 32000)])
def test_other_clocks(run: Any, hop: int, sample_rate: int) -> None:
    f0 = np.linspace(100, 300, 30, dtype=np.float32)[None]
    noise = np.zeros((1, 30 * hop), dtype=np.float32)
    options = {"hop": hop, "sample_rate": sample_rate, "waveform": "sine"}
    got, got_state = run("HarmonicSource", f0, zeros(1), noise, **options)
    expected, state = harmonic_source_reference(f0, zeros(1), noise, **options)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_array_equal(got_state, state)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize(
    ("shapes", "waveform", "message"),
    [
        (((3,), (1, 2)), "pulse", r"f0 has shape \[3\]"),
        (((2, 3), (1, 2)), "pulse", r"state has shape \[1, 2\], but \[2, 2\]"),
        (((1, 3), (1, 2)), "sine", "needs noise"),
        (((1, 3), (1, 2), (1, 720)), "pulse", "takes no noise"),
        (((1, 3), (1, 2), (1, 719)), "sine", r"noise has shape \[1, 719\], but \[1, 720\]"),
        (((1, 3), (1, 2)), "square", 'waveform is "square"; use one of pulse, sine'),
    ],
)
def test_refuses_nonsense(convert: Any, shapes: Any, waveform: str, message: str) -> None:
    arrays = [convert(np.zeros(shape, dtype=np.float32)) for shape in shapes]
    function = harmonic_source_reference if convert is np.asarray else harmonic_source
    with pytest.raises(ValueError, match=message):
        function(*arrays, waveform=waveform)
