"""SpectralSynth in PyTorch, differentiable, and as `torch.ops.autovoice.spectral_synth` for export."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from autovoice_plugins.checks import require_shape, require_whole_blocks
from autovoice_plugins.exporting import is_exporting
from autovoice_plugins.geometry import BANDS, FFT_SIZE, FLOOR, HOP, SAMPLE_RATE
from autovoice_plugins.spectral_synth.reference import envelope_matrices, fade_in, state_size

CACHED_FRAMES = 400
"""Frames synthesised together: their working set is some 10 MB."""


def spectral_synth(
    excitation: Tensor,
    noise: Tensor,
    harmonic_filter: Tensor,
    noise_filter: Tensor,
    state: Tensor,
    *,
    sample_rate: int = SAMPLE_RATE,
    hop: int = HOP,
    fft_size: int = FFT_SIZE,
    bands: int = BANDS,
) -> tuple[Tensor, Tensor]:
    """Filters excitation and noise with envelopes that change every frame, and adds them; see the reference.

    Differentiable in all tensors.

    Args:
        excitation: [B, hop F], float32.
        noise: [B, hop F].
        harmonic_filter: Natural-log magnitude for the excitation, [B, F, bands]; FLOOR is the least that
            counts.
        noise_filter: The same for the noise, [B, F, bands].
        state: [B, 2 bands + fft_size - hop]; zeros at the start.
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
    options = (sample_rate, hop, fft_size, bands)
    if is_exporting():
        return torch.ops.autovoice.spectral_synth(  # type: ignore[no-any-return]
            excitation, noise, harmonic_filter, noise_filter, state, *options
        )
    require_shape("excitation", excitation, (None, None), f"[B, {hop} F]")
    batch, samples = excitation.shape
    frames = require_whole_blocks("excitation", samples, hop)
    require_shape("noise", noise, (batch, samples), f"[{batch}, {samples}]")
    for name, envelope in (("harmonic_filter", harmonic_filter), ("noise_filter", noise_filter)):
        require_shape(name, envelope, (batch, frames, bands), f"[{batch}, {frames}, {bands}]")
    require_shape("state", state, (batch, size), f"[{batch}, {size}]")
    # A few sequences at a time: their spectra stay in the cache, which halves the time of training.
    together = max(1, CACHED_FRAMES // frames)
    sequences = (excitation, noise, harmonic_filter, noise_filter, state)
    parts = [torch.split(tensor, together) for tensor in sequences]
    results = [_spectral_synth(e, n, h, m, s, *options) for e, n, h, m, s in zip(*parts, strict=True)]
    audio, next_state = zip(*results, strict=True)
    return torch.cat(audio), torch.cat(next_state)


@lru_cache(maxsize=8)
def _constants(
    sample_rate: int, hop: int, fft_size: int, bands: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns magnitude and phase matrices side by side, [bands, 2 bins], and fade in and out, [2, hop]."""
    # Made outside inference mode, even if first needed there: training uses the same ones.
    with torch.inference_mode(False):
        matrices = torch.cat(
            [torch.tensor(m) for m in envelope_matrices(sample_rate, fft_size, bands)], dim=1
        )
        rise = torch.tensor(fade_in(hop))
        slopes = torch.stack([rise, rise.flip(0)])
        return matrices.to(device, dtype), slopes.to(device, dtype)


def _filtered(
    signal: Tensor, above: Tensor, hop: int, fft_size: int, matrices: Tensor, slopes: Tensor
) -> Tensor:
    """Returns the spectrum [B, F, bins] of each block after its two filters.

    Args:
        signal: [B, hop F].
        above: Filters above FLOOR, the previous one first, [B, F + 1, bands].
        hop: Samples per block.
        fft_size: Length of the DFT.
        matrices: [bands, 2 bins].
        slopes: [2, hop].
    """
    magnitude, phase = (above @ matrices).chunk(2, dim=-1)
    response = torch.polar((magnitude + FLOOR).exp(), phase)
    blocks = signal.reshape(signal.shape[0], -1, hop)
    rising = torch.fft.rfft(blocks * slopes[0], fft_size)
    falling = torch.fft.rfft(blocks * slopes[1], fft_size)
    spectrum: Tensor = rising * response[:, 1:] + falling * response[:, :-1]
    return spectrum


def _spectral_synth(
    excitation: Tensor,
    noise: Tensor,
    harmonic_filter: Tensor,
    noise_filter: Tensor,
    state: Tensor,
    sample_rate: int,
    hop: int,
    fft_size: int,
    bands: int,
) -> tuple[Tensor, Tensor]:
    matrices, slopes = _constants(sample_rate, hop, fft_size, bands, excitation.dtype, excitation.device)
    batch, samples = excitation.shape
    previous_harmonic, previous_noise, tail = torch.split(state, [bands, bands, fft_size - hop], dim=1)
    harmonic_above = torch.cat([previous_harmonic[:, None], harmonic_filter.clamp_min(FLOOR) - FLOOR], dim=1)
    noise_above = torch.cat([previous_noise[:, None], noise_filter.clamp_min(FLOOR) - FLOOR], dim=1)
    spectrum = _filtered(excitation, harmonic_above, hop, fft_size, matrices, slopes)
    spectrum = spectrum + _filtered(noise, noise_above, hop, fft_size, matrices, slopes)
    pieces = torch.fft.irfft(spectrum, fft_size)

    owed = fft_size - hop
    audio = functional.pad(tail, (0, samples))
    for part in range(fft_size // hop):
        here = pieces[..., part * hop : (part + 1) * hop].reshape(batch, samples)
        audio = audio + functional.pad(here, (part * hop, owed - part * hop))
    next_state = torch.cat([harmonic_above[:, -1], noise_above[:, -1], audio[:, samples:]], dim=1)
    return audio[:, :samples], next_state


@torch.library.custom_op("autovoice::spectral_synth", mutates_args=())
def spectral_synth_op(
    excitation: Tensor,
    noise: Tensor,
    harmonic_filter: Tensor,
    noise_filter: Tensor,
    state: Tensor,
    sample_rate: int,
    hop: int,
    fft_size: int,
    bands: int,
) -> tuple[Tensor, Tensor]:
    """The same as `spectral_synth`, as one node of an exported graph."""
    audio, next_state = _spectral_synth(
        excitation, noise, harmonic_filter, noise_filter, state, sample_rate, hop, fft_size, bands
    )
    return audio.contiguous(), next_state


@spectral_synth_op.register_fake
def _(
    excitation: Tensor,
    noise: Tensor,
    harmonic_filter: Tensor,
    noise_filter: Tensor,
    state: Tensor,
    sample_rate: int,
    hop: int,
    fft_size: int,
    bands: int,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(excitation), torch.empty_like(state)
