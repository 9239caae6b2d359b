"""PitchYin in NumPy float64: the definition.

The method is YIN (de Cheveigne and Kawahara, "YIN, a fundamental frequency estimator for speech and
music", JASA 111(4), 2002) with four changes: the two windows of the difference function are centred on one
instant for every lag; a prefilter takes away offset, rumble and what lies above the pitch range; a
regulariser keeps silence unvoiced; and the pick compares every dip with the best one, where YIN compares it
with a fixed threshold, so it holds in noise.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autovoice_plugins.checks import require_shape, require_whole_blocks
from autovoice_plugins.geometry import F0_MAX, F0_MIN, HOP, PITCH_BLOCKS_OF_STATE, SAMPLE_RATE

THRESHOLD = 0.05
"""Of the dips whose cost is within this of the cheapest, the one at the shortest lag is taken."""

OCTAVE_COST = 0.01
"""What a dip pays for every octave below the highest pitch. With the threshold it settles which of the many
dips of a periodic sound is the period: smaller favours octaves too low in noise, larger too high."""

VOICING_THRESHOLD = 0.6
"""Frames less periodic than this are unvoiced."""

RELATIVE_NOISE = 1e-5
"""Part of the window's power that is added to every difference: far above the rounding of float32."""

ABSOLUTE_NOISE = 1e-7
"""Power (full scale squared) that is added to every difference: -70 dB, so a noise floor is unvoiced."""

LOWPASS_SECONDS = 1.25e-3
"""Length of the prefilter's smoothing: its first zero lies at 1.6 kHz, its delay is 0.6 ms. A missing
fundamental is still found up to some 300 Hz."""


class Lags(NamedTuple):
    """The lags PitchYin measures and searches, in samples."""

    longest: int
    """Lags 0..longest are measured: two hops."""
    low: int
    """Shortest lag searched."""
    high: int
    """Longest lag searched."""


def lags(sample_rate: int, hop: int, f0_min: float, f0_max: float) -> Lags:
    """Returns the lags for a pitch range.

    Raises:
        ValueError: The range is empty, or its periods do not fit between one sample and two hops.
    """
    if not 0 < f0_min < f0_max:
        raise ValueError(f"f0_min={f0_min} and f0_max={f0_max} Hz are not a range; give 0 < f0_min < f0_max.")
    low, high = math.floor(sample_rate / f0_max), math.ceil(sample_rate / f0_min)
    if low < 2 or high > 2 * hop:
        raise ValueError(
            f"The pitch range {f0_min} to {f0_max} Hz has periods of {low} to {high} samples, outside "
            f"2 to {2 * hop} (two hops); choose a range between {sample_rate / (2 * hop):g} and "
            f"{sample_rate / 2:g} Hz."
        )
    return Lags(2 * hop, low, high)


NO_DIP = 100.0
"""A cost above that of any dip. Where there is no dip at all, every lag costs this and the first is taken."""


def octave_cost(search: Lags) -> NDArray[np.float64]:
    """Returns the cost of a dip's lag, low to high, [high - low + 1]."""
    octaves: NDArray[np.float64] = np.log2(np.arange(search.low, search.high + 1) / search.low)
    return OCTAVE_COST * octaves


def prefilter(sample_rate: int, hop: int) -> NDArray[np.float64]:
    """Returns the prefilter's impulse response, at most `hop + 1` samples.

    A raised-cosine smoothing weakens the aperiodic upper half of the spectrum; subtracting a moving
    average of nearly one hop takes away offset and rumble. A periodic signal stays periodic.
    """
    length = max(1, round(LOWPASS_SECONDS * sample_rate))
    smoothing = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
    smoothing /= smoothing.sum()
    span = hop + 2 - length
    average = np.full(span, 1.0 / span)
    kernel = -np.convolve(smoothing, average)
    kernel[:length] += smoothing
    return kernel


def block_weights(hop: int) -> NDArray[np.float64]:
    """Returns the weight [4, 2 hop + 1] of the last four blocks (newest first) at each lag.

    With them the samples compared at any lag are centred on the middle of the five-block window: at two
    hops of lag the three newest blocks meet the three oldest; at one hop the second and third newest
    meet their neighbours; at lag zero blocks two to four meet themselves; linear in between.
    """
    u = np.arange(2 * hop + 1) / hop
    ones = np.ones_like(u)
    return np.stack([np.maximum(u - 1, 0), ones, ones, np.maximum(1 - u, 0)])


