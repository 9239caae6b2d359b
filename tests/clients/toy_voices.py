"""Imported voices with the wiring of RVC ones, small enough that what they need to hear is known exactly.

A voice of number v at rate R makes of 16 kHz audio, per sample of its output:
`0.1 (v + 1) (speaker + 1) * source + 0.1 * sine + 0.01 * noise + 0.1 (index + 2 protect + 4 mix) * level`.
The source is brought to R by a symmetric filter of 16 samples to each side, so that nothing moves. `level` is
the mean of 8 frames of magnitudes before a frame, its own, and 4 after: what a window must hear, to the
sample. The sine has the pitch 100 + 2000 `level` Hz, rounded, and the phase that the contract of windows
prescribes. The noise is a table read at absolute positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from toy_repository import make_model, write_config

RATE = 16_000
FRAME = 160
GRID = 320
LEFT = 8 * FRAME
RIGHT = 4 * FRAME
HALF = 16  # samples that the filter hears to each side
NOISE = np.random.default_rng(7).standard_normal(7919).astype(np.float32)
FRAMES_OF = np.array([0, -1, FRAME])
TYPES = {TensorProto.FLOAT: "TYPE_FP32", TensorProto.INT64: "TYPE_INT64", TensorProto.DOUBLE: "TYPE_FP64"}
INT64S = dict.fromkeys(("SPEAKER_ID", "FIRST_FRAME", "ANCHOR_FRAME"), "TYPE_INT64")
SETTINGS = {name: [1] for name in ("SPEAKER_ID", "PITCH_SHIFT", "INDEX_RATE", "PROTECT", "RMS_MIX")}
PLACE = {name: [1] for name in ("FIRST_FRAME", "ANCHOR_FRAME", "ANCHOR_PHASE")}

PAD = """(float[B, T] SOURCE_AUDIO)
  => (float[B, P] AUDIO, int64[B, 1] FIRST_FRAME, int64[B, 1] ANCHOR_FRAME, float[B, 1] ANCHOR_PHASE) {
  shape = Shape(SOURCE_AUDIO)
  batch = Slice(shape, k0, k1)
  length = Slice(shape, k1, k2)
  negative = Neg(length)
  tail = Mod(negative, grid)
  pads = Concat <axis = 0> (k0, k0, k0, tail)
  AUDIO = Pad(SOURCE_AUDIO, pads)
  column = Concat <axis = 0> (batch, k1)
  FIRST_FRAME = Expand(k0, column)
  ANCHOR_FRAME = Expand(k0, column)
  ANCHOR_PHASE = Expand(nothing, column)
}"""
CONTENT = """(float[B, P] AUDIO) => (double[B, F] LEVEL) {
  framed = Reshape(AUDIO, frames_of)
  size = Abs(framed)
  precise = Cast <to = 11> (size)
  mean = ReduceMean <keepdims = 0> (precise, k2)
  padded = Pad(mean, around)
  sums = CumSum(padded, k1)
  later = Slice(sums, k13, huge, k1)
  earlier = Slice(sums, k0, m13, k1)
  total = Sub(later, earlier)
  LEVEL = Div(total, thirteen)
}"""
PITCH = """(double[B, F] LEVEL, float[B, 1] PITCH_SHIFT) => (float[B, F] F0) {
  scaled = Mul(LEVEL, two_thousand)
  raised = Add(scaled, hundred)
  whole = Round(raised)
  single = Cast <to = 1> (whole)
  octaves = Div(PITCH_SHIFT, twelve)
  ratio = Pow(two, octaves)
  shifted = Mul(single, ratio)
  voiced = Greater(LEVEL, threshold)
  F0 = Where(voiced, shifted, nothing)
}"""
SYNTHESIZER = """(float[B, P] AUDIO, double[B, F] LEVEL, float[B, F] F0, int64[B, 1] SPEAKER_ID,
    float[B, 1] INDEX_RATE, float[B, 1] PROTECT, float[B, 1] RMS_MIX, int64[B, 1] FIRST_FRAME,
    int64[B, 1] ANCHOR_FRAME, float[B, 1] ANCHOR_PHASE) => (float[B, M] MADE) {
  channel = Unsqueeze(AUDIO, k1)
  phases = Conv <pads = [16, 16]> (channel, filters)
  turned = Transpose <perm = [0, 2, 1]> (phases)
  dense = Reshape(turned, flat_of)
  same = Slice(dense, k0, huge, k1, stride)
  number = Cast <to = 1> (SPEAKER_ID)
  louder = Add(number, one)
  speaker_gain = Mul(louder, gain)
  loud = Mul(same, speaker_gain)

  f0 = Cast <to = 11> (F0)
  cycles = Mul(f0, frame_seconds)
  fine = Mul(cycles, phase_grid)
  steps_made = Round(fine)
  advance = Div(steps_made, phase_grid)
  reached = CumSum <exclusive = 1> (advance, k1)
  at_anchor = GatherElements <axis = 1> (reached, ANCHOR_FRAME)
  relative = Sub(reached, at_anchor)
  anchor = Cast <to = 11> (ANCHOR_PHASE)
  absolute = Add(relative, anchor)
  turns = Floor(absolute)
  start = Sub(absolute, turns)
  start_single = Cast <to = 1> (start)
  start_column = Unsqueeze(start_single, k2)
  f0_column = Unsqueeze(F0, k2)
  moved = Mul(f0_column, seconds_within)
  phase = Add(start_column, moved)
  angle = Mul(phase, two_pi)
  wave = Sin(angle)
  voiced = Greater(f0_column, nothing)
  heard = Where(voiced, wave, nothing)
  sine_flat = Reshape(heard, flat_of)
  sine = Mul(sine_flat, tenth)

  made_shape = Shape(sine)
  made = Slice(made_shape, k1, k2)
  made_scalar = Squeeze(made)
  within = Range(zero_index, made_scalar, one_index)
  first = Mul(FIRST_FRAME, frame_out)
  position = Add(first, within)
  place = Mod(position, table_size)
  noise = Gather(table, place)
  hiss = Mul(noise, hundredth)

  protect = Mul(PROTECT, two)
  mix = Mul(RMS_MIX, four)
  some = Add(INDEX_RATE, protect)
  more = Add(some, mix)
  weight = Mul(more, tenth)
  level = Cast <to = 1> (LEVEL)
  level_column = Unsqueeze(level, k2)
  held = Expand(level_column, row_out)
  level_flat = Reshape(held, flat_of)
  bias = Mul(level_flat, weight)

  a = Add(loud, sine)
  b = Add(a, hiss)
  MADE = Add(b, bias)
}"""
TRIM = """(float[B, M] MADE, float[B, T] SOURCE_AUDIO) => (float[B, N] CONVERTED_AUDIO) {
  shape = Shape(SOURCE_AUDIO)
  length = Slice(shape, k1, k2)
  scaled = Mul(length, rate_out)
  longer = Add(scaled, almost_rate)
  stop = Div(longer, rate_in)
  CONVERTED_AUDIO = Slice(MADE, k0, stop, k1)
}"""


def build_toy_voices(root: Path, voices: Mapping[str, int], **parameters: str) -> Path:
    """Write voices under `root`, sharing all models but the synthesizers, as real ones do.

    Args:
        root: a repository, which may hold other models.
        voices: output rate by name, Hz; the first has number 0.
        parameters: in the place of the usual ones.
    """
    _write(root, "toy_pad", PAD, {"grid": np.array([GRID])})
    scale = {"thirteen": np.array([13.0])}
    around = {"around": np.array([0, 9, 0, 4]), "k13": np.array([13]), "m13": np.array([-13])}
    _write(root, "toy_content", CONTENT, {"frames_of": FRAMES_OF, **scale, **around})
    single = {"two": 2.0, "twelve": 12.0}
    double = {"two_thousand": 2000.0, "hundred": 100.0, "threshold": 0.005}
    _write(
        root,
        "toy_pitch",
        PITCH,
        {name: np.array([value], np.float32) for name, value in single.items()}
        | {name: np.array([value]) for name, value in double.items()},
    )
    for number, (name, rate) in enumerate(voices.items()):
        _write_voice(root, name, number, rate, parameters)
    return root


def _write_voice(root: Path, name: str, number: int, rate: int, parameters: Mapping[str, str]) -> None:
    up, down = np.array([rate, RATE]) // np.gcd(rate, RATE)
    out = rate // 100
    index = {"stride": down, "frame_out": out, "table_size": NOISE.size, "rate_out": rate}
    index |= {"almost_rate": RATE - 1, "rate_in": RATE}
    constants = {key: np.array([value], np.int64) for key, value in index.items()}
    synthesis: dict[str, np.ndarray] = {
        **constants,
        "zero_index": np.array(0),
        "one_index": np.array(1),
        "row_out": np.array([1, 1, out]),
        "filters": _filters(int(up)),
        "gain": np.array([0.1 * (number + 1)], np.float32),
        "seconds_within": (np.arange(1, out + 1) / rate).astype(np.float32),
        "table": NOISE,
        "frame_seconds": np.array([0.01]),
        "phase_grid": np.array([2.0**24]),
    }
    for key, value in {"one": 1, "two": 2, "four": 4, "tenth": 0.1, "two_pi": 2 * np.pi}.items():
        synthesis[key] = np.array([value], np.float32)
    _write(root, f"{name}_synthesizer", SYNTHESIZER, synthesis)
    trim = f"toy_trim_{rate}"
    if not (root / trim).exists():
        _write(root, trim, TRIM, constants)

    described = {
        "family": "rvc",
        "version": "v2",
        "sample_rate": str(RATE),
        "output_sample_rate": str(rate),
        "frame_samples": str(GRID),
        "speakers": "3",
        "default_speaker": "1",
        "default_index_rate": "0.75",
        "default_protect": "0.25",
        "default_rms_mix": "0.5",
        "has_f0": "1",
        "has_index": "1",
        "context_left_samples": str(LEFT),
        "context_right_samples": str(RIGHT),
        **parameters,
    }
    offline, window = _steps(name, trim)
    for folder, inputs, outputs, steps in (
        (name, {"SOURCE_AUDIO": [-1], **SETTINGS}, {"CONVERTED_AUDIO": [-1]}, offline),
        (
            f"{name}_window",
            {"SOURCE_AUDIO": [-1], **SETTINGS, **PLACE},
            {"CONVERTED_AUDIO": [-1], "F0": [-1]},
            window,
        ),
    ):
        write_config(root / folder, inputs, outputs, steps=steps, types=INT64S, parameters=described)


Steps = Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]]


def _steps(name: str, trim: str) -> tuple[Steps, Steps]:
    """The ensembles for whole sources and for windows."""

    def stages(audio: str, made: str) -> Steps:
        own = {key: key for key in (*SETTINGS, *PLACE) if key != "PITCH_SHIFT"}
        return [
            ("toy_content", {"AUDIO": audio}, {"LEVEL": "level"}),
            ("toy_pitch", {"LEVEL": "level", "PITCH_SHIFT": "PITCH_SHIFT"}, {"F0": "F0"}),
            (f"{name}_synthesizer", {"AUDIO": audio, "LEVEL": "level", "F0": "F0", **own}, {"MADE": made}),
        ]

    pad = ("toy_pad", {"SOURCE_AUDIO": "SOURCE_AUDIO"}, {"AUDIO": "padded", **{key: key for key in PLACE}})
    trimmed = (
        trim,
        {"MADE": "made", "SOURCE_AUDIO": "SOURCE_AUDIO"},
        {"CONVERTED_AUDIO": "CONVERTED_AUDIO"},
    )
    return [pad, *stages("padded", "made"), trimmed], stages("SOURCE_AUDIO", "CONVERTED_AUDIO")


def _filters(up: int) -> np.ndarray:
    """Interpolation to `up` times the rate as one filter per phase, [up, 1, 2 HALF + 1]."""
    taps = np.arange(-HALF, HALF + 1)
    distance = taps[np.newaxis] - np.arange(up)[:, np.newaxis] / up
    window = np.cos(np.pi * np.clip(distance / (HALF + 1), -0.5, 0.5)) ** 2
    return (np.sinc(distance) * window)[:, np.newaxis].astype(np.float32)


def _write(root: Path, name: str, body: str, constants: Mapping[str, np.ndarray]) -> None:
    model = make_model(name, body, constants)
    path = root / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(model, path)

    def dims(values: Sequence[onnx.ValueInfoProto]) -> dict[str, list[int]]:
        return {
            value.name: [axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim[1:]]
            for value in values
        }

    types = {
        value.name: TYPES[value.type.tensor_type.elem_type]
        for value in (*model.graph.input, *model.graph.output)
    }
    write_config(root / name, dims(model.graph.input), dims(model.graph.output), types=types)


def expected_voice(
    source: np.ndarray,
    number: int,
    rate: int,
    shift: float = 0.0,
    settings: tuple[int, float, float, float] = (1, 0.75, 0.25, 0.5),
) -> np.ndarray:
    """What a voice makes of 16 kHz audio [T] at its own rate, in float64.

    Args:
        source: what is converted.
        number: the voice's.
        rate: the voice's, Hz.
        shift: semitones.
        settings: speaker, index rate, protect, mix of loudness.
    """
    speaker, *weights = settings
    out = rate // 100
    audio = np.pad(source.astype(np.float64), (0, -source.size % GRID))
    magnitudes = np.abs(audio).reshape(-1, FRAME).mean(axis=1)
    padded = np.pad(magnitudes, (8, 4))
    level = np.array([padded[frame : frame + 13].sum() / 13 for frame in range(magnitudes.size)])
    f0 = np.where(level > 0.005, np.round(100 + 2000 * level) * 2 ** (shift / 12), 0.0)
    f0 = f0.astype(np.float32).astype(np.float64)
    advance = np.round(f0 * 0.01 * 2**24) / 2**24
    start = np.concatenate(([0.0], np.cumsum(advance)[:-1])) % 1.0
    phase = start[:, np.newaxis] + f0[:, np.newaxis] * np.arange(1, out + 1) / rate
    sine = np.where(f0[:, np.newaxis] > 0, np.sin(2 * np.pi * phase), 0.0).reshape(-1)

    stuffed = np.pad(audio, HALF)
    up, down = np.array([rate, RATE]) // np.gcd(rate, RATE)
    phases = [np.convolve(stuffed, taps[0, ::-1], mode="valid") for taps in _filters(int(up))]
    same = np.stack(phases, axis=1).reshape(-1)[::down]
    made = 0.1 * (number + 1) * (speaker + 1) * same + 0.1 * sine
    made += 0.01 * np.resize(NOISE, made.size)
    made += 0.1 * np.dot([1, 2, 4], weights) * np.repeat(level, out)
    return made[: -(-source.size * rate // RATE)]
