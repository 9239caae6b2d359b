"""PitchYin in PyTorch, and as the custom op `torch.ops.autovoice.pitch_yin` for export."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from autovoice_plugins.checks import require_shape, require_whole_blocks
from autovoice_plugins.exporting import is_exporting
from autovoice_plugins.geometry import F0_MAX, F0_MIN, HOP, PITCH_BLOCKS_OF_STATE, SAMPLE_RATE
from autovoice_plugins.pitch_yin.reference import (
    ABSOLUTE_NOISE,
    NO_DIP,
    RELATIVE_NOISE,
    THRESHOLD,
    VOICING_THRESHOLD,
    Lags,
    block_weights,
    lags,
    octave_cost,
    prefilter,
)


def pitch_yin(
    audio: Tensor,
    state: Tensor,
    *,
    sample_rate: int = SAMPLE_RATE,
    hop: int = HOP,
    f0_min: float = F0_MIN,
    f0_max: float = F0_MAX,
    threshold: float = THRESHOLD,
    voicing_threshold: float = VOICING_THRESHOLD,
) -> tuple[Tensor, Tensor, Tensor]:
    """Estimates the pitch of every frame; frame index j describes frame j - 2. Has no gradient.

    Args:
        audio: Samples in [-1, 1], [B, hop F], float32.
        state: The last samples before `audio`, [B, 6 hop]; zeros at the start.
        sample_rate: Samples per second.
        hop: Samples per frame.
        f0_min: Lowest pitch, Hz.
        f0_max: Highest pitch, Hz.
        threshold: Of the dips of the normalised difference that cost at most this more than the
            cheapest, the first is taken.
        voicing_threshold: Frames whose periodicity is below this get F0 = 0.

    Returns:
        F0 in Hz, 0 where unvoiced, [B, F]; periodicity in [0, 1], [B, F]; the next state, [B, 6 hop].

    Raises:
        ValueError: A shape or the pitch range is impossible.
    """
    lags(sample_rate, hop, f0_min, f0_max)
    options = (sample_rate, hop, f0_min, f0_max, threshold, voicing_threshold)
    if is_exporting():
        return torch.ops.autovoice.pitch_yin(audio, state, *options)  # type: ignore[no-any-return]
    require_shape("audio", audio, (None, None), f"[B, {hop} F]")
    require_whole_blocks("audio", audio.shape[1], hop)
    size = PITCH_BLOCKS_OF_STATE * hop
    require_shape("state", state, (audio.shape[0], size), f"[{audio.shape[0]}, {size}]")
    with torch.no_grad():
        return _pitch_yin(audio, state, *options)


@lru_cache(maxsize=8)
def _constants(
    sample_rate: int, hop: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the prefilter for conv1d, the block weights, the window length at each lag, and 1/l."""
    kernel = torch.as_tensor(prefilter(sample_rate, hop)[::-1].copy(), dtype=dtype, device=device)
    weights = torch.as_tensor(block_weights(hop), dtype=dtype, device=device)
    inverse = 1.0 / torch.arange(1, 2 * hop + 1, dtype=dtype, device=device)
    return kernel[None, None], weights, 1.0 / (hop * weights.sum(0)), inverse


