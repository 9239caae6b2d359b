"""HarmonicSource in PyTorch, and as the custom op `torch.ops.autovoice.harmonic_source` for export."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autovoice_plugins.checks import require_shape
from autovoice_plugins.exporting import is_exporting
from autovoice_plugins.geometry import HARMONIC_SOURCE_STATE_SIZE, HOP, PHASE_GRID, SAMPLE_RATE
from autovoice_plugins.harmonic_source.reference import (
    SINE_AMPLITUDE,
    SMALLEST_PHASE,
    UNVOICED_NOISE,
    VOICED_NOISE,
    require_waveform,
)


def harmonic_source(
    f0: Tensor,
    state: Tensor,
    noise: Tensor | None = None,
    *,
    sample_rate: int = SAMPLE_RATE,
    hop: int = HOP,
    waveform: str = "pulse",
) -> tuple[Tensor, Tensor]:
    """Turns pitch into an excitation whose phase never jumps. Has no gradient; see the reference.

    Args:
        f0: Hz, 0 where unvoiced, below half of Nyquist, [B, F], float32.
        state: Previous f0 and phase in cycles, [B, 2]; zeros at the start.
        noise: Unit-variance noise for `sine`, [B, hop F].
        sample_rate: Samples per second.
        hop: Samples per frame.
        waveform: "pulse" or "sine".

    Returns:
        Excitation, [B, hop F]; the next state, [B, 2].

    Raises:
        ValueError: A shape or the waveform is wrong.
    """
    require_waveform(waveform, noise is not None)
    if is_exporting():
        return torch.ops.autovoice.harmonic_source(f0, state, noise, sample_rate, hop, waveform)  # type: ignore[no-any-return]
    require_shape("f0", f0, (None, None), "[B, F]")
    batch, frames = f0.shape
    require_shape("state", state, (batch, HARMONIC_SOURCE_STATE_SIZE), f"[{batch}, 2]")
    if noise is not None:
        require_shape("noise", noise, (batch, frames * hop), f"[{batch}, {frames * hop}]")
    with torch.no_grad():
        return _harmonic_source(f0, state, noise, sample_rate, hop, waveform)


def _phases(start: Tensor, end: Tensor, phase: Tensor, sample_rate: int, hop: int) -> tuple[Tensor, Tensor]:
    """Returns the phase at the start of every frame, [B, F], and after the last, [B, 1], float32 cycles."""
    rate = hop / (2 * sample_rate)
    advance = torch.round((start.double() + end.double()) * rate * PHASE_GRID) / PHASE_GRID
    total = phase.double() + advance.cumsum(1)
    after = (total - total.floor()).to(torch.float32)
    return torch.cat([phase, after[:, :-1]], dim=1), after[:, -1:]


def _harmonic_source(
    f0: Tensor, state: Tensor, noise: Tensor | None, sample_rate: int, hop: int, waveform: str
) -> tuple[Tensor, Tensor]:
    batch = f0.shape[0]
    if waveform == "sine":
        assert noise is not None
        phase_start, phase_end = _phases(f0, f0, state[:, 1:], sample_rate, hop)
        steps = torch.arange(1, hop + 1, dtype=torch.float32, device=f0.device)
        pitch = f0[..., None]
        voiced = pitch > 0
        phase = phase_start[..., None] + pitch * (steps / sample_rate)
        sine = torch.sin((phase - phase.round()) * (2 * math.pi))
        hiss = torch.where(voiced, VOICED_NOISE, UNVOICED_NOISE) * noise.reshape(batch, -1, hop)
        excitation = torch.where(voiced, SINE_AMPLITUDE * sine, 0.0) + hiss
        return excitation.reshape(batch, -1), torch.cat([torch.zeros_like(phase_end), phase_end], dim=1)

    before = torch.cat([state[:, :1], f0[:, :-1]], dim=1)
    start, end = torch.where(before > 0, before, f0), torch.where(f0 > 0, f0, before)
    phase_start, phase_end = _phases(start, end, state[:, 1:], sample_rate, hop)
    steps = torch.arange(hop, dtype=torch.float32, device=f0.device)
    start, glide = start[..., None], (end - start)[..., None]
    # Wrapped to the nearest pulse first, the sum below is almost exact where the pulse is steep.
    phase = (phase_start - phase_start.round())[..., None] + start * (steps / sample_rate)
    phase = phase + glide * (steps.square() / (2 * hop * sample_rate))
    phase = phase - phase.round()
    phase = torch.where(phase.abs() < SMALLEST_PHASE, SMALLEST_PHASE, phase)
    pitch = start + glide * (steps / hop)
    voiced = pitch > 0
    x = (sample_rate / 2) / torch.where(voiced, pitch, 1.0)
    top = x.floor()
    turn = top * phase
    turn = (turn - turn.round()) * (2 * math.pi)
    cosines = 0.5 * (turn.sin() / (math.pi * phase).tan() - 1) + (x - top - 0.5) * turn.cos()
    excitation = torch.where(voiced, (2 / x).sqrt() * cosines, 0.0)
    return excitation.reshape(batch, -1), torch.cat([f0[:, -1:], phase_end], dim=1)


@torch.library.custom_op("autovoice::harmonic_source", mutates_args=())
def harmonic_source_op(
    f0: Tensor, state: Tensor, noise: Tensor | None, sample_rate: int, hop: int, waveform: str
) -> tuple[Tensor, Tensor]:
    """The same as `harmonic_source`, as one node of an exported graph."""
    return _harmonic_source(f0, state, noise, sample_rate, hop, waveform)


@harmonic_source_op.register_fake
def _(
    f0: Tensor, state: Tensor, noise: Tensor | None, sample_rate: int, hop: int, waveform: str
) -> tuple[Tensor, Tensor]:
    return f0.new_empty(f0.shape[0], f0.shape[1] * hop), torch.empty_like(state)
