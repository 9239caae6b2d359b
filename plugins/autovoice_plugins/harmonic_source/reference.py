"""HarmonicSource in NumPy float64: the definition.

`pulse` is a band-limited pulse train: all cosines below Nyquist with equal amplitude, in the closed form
of the Dirichlet kernel (Moorer, "The synthesis of complex audio spectra by means of discrete summation
formulas", JAES 24(9), 1976). `sine` is the source of the neural source-filter model (Wang, Takaki and
Yamagishi, ICASSP 2019) as RVC v2 uses it, with no overtones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovoice_plugins.checks import require_shape
from autovoice_plugins.geometry import HARMONIC_SOURCE_STATE_SIZE, HOP, PHASE_GRID, SAMPLE_RATE

WAVEFORMS = ("pulse", "sine")

SINE_AMPLITUDE = 0.1
VOICED_NOISE = 0.003
UNVOICED_NOISE = SINE_AMPLITUDE / 3

SMALLEST_PHASE = 1e-9
"""Cycles. Nearer to a pulse than this, the closed form is evaluated here, where it is its limit."""


def require_waveform(waveform: str, has_noise: bool) -> None:
    """Raises unless `waveform` is known and noise is given exactly when it is needed.

    Raises:
        ValueError: It is not.
    """
    if waveform not in WAVEFORMS:
        raise ValueError(f'waveform is "{waveform}"; use one of {", ".join(WAVEFORMS)}.')
    if (waveform == "sine") != has_noise:
        remedy = "needs noise [B, hop F]; pass it" if waveform == "sine" else "takes no noise; drop it"
        raise ValueError(f'waveform "{waveform}" {remedy}.')


def harmonic_source_reference(
    f0: NDArray[np.floating[Any]],
    state: NDArray[np.floating[Any]],
    noise: NDArray[np.floating[Any]] | None = None,
    *,
    sample_rate: int = SAMPLE_RATE,
    hop: int = HOP,
    waveform: str = "pulse",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Turns pitch into an excitation whose phase never jumps.

    The phase advances once a frame, in whole multiples of 2^-24 cycle, so it is the same to the bit for
    every chunking; after F frames it is within F 2^-25 cycle of the exact integral.

    `pulse`: the segment of index j glides linearly from f0[j - 1] to f0[j] (an unvoiced end takes the
    other end's pitch; with both unvoiced it is silent and the phase stays). With x = Nyquist / f0 and
    K = floor(x), it is sqrt(2 / x) times the sum of cos(2 pi k phase), k = 1..K, the topmost weighted
    by x - K, so harmonics fade in and out, and the power is 1 for every pitch.

    `sine`: f0 is held over its own segment; the result is 0.1 sin(2 pi phase) plus 0.003 noise where voiced,
    0.1 / 3 noise where not; the first sample of a segment already has one sample's advance.

    Args:
        f0: Hz, 0 where unvoiced, below half of Nyquist, [B, F].
        state: Previous f0 (unused by `sine`) and phase in cycles, [B, 2]; zeros at the start.
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
    require_shape("f0", f0, (None, None), "[B, F]")
    batch, frames = f0.shape
    require_shape("state", state, (batch, HARMONIC_SOURCE_STATE_SIZE), f"[{batch}, 2]")
    f0, state = f0.astype(np.float64), state.astype(np.float64)
    if waveform == "pulse":
        after = f0
        before = np.concatenate([state[:, :1], f0[:, :-1]], axis=1)
        start, end = np.where(before > 0, before, after), np.where(after > 0, after, before)
    else:
        start = end = f0

    advance = np.round((start + end) * (hop / (2 * sample_rate)) * PHASE_GRID) / PHASE_GRID
    total = state[:, 1:] + np.cumsum(advance, axis=1)
    phase_end = total - np.floor(total)
    phase_start = np.concatenate([state[:, 1:], phase_end[:, :-1]], axis=1)[..., None]
    start, end = start[..., None], end[..., None]

    if waveform == "sine":
        assert noise is not None
        require_shape("noise", noise, (batch, frames * hop), f"[{batch}, {frames * hop}]")
        steps = np.arange(1, hop + 1)
        sine = np.sin(2 * np.pi * (phase_start + start * (steps / sample_rate)))
        voiced = start > 0
        hiss = np.where(voiced, VOICED_NOISE, UNVOICED_NOISE) * noise.reshape(batch, frames, hop)
        excitation = np.where(voiced, SINE_AMPLITUDE * sine, 0.0) + hiss
        return excitation.reshape(batch, -1), np.stack([np.zeros(batch), phase_end[:, -1]], axis=1)

    steps = np.arange(hop)
    glide = end - start
    phase = phase_start + start * (steps / sample_rate) + glide * (steps**2 / (2 * hop * sample_rate))
    phase -= np.round(phase)
    phase = np.where(np.abs(phase) < SMALLEST_PHASE, SMALLEST_PHASE, phase)
    pitch = start + glide * (steps / hop)
    voiced = pitch > 0
    x = sample_rate / 2 / np.where(voiced, pitch, 1.0)
    top = np.floor(x)
    turn = top * phase
    cosines = 0.5 * (np.sin(2 * np.pi * turn) / np.tan(np.pi * phase) - 1)
    cosines += (x - top - 0.5) * np.cos(2 * np.pi * turn)
    excitation = np.where(voiced, np.sqrt(2 / x) * cosines, 0.0)
    return excitation.reshape(batch, -1), np.stack([f0[:, -1], phase_end[:, -1]], axis=1)
