"""SpectralSynth: every implementation against the float64 definition, and the definition against scipy."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autovoice_plugins.geometry import (
    BANDS,
    FFT_SIZE,
    FLOOR,
    HOP,
    SAMPLE_RATE,
    SPECTRAL_SYNTH_STATE_SIZE,
)
from autovoice_plugins.harmonic_source import harmonic_source_reference
from autovoice_plugins.spectral_synth import spectral_synth, spectral_synth_reference
from autovoice_plugins.spectral_synth.reference import band_frequencies, envelope_matrices, hz_to_mel

pytestmark = pytest.mark.heavy

Array = NDArray[np.float64]
SILENT = FLOOR


def zeros(batch: int) -> NDArray[np.float32]:
    return np.zeros((batch, SPECTRAL_SYNTH_STATE_SIZE), dtype=np.float32)


def envelopes(batch: int, frames: int, seed: int = 0) -> Array:
    """Envelopes with formants that wander, as a voice has them."""
    rng = np.random.default_rng(seed)
    mel = np.linspace(0, 1, BANDS)
    centre = rng.uniform(0.1, 0.9, (batch, 1, 3)) + 0.05 * np.sin(
        np.arange(frames)[None, :, None] * rng.uniform(0.02, 0.5, (batch, 1, 3))
    )
    peaks = 4 * np.exp(-(((mel - centre[..., None]) / 0.05) ** 2)).sum(axis=2)
    return peaks - 3 - 3 * mel + 0.1 * rng.standard_normal((batch, frames, BANDS))


@lru_cache(maxsize=16)
def case(batch: int, frames: int, kind: str) -> tuple[NDArray[np.float32], ...]:
    """Excitation, noise and the two filters."""
    rng = np.random.default_rng(frames)
    pitch = np.linspace(50, 1100, max(frames, 2))[:frames] if kind == "glide" else np.full(frames, 50.0)
    excitation, _ = harmonic_source_reference(np.tile(pitch, (batch, 1)), zeros(batch)[:, :2])
    noise = rng.standard_normal((batch, frames * HOP))
    harmonic, hiss = envelopes(batch, frames, 1), envelopes(batch, frames, 2) - 2
    if kind == "silence":
        excitation, noise = excitation * 0, noise * 0
    if kind == "full-scale noise":
        excitation = np.sign(noise)
    if kind == "offset":
        excitation, noise = excitation * 0 + 1, noise * 0 + 1
    if kind == "jumps":
        harmonic[:, ::2], hiss[:, 1::2] = 3.0, -40.0
    return tuple(a.astype(np.float32) for a in (excitation, noise, harmonic, hiss))


CASES = [
    (1, 1, "pulse"),
    (3, 1, "pulse"),
    (1, 2, "jumps"),
    (3, 40, "glide"),
    (1, 100, "silence"),
    (1, 100, "full-scale noise"),
    (1, 50, "offset"),
    (3, 60, "jumps"),
    (1, 6000, "glide"),
]


@lru_cache(maxsize=len(CASES))
def reference(batch: int, frames: int, kind: str) -> tuple[Array, Array]:
    return spectral_synth_reference(*case(batch, frames, kind), zeros(batch))


@pytest.mark.parametrize(("batch", "frames", "kind"), CASES)
def test_matches_reference(run: Any, batch: int, frames: int, kind: str) -> None:
    inputs = case(batch, frames, kind)
    audio, state = reference(batch, frames, kind)
    got, got_state = run("SpectralSynth", *inputs, zeros(batch))
    scale = max(1.0, np.abs(audio).max())
    np.testing.assert_allclose(got, audio, rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(got_state, state, rtol=1e-6, atol=1e-5 * scale)


@pytest.mark.parametrize("seed", range(3))
def test_chunked_equals_whole(run: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = 2000
    inputs = case(1, frames, "glide")
    whole, whole_state = run("SpectralSynth", *inputs, zeros(1))
    edges = [0, *np.sort(rng.choice(np.arange(1, frames), 50, replace=False)), frames]
    state, parts = zeros(1), []
    for a, b in pairwise(edges):
        samples, filters = slice(a * HOP, b * HOP), slice(a, b)
        pieces = (inputs[0][:, samples], inputs[1][:, samples], inputs[2][:, filters], inputs[3][:, filters])
        audio, state = run("SpectralSynth", *pieces, state)
        parts.append(audio)
    scale = np.abs(whole).max()
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=3e-6 * scale)
    np.testing.assert_allclose(state, whole_state, rtol=0, atol=3e-6 * scale)


@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(1, 24)))
def test_any_chunking_of_the_definition(cuts: set[int]) -> None:
    inputs = case(3, 25, "jumps")
    whole, whole_state = spectral_synth_reference(*inputs, zeros(3))
    state, parts = np.zeros_like(whole_state), []
    for a, b in pairwise([0, *sorted(cuts), 25]):
        samples = [array[:, a * HOP : b * HOP] for array in inputs[:2]]
        audio, state = spectral_synth_reference(*samples, *(array[:, a:b] for array in inputs[2:]), state)
        parts.append(audio)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-9)
    np.testing.assert_allclose(state, whole_state, atol=1e-9)


def test_unity_filter_is_identity(run: Any) -> None:
    excitation, noise, harmonic, _ = case(1, 30, "pulse")
    unity, silent = np.zeros_like(harmonic), np.full_like(harmonic, SILENT)
    state = zeros(1)
    state[:, :BANDS] = -FLOOR
    audio, _ = run("SpectralSynth", excitation, noise, unity, silent, state)
    np.testing.assert_allclose(audio, excitation, rtol=0, atol=2e-5)
    state = np.roll(state, BANDS, axis=1)
    audio, _ = run("SpectralSynth", excitation, noise, silent, unity, state)
    np.testing.assert_allclose(audio, noise, rtol=0, atol=2e-5)


def test_constant_filter_is_convolution_with_its_minimum_phase(run: Any) -> None:
    """scipy makes the same minimum-phase response from a linear-phase one, by another route."""
    band = 3 * np.exp(-(((np.linspace(0, 1, BANDS) - 0.4) / 0.2) ** 2)) - 2
    magnitude = np.exp(band @ envelope_matrices()[0])
    # A long symmetric filter of magnitude squared; scipy's result has the square root of that.
    squared = np.fft.fftshift(np.fft.irfft(magnitude**2, FFT_SIZE))[1:]
    response = scipy.signal.minimum_phase(squared, method="homomorphic", n_fft=1 << 16)
    noise = np.random.default_rng(0).standard_normal((1, 40 * HOP)).astype(np.float32)
    filters = np.tile(band.astype(np.float32), (1, 40, 1))
    state = zeros(1)
    state[:, :BANDS] = band - FLOOR
    audio, _ = run("SpectralSynth", noise, noise * 0, filters, np.full_like(filters, SILENT), state)
    expected = np.convolve(noise[0], response)[: audio.shape[1]]
    np.testing.assert_allclose(audio[0], expected, rtol=0, atol=2e-3 * np.abs(expected).max())


def test_minimum_phase_of_a_pole_pair_is_the_pole_pair() -> None:
    """The phase matrix against the phase of a stable all-pole filter, which is minimum phase by theory."""
    _, phase = envelope_matrices()
    pole = 0.7 * np.exp(2j * np.pi * 0.2)
    denominator = np.poly([pole, pole.conjugate()])
    # Points that lie between the bins are interpolated, so the envelope is smooth, not exact.
    bins = 2 * np.pi * band_frequencies() / SAMPLE_RATE
    _, at_bands = scipy.signal.freqz([1.0], denominator, bins)
    _, at_bins = scipy.signal.freqz(
        [1.0], denominator, np.pi * np.arange(FFT_SIZE // 2 + 1) / (FFT_SIZE // 2)
    )
    got = np.log(np.abs(at_bands)) @ phase
    np.testing.assert_allclose(got, np.angle(at_bins), atol=0.03)


def test_bands_are_equally_spaced_in_mel_and_reach_nyquist() -> None:
    frequencies = band_frequencies()
    assert frequencies[0] == 0
    assert frequencies[-1] == pytest.approx(SAMPLE_RATE / 2)
    np.testing.assert_allclose(np.diff(hz_to_mel(frequencies), 2), 0, atol=1e-9)
    magnitude, phase = envelope_matrices()
    np.testing.assert_allclose(magnitude.sum(axis=0), 1)
    np.testing.assert_allclose(np.ones(BANDS) @ phase, 0, atol=1e-12)


def test_fade_is_linear_between_filters(run: Any) -> None:
    """A segment is the faded-out input through the old filter plus the faded-in through the new."""
    excitation, noise, harmonic, hiss = case(1, 2, "jumps")
    silent = np.full_like(hiss, SILENT)
    both, _ = run("SpectralSynth", excitation, noise, harmonic, silent, zeros(1))
    only = [harmonic.copy(), harmonic.copy()]
    only[0][:, 1], only[1][:, 0] = SILENT, SILENT
    parts = [run("SpectralSynth", excitation, noise, one, silent, zeros(1))[0] for one in only]
    np.testing.assert_allclose(sum(parts), both, rtol=0, atol=1e-5 * np.abs(both).max())


def test_zero_state_is_silence_and_the_tail_is_owed(run: Any) -> None:
    excitation, noise, harmonic, hiss = case(1, 10, "pulse")
    _, state = run("SpectralSynth", excitation, noise, harmonic, hiss, zeros(1))
    quiet = np.zeros((1, 3 * HOP), dtype=np.float32)
    floor = np.full((1, 3, BANDS), SILENT, dtype=np.float32)
    rest, after = run("SpectralSynth", quiet, quiet, floor, floor, state)
    np.testing.assert_allclose(rest[0], state[0, 2 * BANDS :], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(after, 0)
    nothing, _ = run("SpectralSynth", quiet, quiet, floor, floor, zeros(1))
    assert not nothing.any()


def test_floor_is_the_least_that_counts(run: Any) -> None:
    inputs = case(1, 10, "pulse")
    lower = (inputs[0], inputs[1], np.full_like(inputs[2], -100.0), np.full_like(inputs[3], FLOOR))
    equal = (inputs[0], inputs[1], np.full_like(inputs[2], FLOOR), np.full_like(inputs[3], FLOOR))
    for a, b in zip(*(run("SpectralSynth", *i, zeros(1)) for i in (lower, equal)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradients() -> None:
    torch.manual_seed(0)
    hop, fft_size, bands, frames = 4, 16, 5, 3
    shapes = ((2, hop * frames), (2, hop * frames), (2, frames, bands), (2, frames, bands))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    state = torch.rand(2, 2 * bands + fft_size - hop, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *a: spectral_synth(*a, hop=hop, fft_size=fft_size, bands=bands, sample_rate=16000),
        (*inputs, state),
    )


def test_trains_after_inference() -> None:
    """The constants are cached: they must not be tensors that only inference may use."""
    options = {"bands": 7, "sample_rate": 8000}
    inputs = [torch.randn(1, HOP), torch.randn(1, HOP), torch.randn(1, 1, 7), torch.randn(1, 1, 7)]
    state = torch.zeros(1, 14 + FFT_SIZE - HOP)
    with torch.inference_mode():
        expected, _ = spectral_synth(*inputs, state, **options)
    inputs[2].requires_grad_()
    audio, _ = spectral_synth(*inputs, state, **options)
    audio.sum().backward()
    assert inputs[2].grad is not None
    assert inputs[2].grad.abs().sum() > 0
    torch.testing.assert_close(audio.detach(), expected)


def test_large_batches_are_split_without_a_trace() -> None:
    inputs = [torch.from_numpy(a) for a in case(3, 300, "glide")]
    together, state = spectral_synth(*inputs, torch.zeros(3, SPECTRAL_SYNTH_STATE_SIZE))
    for row in range(3):
        one = [a[row : row + 1] for a in inputs]
        audio, one_state = spectral_synth(*one, torch.zeros(1, SPECTRAL_SYNTH_STATE_SIZE))
        torch.testing.assert_close(together[row : row + 1], audio, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state[row : row + 1], one_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize(
    ("change", "shape", "options", "message"),
    [
        (0, (1, 479), {}, r"479 samples, .*not a multiple of 240"),
        (1, (1, 240), {}, r"noise has shape \[1, 240\], but \[1, 480\]"),
        (2, (1, 3, 80), {}, r"harmonic_filter has shape \[1, 3, 80\], but \[1, 2, 80\]"),
        (3, (1, 2, 79), {}, r"noise_filter has shape"),
        (4, (1, 160), {}, r"state has shape \[1, 160\], but \[1, 880\]"),
        (
            0,
            (1, 480),
            {"fft_size": 1000},
            "fft_size=1000 must be .* hop=240; use 960",
        ),
        (0, (1, 480), {"bands": 1}, "bands=1"),
    ],
)
def test_refuses_nonsense(
    convert: Any, change: int, shape: tuple[int, ...], options: dict[str, int], message: str
) -> None:
    shapes: list[tuple[int, ...]] = [(1, 480), (1, 480), (1, 2, 80), (1, 2, 80), (1, 880)]
    shapes[change] = shape
    function = spectral_synth_reference if convert is np.asarray else spectral_synth
    with pytest.raises(ValueError, match=message):
        function(*(convert(np.zeros(s, dtype=np.float32)) for s in shapes), **options)
