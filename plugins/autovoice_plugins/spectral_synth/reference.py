"""SpectralSynth in NumPy float64: the definition.

Minimum phase comes from the folded real cepstrum (Oppenheim and Schafer, "Discrete-Time Signal
Processing", chapter on homomorphic systems); both it and the interpolation over frequency are linear in the
log magnitude, hence two constant matrices.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autovoice_plugins.checks import require_shape, require_whole_blocks
from autovoice_plugins.geometry import BANDS, FFT_SIZE, FLOOR, HOP, SAMPLE_RATE


def hz_to_mel(frequency: ArrayLike) -> NDArray[np.float64]:
    """Converts Hz to mel (O'Shaughnessy's formula, as in HTK)."""
    return np.asarray(2595.0 * np.log10(1.0 + np.asarray(frequency, dtype=np.float64) / 700.0))


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Converts mel to Hz: the inverse of `hz_to_mel`."""
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def band_frequencies(sample_rate: int = SAMPLE_RATE, bands: int = BANDS) -> NDArray[np.float64]:
    """Returns the frequencies in Hz of an envelope's points, [bands], from 0 to Nyquist."""
    nyquist = float(hz_to_mel(sample_rate / 2))
    return mel_to_hz(np.linspace(0.0, nyquist, bands))


@lru_cache(maxsize=8)
def envelope_matrices(
    sample_rate: int = SAMPLE_RATE, fft_size: int = FFT_SIZE, bands: int = BANDS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the matrices [bands, fft_size // 2 + 1] that give log magnitude and phase of every bin.

    The first interpolates linearly on the mel scale; the second is the minimum phase, in radians, of what
    the first gives. They apply to values above FLOOR too: a constant has no phase.
    """
    nyquist = float(hz_to_mel(sample_rate / 2))
    frequencies = np.arange(fft_size // 2 + 1) * (sample_rate / fft_size)
    place = np.clip(hz_to_mel(frequencies) * ((bands - 1) / nyquist), 0, bands - 1)
    magnitude = np.maximum(0.0, 1.0 - np.abs(place[None, :] - np.arange(bands)[:, None]))

    cepstrum = np.fft.irfft(magnitude, fft_size)
    cepstrum[:, 1 : fft_size // 2] *= 2
    cepstrum[:, fft_size // 2 + 1 :] = 0
    phase = np.fft.rfft(cepstrum).imag
    magnitude.setflags(write=False)
    phase.setflags(write=False)
    return magnitude, phase


def fade_in(hop: int = HOP) -> NDArray[np.float64]:
    """Returns the rising half [hop] of a Hann window; reversed it is the fade out, and they add up to 1."""
    rise: NDArray[np.float64] = np.sin(np.pi * (np.arange(hop) + 0.5) / (2 * hop)) ** 2
    return rise


def state_size(hop: int, fft_size: int, bands: int) -> int:
    """Returns the floats in a state: two filters and the tail.

    Raises:
        ValueError: The DFT is not a whole number of blocks, at least two, or its size is odd.
    """
    if fft_size % hop or fft_size < 2 * hop or fft_size % 2:
        raise ValueError(f"fft_size={fft_size} must be even and two or more times hop={hop}; use {4 * hop}.")
    if bands < 2:
        raise ValueError(f"bands={bands} cannot span a spectrum; use 2 or more.")
    return 2 * bands + fft_size - hop


def spectral_synth_reference(
    excitation: NDArray[np.floating[Any]],
    noise: NDArray[np.floating[Any]],
    harmonic_filter: NDArray[np.floating[Any]],
    noise_filter: NDArray[np.floating[Any]],
    state: NDArray[np.floating[Any]],
    *,
    sample_rate: int = SAMPLE_RATE,
    hop: int = HOP,
    fft_size: int = FFT_SIZE,
    bands: int = BANDS,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Filters excitation and noise with envelopes that change every frame, and adds them.

    Within the segment of index j the input fades from filter j - 1 to filter j along a Hann slope: each
    part is filtered by a circular convolution over `fft_size` samples, whose last fft_size - hop are the
    tail that later blocks add to.

    Args:
        excitation: [B, hop F].
        noise: [B, hop F].
        harmonic_filter: Natural-log magnitude for the excitation at `band_frequencies`, [B, F, bands]; FLOOR
            is the least that counts.
        noise_filter: The same for the noise, [B, F, bands].
        state: Both filters of the last frame above FLOOR, then the tail,
            [B, 2 bands + fft_size - hop]; zeros at the start.
        sample_rate: Samples per second; places the bands.
        hop: Samples per frame.
        fft_size: Length of the filters' DFT, a multiple of hop.
        bands: Points of an envelope.

    Returns:
        Audio, [B, hop F]; the next state.

    Raises:
        ValueError: A shape or size is wrong.
    """
    size = state_size(hop, fft_size, bands)
    require_shape("excitation", excitation, (None, None), f"[B, {hop} F]")
    batch, samples = excitation.shape
    frames = require_whole_blocks("excitation", samples, hop)
    require_shape("noise", noise, (batch, samples), f"[{batch}, {samples}]")
    for name, envelope in (("harmonic_filter", harmonic_filter), ("noise_filter", noise_filter)):
        require_shape(name, envelope, (batch, frames, bands), f"[{batch}, {frames}, {bands}]")
    require_shape("state", state, (batch, size), f"[{batch}, {size}]")

    magnitude, phase = envelope_matrices(sample_rate, fft_size, bands)
    rise = fade_in(hop)
    state = state.astype(np.float64)
    spectrum = np.zeros((batch, frames, fft_size // 2 + 1), dtype=np.complex128)
    last = []
    for number, (signal, envelope) in enumerate(((excitation, harmonic_filter), (noise, noise_filter))):
        above = np.maximum(envelope.astype(np.float64), FLOOR) - FLOOR
        previous = state[:, None, number * bands : (number + 1) * bands]
        above = np.concatenate([previous, above], axis=1)
        response = np.exp(above @ magnitude + FLOOR + 1j * (above @ phase))
        blocks = signal.astype(np.float64).reshape(batch, frames, hop)
        spectrum += np.fft.rfft(rise * blocks, fft_size) * response[:, 1:]
        spectrum += np.fft.rfft(rise[::-1] * blocks, fft_size) * response[:, :-1]
        last.append(above[:, -1])

    pieces = np.fft.irfft(spectrum, fft_size)
    audio = np.zeros((batch, samples + fft_size - hop))
    audio[:, : fft_size - hop] = state[:, 2 * bands :]
    for frame in range(frames):
        audio[:, frame * hop : frame * hop + fft_size] += pieces[:, frame]
    return audio[:, :samples], np.concatenate([*last, audio[:, samples:]], axis=1)
