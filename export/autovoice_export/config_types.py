"""What a model config says, as validated dataclasses.

`autovoice_export.config_files` turns them into Triton's ``ModelConfig`` messages and writes those as
``config.pbtxt``. Dimensions leave the batch axis out, as Triton's own configs do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

VARIABLE = -1
"""A dimension whose size the request decides."""

FIRST_VERSION = 1
"""Of a model that was not there before."""

DataType = Literal["FP32", "INT64"]
"""What a tensor holds, in Triton's words."""

NUMPY_TYPES: Mapping[DataType, type[np.generic]] = {"FP32": np.float32, "INT64": np.int64}

_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
MAX_INPUT_BYTES = 16 << 20
"""Any one input of a request: 2.9 minutes of audio, or batches of 16 with 10.9 s each.

Longer recordings go in pieces or as a stream, which gives the same samples. Our Python backend enforces it;
the native one does not know the parameter.
"""

_TENSOR_NAME = re.compile(r"[A-Z][A-Z0-9_]*")


@dataclass(frozen=True)
class TensorConfig:
    """One input or output.

    Attributes:
        name: upper case, as in the ONNX file.
        dims: sizes without the batch axis, each positive or `VARIABLE`.
        data_type: of its values.
    """

    name: str
    dims: tuple[int, ...]
    data_type: DataType = "FP32"

    def __post_init__(self) -> None:
        if not _TENSOR_NAME.fullmatch(self.name):
            raise ValueError(f"tensor name {self.name!r} must be upper case letters, digits and underscores")
        if not self.dims or any(size < 1 and size != VARIABLE for size in self.dims):
            raise ValueError(f"dims of {self.name} must be positive or {VARIABLE}, got {list(self.dims)}")


@dataclass(frozen=True)
class StateConfig:
    """A tensor that the server keeps between the requests of a sequence, zeros at its start.

    Attributes:
        input_name: input that receives the state.
        output_name: output that carries the next state.
        size: floats in it, for one sequence.
    """

    input_name: str
    output_name: str
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"state {self.input_name} must hold at least 1 value, got {self.size}")


@dataclass(frozen=True)
class DynamicBatching:
    """Requests of one shape are batched when they happen to wait together.

    Attributes:
        max_queue_delay_us: how long a request may wait for others of its shape, microseconds.
    """

    max_queue_delay_us: int = 0

    def __post_init__(self) -> None:
        if self.max_queue_delay_us < 0:
            raise ValueError(f"max_queue_delay_us must not be negative, got {self.max_queue_delay_us}")


@dataclass(frozen=True)
class SequenceBatching:
    """Live streams with implicit state, batched across streams ("oldest" strategy).

    Attributes:
        states: what the server keeps for each stream.
        max_sequences: live streams of one model instance; more have to wait for one to end.
        idle_seconds: a stream silent for longer is dropped and its place given away.
        max_queue_delay_us: how long a chunk may wait for chunks of other streams, microseconds.
    """

    states: tuple[StateConfig, ...]
    max_sequences: int = 256
    idle_seconds: float = 30.0
    max_queue_delay_us: int = 0

    def __post_init__(self) -> None:
        if not self.states:
            raise ValueError("sequence batching without a state: list at least one StateConfig")
        if self.max_sequences < 1 or self.idle_seconds <= 0 or self.max_queue_delay_us < 0:
            raise ValueError(
                f"max_sequences and idle_seconds must be positive and max_queue_delay_us not negative, got "
                f"{self.max_sequences}, {self.idle_seconds}, {self.max_queue_delay_us}"
            )


@dataclass(frozen=True)
class Instances:
    """How many copies of a model run, and where.

    Attributes:
        kind: "auto" means the GPUs where there are any and the CPU otherwise.
        count: copies for each device.
        intra_op_threads: ONNX Runtime threads of one copy; 0 leaves it to ONNX Runtime (all cores).
    """

    kind: Literal["auto", "cpu", "gpu"] = "auto"
    count: int = 1
    intra_op_threads: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or self.intra_op_threads < 0:
            raise ValueError(
                f"count must be at least 1 and intra_op_threads at least 0, "
                f"got {self.count}, {self.intra_op_threads}"
            )


