"""PitchYin as an ONNX model-local function of standard ops.

Every block is correlated once with itself and the two blocks before it, by real DFT products of three hops;
a window is a sum of four such correlations. The DFT is taken about the middle of a block, where the even
part meets only cosines and the odd part only sines; the correlation does not see the shift.
"""

from __future__ import annotations

import numpy as np
from onnx import FunctionProto, TensorProto

from autovoice_plugins.function_builder import FunctionBuilder, scalar, with_plugin_attributes
from autovoice_plugins.geometry import F0_MAX, F0_MIN, HOP, PITCH_BLOCKS_OF_STATE, SAMPLE_RATE
from autovoice_plugins.pitch_yin.reference import (
    ABSOLUTE_NOISE,
    NO_DIP,
    RELATIVE_NOISE,
    THRESHOLD,
    VOICING_THRESHOLD,
    block_weights,
    lags,
    octave_cost,
    prefilter,
)

NAME = "PitchYin"
INPUTS = {"AUDIO": False, "STATE_IN": False}
OUTPUTS = ("F0", "PERIODICITY", "STATE_OUT")
ATTRIBUTES = {
    "sample_rate": SAMPLE_RATE,
    "hop": HOP,
    "f0_min": F0_MIN,
    "f0_max": F0_MAX,
    "threshold": THRESHOLD,
    "voicing_threshold": VOICING_THRESHOLD,
}


def pitch_yin_function(
    sample_rate: int, hop: int, f0_min: float, f0_max: float, threshold: float, voicing_threshold: float
) -> FunctionProto:
    """Returns the function for these attributes; see the reference for what they mean.

    Raises:
        ValueError: The pitch range is impossible, or hop is odd.
    """
    search = lags(sample_rate, hop, f0_min, f0_max)
    if hop % 2:
        raise ValueError(f"hop={hop} is odd; the ONNX function needs an even one.")
    b = FunctionBuilder()
    past = b.concat("STATE_IN", "AUDIO", axis=1)
    difference = _normalised_difference(b, b.reshape(past, 0, -1, hop), sample_rate, hop)

    # The first column is lag 1.
    here = b.slice(difference, search.low - 1, search.high, 2)
    before = b.slice(difference, search.low - 2, search.high - 1, 2)
    padded = b.op("Pad", difference, np.array([0, 0, 0, 0, 0, 1], dtype=np.int64), scalar(NO_DIP))
    after = b.slice(padded, search.low, search.high + 1, 2)
    dip = b.op("And", b.op("Less", here, before), b.op("LessOrEqual", here, after))
    cost = b.op("Add", here, octave_cost(search).astype(np.float32))
    cost = b.op("Where", dip, cost, scalar(NO_DIP))
    least = b.op("ReduceMin", cost, np.array([2], dtype=np.int64))
    near = b.op("LessOrEqual", cost, b.op("Add", least, scalar(threshold)))
    pick = b.op("ArgMax", b.op("Cast", near, to=TensorProto.INT32), axis=2)

    left, depth, right = (b.op("GatherElements", value, pick, axis=2) for value in (before, here, after))
    # Beyond the longest lag nothing is known: no refinement there.
    right = b.op("Where", b.op("Equal", right, scalar(NO_DIP)), left, right)
    curvature = b.op("Sub", b.op("Add", left, right), b.op("Add", depth, depth))
    curved = b.op("Greater", curvature, scalar(0.0))
    slope = b.op("Mul", b.op("Sub", left, right), scalar(0.5))
    offset = b.op("Div", slope, b.op("Where", curved, curvature, scalar(1.0)))
    offset = b.op("Where", curved, b.op("Clip", offset, scalar(-0.5), scalar(0.5)), scalar(0.0))
    lag = b.total(b.op("Cast", pick, to=TensorProto.FLOAT), offset, b.constant(scalar(search.low)))
    f0 = b.op("Clip", b.op("Div", scalar(sample_rate), lag), scalar(f0_min), scalar(f0_max))
    periodicity = b.op("Clip", b.op("Sub", scalar(1.0), depth), scalar(0.0), scalar(1.0))
    voiced = b.op("GreaterOrEqual", periodicity, scalar(voicing_threshold))
    f0 = b.op("Where", voiced, f0, scalar(0.0))
    state = b.slice(past, -PITCH_BLOCKS_OF_STATE * hop, None, 1)
    attributes = {
        "sample_rate": sample_rate,
        "hop": hop,
        "f0_min": f0_min,
        "f0_max": f0_max,
        "threshold": threshold,
        "voicing_threshold": voicing_threshold,
    }
    outputs = {"F0": b.reshape(f0, 0, -1), "PERIODICITY": b.reshape(periodicity, 0, -1), "STATE_OUT": state}
    return b.function(NAME, list(INPUTS), outputs, with_plugin_attributes(attributes))