def normalised_difference(audio: NDArray[np.float64], sample_rate: int, hop: int) -> NDArray[np.float64]:
    """Returns the cumulative-mean-normalised difference [B, F, 2 hop + 1] (index 0 is 1).

    Args:
        audio: [B, (F + 6) hop]: the state, then the new samples.
        sample_rate: Samples per second.
        hop: Samples per frame.
    """
    longest = 2 * hop
    kernel = prefilter(sample_rate, hop)
    smooth = np.stack([np.convolve(row, kernel)[hop : audio.shape[1]] for row in audio])

    # Per block: sum over its samples m of (y[m] - y[m - l])^2, l = 0..2 hop, by correlation.
    spans = np.lib.stride_tricks.sliding_window_view(smooth, 3 * hop, axis=1)[:, ::hop]
    newest = np.where(np.arange(3 * hop) < longest, 0.0, spans)
    spectrum = np.fft.rfft(newest) * np.conj(np.fft.rfft(spans))
    correlation = np.fft.irfft(spectrum, 3 * hop)[..., : longest + 1]
    totals = np.concatenate([np.zeros_like(spans[..., :1]), np.cumsum(spans**2, axis=-1)], axis=-1)
    first = totals[..., longest - np.arange(longest + 1)]
    last = totals[..., 3 * hop - np.arange(longest + 1)]
    energy = totals[..., -1:] - totals[..., longest : longest + 1]
    difference = np.maximum(energy + (last - first) - 2 * correlation, 0.0)

    weights = block_weights(hop)
    frames = difference.shape[1] - 3
    window = sum(weights[b] * difference[:, 3 - b : 3 - b + frames] for b in range(4))
    window = window / (hop * weights.sum(axis=0))
    power = sum(energy[:, 3 - b : 3 - b + frames] for b in range(4)) / (4 * hop)
    window += RELATIVE_NOISE * power + ABSOLUTE_NOISE
    mean = np.cumsum(window[..., 1:], axis=-1) / np.arange(1, longest + 1)
    return np.concatenate([np.ones_like(mean[..., :1]), window[..., 1:] / mean], axis=-1)


def pick_pitch(
    difference: NDArray[np.float64],
    *,
    sample_rate: int,
    hop: int,
    f0_min: float,
    f0_max: float,
    threshold: float,
    voicing_threshold: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns F0 and periodicity, [B, F] each, of a normalised difference [B, F, 2 hop + 1].

    A dip is lower than the lag before it and no higher than the lag after it. Near-ties: where two dips
    differ in cost by the threshold almost exactly, or a periodicity equals the voicing threshold, rounding
    decides, and another implementation may choose the other one.
    """
    search = lags(sample_rate, hop, f0_min, f0_max)
    here = difference[..., search.low : search.high + 1]
    before = difference[..., search.low - 1 : search.high]
    padded = np.concatenate([difference, np.full_like(difference[..., :1], np.inf)], axis=-1)
    after = padded[..., search.low + 1 : search.high + 2]

    dip = (here < before) & (here <= after)
    cost = np.where(dip, here + octave_cost(search), NO_DIP)
    pick = np.argmax(cost <= cost.min(axis=-1, keepdims=True) + threshold, axis=-1)
    left, depth, right = (np.take_along_axis(v, pick[..., None], -1)[..., 0] for v in (before, here, after))
    right = np.where(np.isfinite(right), right, left)
    curvature = left - 2 * depth + right
    offset = np.where(curvature > 0, 0.5 * (left - right) / np.where(curvature > 0, curvature, 1.0), 0.0)
    f0 = np.clip(sample_rate / (search.low + pick + np.clip(offset, -0.5, 0.5)), f0_min, f0_max)
    periodicity = np.clip(1 - depth, 0.0, 1.0)
    f0 = np.where(periodicity >= voicing_threshold, f0, 0.0)
    return f0, periodicity


def pitch_yin_reference(
    audio: NDArray[np.floating[Any]],
    state: NDArray[np.floating[Any]],
    *,
    sample_rate: int = SAMPLE_RATE,
    hop: int = HOP,
    f0_min: float = F0_MIN,
    f0_max: float = F0_MAX,
    threshold: float = THRESHOLD,
    voicing_threshold: float = VOICING_THRESHOLD,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Estimates the pitch of every frame; frame index j describes frame j - 2.

    Args:
        audio: Samples in [-1, 1], [B, hop F].
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
    require_shape("audio", audio, (None, None), f"[B, {hop} F]")
    require_whole_blocks("audio", audio.shape[1], hop)
    size = PITCH_BLOCKS_OF_STATE * hop
    require_shape("state", state, (audio.shape[0], size), f"[{audio.shape[0]}, {size}]")
    past = np.concatenate([state, audio], axis=1).astype(np.float64)
    f0, periodicity = pick_pitch(
        normalised_difference(past, sample_rate, hop),
        sample_rate=sample_rate,
        hop=hop,
        f0_min=f0_min,
        f0_max=f0_max,
        threshold=threshold,
        voicing_threshold=voicing_threshold,
    )
    return f0, periodicity, past[:, -size:]