@dataclass(frozen=True)
class StageModelConfig:
    """A model that ONNX Runtime executes.

    Attributes:
        name: folder name.
        inputs: without the states of a sequence model.
        outputs: likewise.
        max_batch_size: largest batch the server forms.
        batching: `DynamicBatching` for stateless models, `SequenceBatching` for live streams.
        instances: copies and threads.
        warmup: shape of every input, without the batch axis, of the request of zeros that each copy answers
            before it counts as loaded; None for none. Impossible with `SequenceBatching`: Triton sends
            warm-up requests past the scheduler that adds the state.
        max_input_bytes: of any one input of a request.
        parameters: facts about the model that tools read.
        version: the one that is served.
    """

    name: str
    inputs: tuple[TensorConfig, ...]
    outputs: tuple[TensorConfig, ...]
    max_batch_size: int
    batching: DynamicBatching | SequenceBatching = field(default_factory=DynamicBatching)
    instances: Instances = field(default_factory=Instances)
    warmup: Mapping[str, tuple[int, ...]] | None = None
    max_input_bytes: int = MAX_INPUT_BYTES
    parameters: Mapping[str, str] = field(default_factory=dict)
    version: int = FIRST_VERSION

    def __post_init__(self) -> None:
        _check_model(self.name, self.inputs, self.outputs, self.max_batch_size)
        if self.warmup is None:
            return
        if isinstance(self.batching, SequenceBatching):
            raise ValueError(f"model {self.name} keeps state: it cannot have warm-up requests")
        if self.warmup.keys() != {tensor.name for tensor in self.inputs}:
            raise ValueError(f"warm-up of {self.name} has {sorted(self.warmup)}: give every input a shape")


@dataclass(frozen=True)
class EnsembleStep:
    """One model inside an ensemble.

    Attributes:
        model: name of the model.
        inputs: the model's input name to the ensemble's tensor name.
        outputs: the model's output name to the ensemble's tensor name; unused outputs are left out.
        version: of the model. Never "the newest": while two changed stages are loaded one after the other,
            that would be a mix of old and new.
    """

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    version: int = FIRST_VERSION


@dataclass(frozen=True)
class EnsembleConfig:
    """Stages wired into one model, by tensor name.

    Attributes:
        name: folder name.
        inputs: what the client sends.
        outputs: what the client gets.
        steps: in any order; data flow decides.
        max_batch_size: at most that of the steps.
        parameters: facts that clients read instead of hard-coding them.
        version: the one that is served.
    """

    name: str
    inputs: tuple[TensorConfig, ...]
    outputs: tuple[TensorConfig, ...]
    steps: tuple[EnsembleStep, ...]
    max_batch_size: int
    parameters: Mapping[str, str] = field(default_factory=dict)
    version: int = FIRST_VERSION

    def __post_init__(self) -> None:
        _check_model(self.name, self.inputs, self.outputs, self.max_batch_size)
        known = {tensor.name for tensor in self.inputs}
        for step in self.steps:
            for tensor in step.outputs.values():
                if tensor in known:
                    raise ValueError(f"ensemble {self.name}: tensor {tensor} is produced twice")
                known.add(tensor)
        for step in self.steps:
            for tensor in step.inputs.values():
                if tensor not in known:
                    raise ValueError(
                        f"ensemble {self.name}: step {step.model} reads {tensor}, which nothing produces"
                    )
        for output in self.outputs:
            if output.name not in known:
                raise ValueError(f"ensemble {self.name}: output {output.name} is produced by no step")


AnyModelConfig = StageModelConfig | EnsembleConfig


def _check_model(
    name: str, inputs: Iterable[TensorConfig], outputs: Iterable[TensorConfig], max_batch_size: int
) -> None:
    if not _MODEL_NAME.fullmatch(name):
        raise ValueError(f"model name {name!r} must be lower case letters, digits, underscores and hyphens")
    if max_batch_size < 1:
        raise ValueError(f"max_batch_size of {name} must be at least 1, got {max_batch_size}")
    for tensors in (inputs, outputs):
        names = [tensor.name for tensor in tensors]
        if not names:
            raise ValueError(f"model {name} needs at least one input and one output")
        if len(set(names)) != len(names):
            raise ValueError(f"model {name} names a tensor twice: {names}")