def _normalised_difference(b: FunctionBuilder, blocks: str, sample_rate: int, hop: int) -> str:
    """Returns lags 1 .. 2 hop of the normalised difference, [B, F, 2 hop], of blocks [B, F + 6, hop]."""
    longest = 2 * hop
    smooth = _prefiltered(b, blocks, sample_rate, hop)
    correlation = _twice_correlation(b, smooth, hop)

    # remaining[l] is the energy of a block without its last l samples.
    keep = b.op("Less", np.arange(hop)[:, None], hop - np.arange(hop + 1))
    keep = b.op("Cast", keep, to=TensorProto.FLOAT)
    remaining = b.op("MatMul", b.op("Mul", smooth, smooth), keep)
    energy = b.slice(remaining, 0, 1, 2)
    lagged = b.op("Add", b.slice(remaining, 1, None, 1), b.slice(energy, 0, -1, 1))
    lagged = b.op("Sub", lagged, b.slice(remaining, 0, -1, 1))
    near, far = b.slice(b.slice(lagged, 1, None, 1), 1, None, 2), b.slice(lagged, 0, -1, 1)
    lagged = b.concat(near, b.slice(far, 1, None, 2), axis=2)
    energy = b.slice(energy, 2, None, 1)
    difference = b.op("Sub", b.op("Add", energy, lagged), correlation)
    difference = b.op("Max", difference, scalar(0.0))

    weights = block_weights(hop)[:, 1:]
    weights = (weights / (hop * weights.sum(axis=0))).astype(np.float32)
    newest_to_oldest = ((3, None), (2, -1), (1, -2), (0, -3))
    parts = [
        b.op("Mul", b.slice(difference, first, last, 1), weight)
        for (first, last), weight in zip(newest_to_oldest, weights, strict=True)
    ]
    power = b.total(*(b.slice(energy, first, last, 1) for first, last in newest_to_oldest))
    floor = b.op("Mul", power, scalar(RELATIVE_NOISE / (4 * hop)))
    window = b.total(*parts, b.op("Add", floor, scalar(ABSOLUTE_NOISE)))
    mean = b.op("CumSum", window, np.array(2, dtype=np.int64))
    mean = b.op("Mul", mean, (1 / np.arange(1, longest + 1)).astype(np.float32))
    return b.op("Div", window, mean)


def _prefiltered(b: FunctionBuilder, blocks: str, sample_rate: int, hop: int) -> str:
    """Returns all blocks but the first after the prefilter: a banded matrix over two blocks."""
    kernel = np.concatenate([[0.0], prefilter(sample_rate, hop), [0.0]]).astype(np.float32)
    tap = b.op("Sub", np.arange(hop + 1, 2 * hop + 1), np.arange(2 * hop)[:, None])
    tap = b.op("Clip", tap, np.array(0), np.array(len(kernel) - 1))
    matrix = b.op("Gather", kernel, tap)
    pairs = b.concat(b.slice(blocks, 0, -1, 1), b.slice(blocks, 1, None, 1), axis=2)
    return b.op("MatMul", pairs, matrix)


def _twice_correlation(b: FunctionBuilder, smooth: str, hop: int) -> str:
    """Returns twice the sum of y[m] y[m - l] over each block but the first two, lags 1 .. 2 hop."""
    size, half = 3 * hop, hop // 2
    frequencies = np.arange(size // 2 + 1)
    places = 2 * np.arange(half) - (hop - 1)
    left, right = b.slice(smooth, 0, half, 2), b.slice(smooth, -1, half - 1, 2, step=-1)
    # The spectrum of a block is c - i s.
    c = b.op("MatMul", b.op("Add", left, right), b.waves("cos", places, frequencies, 2 * size))
    s = b.op("MatMul", b.op("Sub", left, right), b.waves("sin", places, frequencies, 2 * size))
    (c0, c1, c2), (s0, s1, s2) = (
        [b.slice(v, start, end, 1) for start, end in ((2, None), (1, -1), (0, -2))] for v in (c, s)
    )
    # A block one hop earlier is turned by +k/3 of a turn, two hops by +2k/3, which is -k/3.
    turn = 2 * np.pi * (frequencies % 3) / 3
    cos, sin = np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)
    real = b.total(c0, b.op("Mul", b.op("Add", c1, c2), cos), b.op("Mul", b.op("Sub", s1, s2), sin))
    minus_imaginary = b.op(
        "Sub",
        b.op("Add", s0, b.op("Mul", b.op("Add", s1, s2), cos)),
        b.op("Mul", b.op("Sub", c1, c2), sin),
    )
    cross_real = b.op("Add", b.op("Mul", c0, real), b.op("Mul", s0, minus_imaginary))
    cross_minus_imaginary = b.op("Sub", b.op("Mul", s0, real), b.op("Mul", c0, minus_imaginary))

    weights = np.full((len(frequencies), 1), 4.0 / size, dtype=np.float32)
    weights[[0, -1]] /= 2
    shifts = np.arange(1, 2 * hop + 1)
    waves = [b.op("Mul", b.waves(f, frequencies, shifts, size), weights) for f in ("cos", "sin")]
    both = b.concat(cross_real, cross_minus_imaginary, axis=2)
    return b.op("MatMul", both, b.concat(*waves, axis=0))