@lru_cache(maxsize=8)
def _octave_cost(search: Lags, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.as_tensor(octave_cost(search), dtype=dtype, device=device)


def _normalised_difference(past: Tensor, sample_rate: int, hop: int) -> Tensor:
    """Returns lags 1 .. 2 hop of the normalised difference, [B, F, 2 hop], of [B, (F + 6) hop] samples."""
    kernel, weights, inverse_length, inverse_lag = _constants(sample_rate, hop, past.dtype, past.device)
    longest = 2 * hop
    # The first block only feeds the prefilter; this start makes the result begin with the second.
    smooth = functional.conv1d(past[:, None, hop + 1 - kernel.shape[-1] :], kernel)[:, 0]
    spans = smooth.unfold(1, 3 * hop, hop)
    padded = functional.pad(spans[..., longest:], (longest, 0))
    spectrum = torch.fft.rfft(padded) * torch.fft.rfft(spans).conj()
    correlation = torch.fft.irfft(spectrum, 3 * hop)[..., : longest + 1]

    # Energies are summed inside each block only: a sum over the whole signal would lose its last digits.
    squares = smooth.unfold(1, hop, hop).square()
    totals = functional.pad(squares.cumsum(-1), (1, 0)).flip(-1)
    energy = totals[..., :1]
    near = totals[:, 2:] + energy[:, 1:-1] - totals[:, 1:-1]
    far = totals[:, 1:-1] + energy[:, :-2] - totals[:, :-2]
    lagged = torch.cat([near, far[..., 1:]], dim=-1)
    energy = energy[:, 2:]
    difference = (energy + lagged - 2 * correlation).clamp_min(0.0)

    frames = difference.shape[1] - 3
    window = difference[:, 1 : 1 + frames] + difference[:, 2 : 2 + frames]
    window = window + weights[0] * difference[:, 3:] + weights[3] * difference[:, :frames]
    power = sum(energy[:, b : b + frames] for b in range(4)) * (RELATIVE_NOISE / (4 * hop))
    window = (window * inverse_length + power + ABSOLUTE_NOISE)[..., 1:]
    normalised: Tensor = window / (window.cumsum(-1) * inverse_lag)
    return normalised


def _pitch_yin(
    audio: Tensor,
    state: Tensor,
    sample_rate: int,
    hop: int,
    f0_min: float,
    f0_max: float,
    threshold: float,
    voicing_threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    search = lags(sample_rate, hop, f0_min, f0_max)
    past = torch.cat([state, audio], dim=1)
    difference = _normalised_difference(past, sample_rate, hop)
    here = difference[..., search.low - 1 : search.high]
    before = difference[..., search.low - 2 : search.high - 1]
    after = functional.pad(difference, (0, 1), value=float("inf"))[..., search.low : search.high + 1]

    dip = (here < before) & (here <= after)
    cost = torch.where(dip, here + _octave_cost(search, here.dtype, here.device), NO_DIP)
    near = cost <= cost.amin(-1, keepdim=True) + threshold
    pick = near.to(torch.uint8).argmax(-1)
    left, depth, right = (v.gather(-1, pick[..., None])[..., 0] for v in (before, here, after))
    right = torch.where(right.isfinite(), right, left)
    curvature = left - 2 * depth + right
    offset = torch.where(
        curvature > 0, 0.5 * (left - right) / torch.where(curvature > 0, curvature, 1.0), 0.0
    )
    f0 = (sample_rate / (search.low + pick + offset.clamp(-0.5, 0.5))).clamp(f0_min, f0_max)
    periodicity = (1 - depth).clamp(0.0, 1.0)
    f0 = torch.where(periodicity >= voicing_threshold, f0, 0.0)
    return f0, periodicity, past[:, past.shape[1] - state.shape[1] :].contiguous()


@torch.library.custom_op("autovoice::pitch_yin", mutates_args=())
def pitch_yin_op(
    audio: Tensor,
    state: Tensor,
    sample_rate: int,
    hop: int,
    f0_min: float,
    f0_max: float,
    threshold: float,
    voicing_threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `pitch_yin`, as one node of an exported graph."""
    return _pitch_yin(audio, state, sample_rate, hop, f0_min, f0_max, threshold, voicing_threshold)


@pitch_yin_op.register_fake
def _(
    audio: Tensor,
    state: Tensor,
    sample_rate: int,
    hop: int,
    f0_min: float,
    f0_max: float,
    threshold: float,
    voicing_threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    f0 = audio.new_empty(audio.shape[0], audio.shape[1] // hop)
    return f0, torch.empty_like(f0), torch.empty_like(state)
