"""Releases that load in a second and whose conversions are known to the last bit.

Release N makes of source sample n `4 ** (N - 1) * source[n] + 2 ** -20 * (n + 600)`, offline in two
stages, each of which multiplies by `2 ** (N - 1)`, and live in one, whose state counts the samples: two
releases mixed, or a state that does not hold everything before, show in every sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import numpy_helper, parser

from autovoice.repository.model_config import protobuf_module

RATE = 24000
LOOKAHEAD = 600
SIZE = 4
SPEAKER = np.full(SIZE, 0.5, np.float32)
PARAMETERS = {
    "family": "base",
    "sample_rate": str(RATE),
    "frame_samples": "240",
    "lookahead_samples": str(LOOKAHEAD),
    "embedding_size": str(SIZE),
    "identity_size": "2",
    "embedding_frames": "1",
}
_INTEGERS = {"k0": 0, "k1": 1, "k600": LOOKAHEAD, "k601": LOOKAHEAD + 1, "huge": 2**62}
_STAGES = {
    "alone": """(float[B, T] SOURCE_AUDIO) => (float[B, T] LOUDER) {
  LOUDER = Mul(SOURCE_AUDIO, gain)
}""",
    "front": """(float[B, T] SOURCE_AUDIO, float[B, 4] TARGET_EMBEDDING, float[B, 1] PITCH_SHIFT)
  => (float[B, T] LOUDER) {
  LOUDER = Mul(SOURCE_AUDIO, gain)
}""",
    "back": """(float[B, T] LOUDER) => (float[B, T] CONVERTED_AUDIO) {
  shape = Shape(LOUDER)
  wanted = Slice(shape, k1, huge)
  length = Squeeze(wanted)
  count = Cast <to = 1> (length)
  places = Range(zero, count, one)
  late = Add(places, lookahead)
  ramp = Mul(late, small)
  loudest = Mul(LOUDER, gain)
  CONVERTED_AUDIO = Add(loudest, ramp)
}""",
    "live": """(float[B, T] SOURCE_AUDIO, float[B, 4] TARGET_EMBEDDING, float[B, 1] PITCH_SHIFT,
    float[B, 601] STATE_IN) => (float[B, U] CONVERTED_AUDIO, float[B, 601] STATE_OUT) {
  before = Slice(STATE_IN, k0, k600, k1)
  place = Slice(STATE_IN, k600, k601, k1)
  joined = Concat <axis = 1> (before, SOURCE_AUDIO)
  shape = Shape(SOURCE_AUDIO)
  wanted = Slice(shape, k1, huge)
  delayed = Slice(joined, k0, wanted, k1)
  kept = Slice(joined, wanted, huge, k1)
  length = Squeeze(wanted)
  count = Cast <to = 1> (length)
  steps = Range(zero, count, one)
  places = Add(place, steps)
  ramp = Mul(places, small)
  louder = Mul(delayed, gain)
  loudest = Mul(louder, gain)
  CONVERTED_AUDIO = Add(loudest, ramp)
  next = Add(place, count)
  STATE_OUT = Concat <axis = 1> (kept, next)
}""",
}
_VOICE = {"SOURCE_AUDIO": [-1], "TARGET_EMBEDDING": [SIZE], "PITCH_SHIFT": [1]}
_THROUGH = {name: name for name in _VOICE}
_ENSEMBLES = {
    "voice_conversion": [("front", _THROUGH, {"LOUDER": "louder"}),
                         ("back", {"LOUDER": "louder"}, {"CONVERTED_AUDIO": "CONVERTED_AUDIO"})],
    "voice_conversion_stream": [("live", _THROUGH, {"CONVERTED_AUDIO": "CONVERTED_AUDIO"})],
}  # fmt: skip


def write_release(
    releases: Path, number: int, *, gain: float | None = None, stages: Sequence[str] = ()
) -> Path:
    """Write release `number` into the folder of releases.

    Args:
        releases: the folder.
        number: of the release.
        gain: of each offline stage, instead of `2 ** (number - 1)`.
        stages: those to write, with the ensembles that need no other; none for all.
    """
    root = releases / str(number)
    chosen = set(stages or _STAGES)
    for name in chosen:
        folder = root / name / str(number)
        folder.mkdir(parents=True)
        model = _model(name, 2.0 ** (number - 1) if gain is None else gain)
        onnx.save(model, folder / "model.onnx")
        _write_config(root / name, number, model.graph)
    for name, steps in _ENSEMBLES.items():
        if chosen.issuperset(step[0] for step in steps):
            (root / name / str(number)).mkdir(parents=True)
            _write_ensemble(root / name, number, steps)
    return root


def expected(source: np.ndarray, number: int) -> np.ndarray:
    """What release `number` makes of audio [T] at 24 kHz."""
    places = np.arange(LOOKAHEAD, LOOKAHEAD + source.size, dtype=np.float32)
    gain = np.float32(4.0 ** (number - 1))
    return (source.astype(np.float32) * gain + places * np.float32(2.0**-20)).astype(np.float32)


def _model(name: str, gain: float) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {name} {_STAGES[name]}')
    scalars = {"gain": gain, "zero": 0.0, "one": 1.0, "small": 2.0**-20, "lookahead": float(LOOKAHEAD)}
    constants = {key: np.array(value, np.float32) for key, value in scalars.items()}
    constants |= {key: np.array([value], np.int64) for key, value in _INTEGERS.items()}
    used = {word for node in model.graph.node for word in node.input}
    for key in sorted(constants.keys() & used):
        model.graph.initializer.append(numpy_helper.from_array(constants[key], key))
    onnx.checker.check_model(model)
    return model


def _new_config(
    folder: Path, number: int, inputs: Mapping[str, list[int]], outputs: Mapping[str, list[int]]
) -> Any:
    config: Any = protobuf_module().ModelConfig(name=folder.name, max_batch_size=8)
    config.version_policy.specific.versions.append(number)
    for tensors, field in ((inputs, config.input), (outputs, config.output)):
        for name, dims in tensors.items():
            field.add(name=name, data_type="TYPE_FP32", dims=dims)
    return config


def _write_config(folder: Path, number: int, graph: onnx.GraphProto) -> None:
    inputs, outputs = _dims(graph.input), _dims(graph.output)
    state = inputs.pop("STATE_IN", None)
    outputs.pop("STATE_OUT", None)
    config = _new_config(folder, number, inputs, outputs)
    config.backend = "onnxruntime"
    config.instance_group.add(count=1, kind="KIND_CPU")
    for name in ("inter_op_thread_count", "intra_op_thread_count"):
        config.parameters[name].string_value = "1"
    if state is not None:
        config.sequence_batching.max_sequence_idle_microseconds = 60_000_000
        config.sequence_batching.oldest.max_candidate_sequences = 64
        kept = config.sequence_batching.state.add(
            input_name="STATE_IN", output_name="STATE_OUT", data_type="TYPE_FP32", dims=state
        )
        kept.initial_state.add(data_type="TYPE_FP32", dims=state, zero_data=True, name="zeros")
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))


def _write_ensemble(
    folder: Path, number: int, steps: Sequence[tuple[str, dict[str, str], dict[str, str]]]
) -> None:
    config = _new_config(folder, number, _VOICE, {"CONVERTED_AUDIO": [-1]})
    config.platform = "ensemble"
    for model, input_map, output_map in steps:
        config.ensemble_scheduling.step.add(
            model_name=model, model_version=number, input_map=input_map, output_map=output_map
        )
    for name, value in PARAMETERS.items():
        config.parameters[name].string_value = value
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))


def _dims(values: Sequence[onnx.ValueInfoProto]) -> dict[str, list[int]]:
    return {
        value.name: [axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim[1:]]
        for value in values
    }
