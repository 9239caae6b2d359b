"""HarmonicSource as an ONNX model-local function of standard ops.

Phase advances are whole multiples of 2^-24 cycle, found and summed once a frame in INT64: an engine that
turns DOUBLE into FLOAT, as TensorRT does, would lose them. Samples inside a frame are float32.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, TensorProto

from autovoice_plugins.function_builder import AttributeValue, FunctionBuilder, scalar, with_plugin_attributes
from autovoice_plugins.geometry import HOP, PHASE_GRID, SAMPLE_RATE
from autovoice_plugins.harmonic_source.reference import (
    SINE_AMPLITUDE,
    SMALLEST_PHASE,
    UNVOICED_NOISE,
    VOICED_NOISE,
    require_waveform,
)

NAME = "HarmonicSource"
INPUTS = {"F0": False, "STATE_IN": False, "NOISE": True}
OUTPUTS = ("EXCITATION", "STATE_OUT")
ATTRIBUTES = {"sample_rate": SAMPLE_RATE, "hop": HOP, "waveform": "pulse"}

ZERO, ONE, TURN = scalar(0.0), scalar(1.0), scalar(2 * math.pi)


def harmonic_source_function(sample_rate: int, hop: int, waveform: str) -> FunctionProto:
    """Returns the function for these attributes; see the reference for what they mean.

    Raises:
        ValueError: The waveform is unknown.
    """
    require_waveform(waveform, waveform == "sine")
    b = FunctionBuilder()
    body = _pulse if waveform == "pulse" else _sine
    excitation, state = body(b, sample_rate, hop)
    attributes: dict[str, AttributeValue] = {"sample_rate": sample_rate, "hop": hop, "waveform": waveform}
    return b.function(
        NAME,
        list(INPUTS)[: 2 if waveform == "pulse" else 3],
        {"EXCITATION": excitation, "STATE_OUT": state},
        with_plugin_attributes(attributes),
    )


def _phases(b: FunctionBuilder, start: str, end: str, sample_rate: int, hop: int) -> tuple[str, str]:
    """Returns the wrapped phase at the start of every frame, [B, F, 1], and after the last, [B, 1].

    A float32 F0 from 1 Hz on is a whole multiple of 2^-24 Hz, so the advances are those of the reference;
    they can differ by one step below 2 Hz, where one may lie half-way between two steps.
    """

    def whole(value: str) -> str:
        return b.op("Cast", b.op("Mul", value, scalar(float(PHASE_GRID))), to=TensorProto.INT64)

    def integer(value: int) -> NDArray[np.int64]:
        return np.array(value, dtype=np.int64)

    share = Fraction(hop, 2 * sample_rate)
    cycles = b.op("Add", whole(start), whole(end))
    rounded = b.op("Mul", cycles, integer(2 * share.numerator))
    rounded = b.op("Add", rounded, integer(share.denominator))
    advance = b.op("Div", rounded, integer(2 * share.denominator))
    phase = b.slice("STATE_IN", 1, 2, 1)
    total = b.op("Add", b.op("CumSum", advance, integer(1)), whole(phase))
    after = b.op("Cast", b.op("Mod", total, integer(PHASE_GRID)), to=TensorProto.FLOAT)
    after = b.op("Mul", after, scalar(1 / PHASE_GRID))
    before = b.concat(phase, b.slice(after, 0, -1, 1), axis=1)
    return b.reshape(_wrapped(b, before), 0, 0, 1), b.slice(after, -1, None, 1)


def _wrapped(b: FunctionBuilder, cycles: str) -> str:
    return b.op("Sub", cycles, b.op("Round", cycles))


def _sine(b: FunctionBuilder, sample_rate: int, hop: int) -> tuple[str, str]:
    phase_start, phase_end = _phases(b, "F0", "F0", sample_rate, hop)
    pitch = b.reshape("F0", 0, 0, 1)
    steps = (np.arange(1, hop + 1) / sample_rate).astype(np.float32)
    phase = _wrapped(b, b.op("Add", phase_start, b.op("Mul", pitch, steps)))
    voiced = b.op("Greater", pitch, ZERO)
    gain = b.op("Where", voiced, scalar(SINE_AMPLITUDE), ZERO)
    hiss = b.op("Where", voiced, scalar(VOICED_NOISE), scalar(UNVOICED_NOISE))
    tone = b.op("Mul", gain, b.op("Sin", b.op("Mul", phase, TURN)))
    noise = b.op("Mul", hiss, b.reshape("NOISE", 0, -1, hop))
    state = b.concat(b.op("Mul", phase_end, ZERO), phase_end, axis=1)
    return b.reshape(b.op("Add", tone, noise), 0, -1), state


def _pulse(b: FunctionBuilder, sample_rate: int, hop: int) -> tuple[str, str]:
    before = b.concat(b.slice("STATE_IN", 0, 1, 1), b.slice("F0", 0, -1, 1), axis=1)
    start = b.op("Where", b.op("Greater", before, ZERO), before, "F0")
    end = b.op("Where", b.op("Greater", "F0", ZERO), "F0", before)
    phase_start, phase_end = _phases(b, start, end, sample_rate, hop)

    start, glide = b.reshape(start, 0, 0, 1), b.reshape(b.op("Sub", end, start), 0, 0, 1)
    steps = np.arange(hop)
    seconds = (steps / sample_rate).astype(np.float32)
    gliding = (steps**2 / (2 * hop * sample_rate)).astype(np.float32)
    phase = b.total(phase_start, b.op("Mul", start, seconds), b.op("Mul", glide, gliding))
    phase = _wrapped(b, phase)
    tiny = b.op("Less", b.op("Abs", phase), scalar(SMALLEST_PHASE))
    phase = b.op("Where", tiny, scalar(SMALLEST_PHASE), phase)

    pitch = b.op("Add", start, b.op("Mul", glide, (steps / hop).astype(np.float32)))
    voiced = b.op("Greater", pitch, ZERO)
    x = b.op("Div", scalar(sample_rate / 2), b.op("Where", voiced, pitch, ONE))
    top = b.op("Floor", x)
    turn = b.op("Mul", _wrapped(b, b.op("Mul", top, phase)), TURN)
    kernel = b.op("Div", b.op("Sin", turn), b.op("Tan", b.op("Mul", phase, scalar(math.pi))))
    kernel = b.op("Mul", b.op("Sub", kernel, ONE), scalar(0.5))
    fade = b.op("Sub", b.op("Sub", x, top), scalar(0.5))
    cosines = b.op("Add", kernel, b.op("Mul", fade, b.op("Cos", turn)))
    gain = b.op("Where", voiced, b.op("Sqrt", b.op("Div", scalar(2.0), x)), ZERO)
    state = b.concat(b.slice("F0", -1, None, 1), phase_end, axis=1)
    return b.reshape(b.op("Mul", gain, cosines), 0, -1), state
