"""A repository with the base family's wiring, small enough that what it computes is plain to see.

With voice e and shift p, source sample n becomes `source[n] * e[0] + p / 100 * F0[n // 240]`. The F0 of a
frame is 1000 times the mean absolute value of its 240 samples, or what SOURCE_F0 says. So every error of
alignment shows: audio is delayed by 600 samples through explicit state, F0 by two frames, and both must come
out over the right sample.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import numpy_helper, parser

from autovoice.repository.model_config import protobuf_module

FRAME = 240
LOOKAHEAD = 600
SIZE = 4

PARAMETERS = {
    "family": "toy",
    "sample_rate": "24000",
    "frame_samples": str(FRAME),
    "lookahead_samples": str(LOOKAHEAD),
    "embedding_size": str(SIZE),
    "identity_size": "2",
    "embedding_frames": "1",
}
CONSTANTS = {
    "k0": [0], "k1": [1], "k2": [2], "k3": [3], "frame": [FRAME], "last": [-1], "k839": [839], "k600": [600],
    "k480": [480],
    "k120": [120], "m600": [-600], "m480": [-480], "m120": [-120], "huge": [2**62], "frames_of": [0, -1,
    FRAME],
    "row": [1, 1, FRAME], "flat_of": [0, -1],
}  # fmt: skip
SCALARS = {"nothing": 0.0, "thousand": 1000.0, "hundredth": 0.01, "half": 0.5}

MODELS = {
    "pad_source": """(float[B, T] SOURCE_AUDIO)
  => (float[B, P] AUDIO, float[B, 600] DELAY_STATE, float[B, 480] PITCH_STATE,
      float[B, 120] SYNTHESIZER_STATE) {
  shape = Shape(SOURCE_AUDIO)
  batch = Slice(shape, k0, k1)
  length = Slice(shape, k1, k2)
  longer = Add(length, k839)
  frames = Div(longer, frame)
  padded = Mul(frames, frame)
  tail = Sub(padded, length)
  pads = Concat <axis = 0> (k0, k0, k0, tail)
  AUDIO = Pad(SOURCE_AUDIO, pads)
  delay_shape = Concat <axis = 0> (batch, k600)
  DELAY_STATE = Expand(nothing, delay_shape)
  pitch_shape = Concat <axis = 0> (batch, k480)
  PITCH_STATE = Expand(nothing, pitch_shape)
  synth_shape = Concat <axis = 0> (batch, k120)
  SYNTHESIZER_STATE = Expand(nothing, synth_shape)
}""",
    "pad_f0": """(float[B, F] SOURCE_F0, float[B, P] AUDIO) => (float[B, G] F0) {
  shape = Shape(AUDIO)
  samples = Slice(shape, k1, k2)
  frames = Div(samples, frame)
  have_shape = Shape(SOURCE_F0)
  have = Slice(have_shape, k1, k2)
  rest = Sub(frames, have)
  tail = Sub(rest, k2)
  pads = Concat <axis = 0> (k0, k2, k0, tail)
  F0 = Pad(SOURCE_F0, pads)
}""",
    "delay": """(float[B, T] AUDIO, float[B, 600] STATE_IN) => (float[B, U] DELAYED, float[B, 600] STATE_OUT)
    {
  joined = Concat <axis = 1> (STATE_IN, AUDIO)
  DELAYED = Slice(joined, k0, m600, k1)
  STATE_OUT = Slice(joined, m600, huge, k1)
}""",
    "pitch_extractor": """(float[B, T] AUDIO, float[B, 480] STATE_IN) => (float[B, F] F0, float[B, 480]
    STATE_OUT) {
  joined = Concat <axis = 1> (STATE_IN, AUDIO)
  late = Slice(joined, k0, m480, k1)
  STATE_OUT = Slice(joined, m480, huge, k1)
  framed = Reshape(late, frames_of)
  size = Abs(framed)
  mean = ReduceMean <keepdims = 0> (size, k2)
  F0 = Mul(mean, thousand)
}""",
    "synthesizer": """(float[B, T] DELAYED, float[B, F] F0, float[B, 4] EMBEDDING, float[B, 1] PITCH_SHIFT,
    float[B, 120] STATE_IN)
  => (float[B, U] AUDIO, float[B, 120] STATE_OUT) {
  gain = Slice(EMBEDDING, k0, k1, k1)
  loud = Mul(DELAYED, gain)
  column = Unsqueeze(F0, k2)
  held = Expand(column, row)
  flat = Reshape(held, flat_of)
  joined = Concat <axis = 1> (STATE_IN, flat)
  late = Slice(joined, k0, m120, k1)
  STATE_OUT = Slice(joined, m120, huge, k1)
  weight = Mul(PITCH_SHIFT, hundredth)
  hum = Mul(late, weight)
  AUDIO = Add(loud, hum)
}""",
    "trim_output": """(float[B, P] AUDIO, float[B, T] SOURCE_AUDIO) => (float[B, T] CONVERTED_AUDIO) {
  shape = Shape(SOURCE_AUDIO)
  length = Slice(shape, k1, k2)
  stop = Add(length, k600)
  CONVERTED_AUDIO = Slice(AUDIO, k600, stop, k1)
}""",
    "speaker_encoder": """(float[B, T] REFERENCE_AUDIO) => (float[B, 4] EMBEDDING) {
  size = Abs(REFERENCE_AUDIO)
  level = ReduceMean <keepdims = 1> (size, k1)
  ones = Div(level, level)
  long = Concat <axis = 1> (level, ones, ones, ones)
  norm = ReduceL2 <keepdims = 1> (long, k1)
  EMBEDDING = Div(long, norm)
}""",
    "target_pitch": """(float[B, 4] EMBEDDING) => (float[B, 1] MEDIAN_F0) {
  first = Slice(EMBEDDING, k0, k1, k1)
  MEDIAN_F0 = Mul(first, thousand)
}""",
}

_SYNTHESIS = {"DELAYED": "delayed", "F0": "f0", "EMBEDDING": "TARGET_EMBEDDING", "PITCH_SHIFT": "PITCH_SHIFT"}


def _offline(with_f0: bool) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    pitch: tuple[str, dict[str, str], dict[str, str]]
    if with_f0:
        pitch = ("pad_f0", {"SOURCE_F0": "SOURCE_F0", "AUDIO": "padded"}, {"F0": "f0"})
    else:
        pitch = ("pitch_extractor", {"AUDIO": "padded", "STATE_IN": "p0"}, {"F0": "f0"})
    states = {"DELAY_STATE": "d0", "PITCH_STATE": "p0", "SYNTHESIZER_STATE": "s0"}
    # Listed out of order on purpose: the engine has to find the order itself, as Triton does.
    return [
        (
            "trim_output",
            {"AUDIO": "made", "SOURCE_AUDIO": "SOURCE_AUDIO"},
            {"CONVERTED_AUDIO": "CONVERTED_AUDIO"},
        ),
        ("synthesizer", {**_SYNTHESIS, "STATE_IN": "s0"}, {"AUDIO": "made"}),
        pitch,
        ("delay", {"AUDIO": "padded", "STATE_IN": "d0"}, {"DELAYED": "delayed"}),
        ("pad_source", {"SOURCE_AUDIO": "SOURCE_AUDIO"}, {"AUDIO": "padded", **states}),
    ]


def _stream(with_f0: bool) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    synthesis = dict(_SYNTHESIS, F0="SOURCE_F0") if with_f0 else _SYNTHESIS
    steps = [
        ("delay_stream", {"AUDIO": "SOURCE_AUDIO"}, {"DELAYED": "delayed"}),
        ("synthesizer_stream", synthesis, {"AUDIO": "CONVERTED_AUDIO"}),
    ]
    return steps if with_f0 else [("pitch_extractor_stream", {"AUDIO": "SOURCE_AUDIO"}, {"F0": "f0"}), *steps]


def build_toy_repository(root: Path) -> Path:
    """Write the toy repository under `root`, streams as links to the offline files."""
    for name, body in MODELS.items():
        model = make_model(name, body)
        path = root / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        onnx.save(model, path)
        write_config(root / name, *_tensors(model.graph))
    for name in ("delay", "pitch_extractor", "synthesizer"):
        folder = root / f"{name}_stream"
        (folder / "1").mkdir(parents=True)
        os.symlink(f"../../{name}/1/model.onnx", folder / "1" / "model.onnx")
        inputs, outputs = _tensors(make_model(name, MODELS[name]).graph)
        state = inputs.pop("STATE_IN")
        del outputs["STATE_OUT"]
        write_config(folder, inputs, outputs, state=state)
    voice = {"SOURCE_AUDIO": [-1], "TARGET_EMBEDDING": [SIZE], "PITCH_SHIFT": [1]}
    for with_f0 in (False, True):
        inputs = {**voice, "SOURCE_F0": [-1]} if with_f0 else voice
        suffix = "_with_f0" if with_f0 else ""
        outputs = {"CONVERTED_AUDIO": [-1]}
        write_config(root / f"voice_conversion{suffix}", inputs, outputs, steps=_offline(with_f0))
        write_config(root / f"voice_conversion{suffix}_stream", inputs, outputs, steps=_stream(with_f0))
    return root


def make_model(name: str, body: str, constants: Mapping[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """Parse a model and give it the constants its text mentions, and `constants` of its own."""
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {name} {body}')
    words = {word for node in model.graph.node for word in node.input}
    known = {name: np.array(values, np.int64) for name, values in CONSTANTS.items()}
    known |= {name: np.array([value], np.float32) for name, value in SCALARS.items()}
    for constant, array in (known | dict(constants or {})).items():
        if constant in words:
            model.graph.initializer.append(numpy_helper.from_array(array, constant))
    onnx.checker.check_model(model)
    return model


def write_config(
    folder: Path,
    inputs: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Sequence[int]],
    *,
    state: Sequence[int] | None = None,
    steps: Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]] = (),
    types: Mapping[str, str] | None = None,
    parameters: Mapping[str, str] | None = None,
) -> None:
    """Write `folder/config.pbtxt` (float32 tensors where `types` does not say otherwise, batch up to 16)."""
    config: Any = protobuf_module().ModelConfig(name=folder.name, max_batch_size=16)
    for tensors, field in ((inputs, config.input), (outputs, config.output)):
        for name, dims in tensors.items():
            field.add(name=name, data_type=(types or {}).get(name, "TYPE_FP32"), dims=dims)
    if state is not None:
        config.sequence_batching.direct.SetInParent()
        kept = config.sequence_batching.state.add(
            input_name="STATE_IN", output_name="STATE_OUT", data_type="TYPE_FP32", dims=state
        )
        kept.initial_state.add(data_type="TYPE_FP32", dims=state, zero_data=True, name="zeros")
    if steps:
        config.platform = "ensemble"
        for model, input_map, output_map in steps:
            config.ensemble_scheduling.step.add(
                model_name=model, model_version=-1, input_map=input_map, output_map=output_map
            )
        for name, value in (PARAMETERS if parameters is None else parameters).items():
            config.parameters[name].string_value = value
        (folder / "1").mkdir(parents=True, exist_ok=True)
    else:
        config.backend = "onnxruntime"
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))


def _tensors(graph: onnx.GraphProto) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    def dims(value: onnx.ValueInfoProto) -> list[int]:
        return [axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim[1:]]

    return {value.name: dims(value) for value in graph.input}, {
        value.name: dims(value) for value in graph.output
    }


def expected_conversion(
    source: np.ndarray, gain: float, shift: float = 0.0, f0: np.ndarray | None = None
) -> np.ndarray:
    """What the toy makes of 24 kHz audio [T], in float64."""
    audio = source.astype(np.float64)
    frames = -(-audio.size // FRAME)
    if f0 is None:
        padded = np.pad(np.abs(audio), (0, frames * FRAME - audio.size))
        f0 = 1000 * padded.reshape(frames, FRAME).mean(axis=1)
    return audio * gain + shift / 100 * np.repeat(f0, FRAME)[: audio.size]
