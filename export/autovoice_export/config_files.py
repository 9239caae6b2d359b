"""Triton's ``ModelConfig`` messages from the dataclasses of `autovoice_export.config_types`.

Their text is `autovoice.repository.model_config`'s.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from autovoice.repository.model_config import DEFAULT_MODEL_FILENAME, ONNX_BACKEND, protobuf_module
from autovoice_export.config_types import (
    AnyModelConfig,
    DynamicBatching,
    EnsembleConfig,
    SequenceBatching,
    StageModelConfig,
    TensorConfig,
)

pb = protobuf_module()

_DATA_TYPES = {"FP32": pb.TYPE_FP32, "INT64": pb.TYPE_INT64}
_INSTANCE_KINDS = {
    "auto": pb.ModelInstanceGroup.KIND_AUTO,
    "cpu": pb.ModelInstanceGroup.KIND_CPU,
    "gpu": pb.ModelInstanceGroup.KIND_GPU,
}


def to_message(config: AnyModelConfig) -> Any:
    """Builds the ``ModelConfig`` message of a model or an ensemble."""
    message = pb.ModelConfig(
        name=config.name,
        max_batch_size=config.max_batch_size,
        input=[_tensor(pb.ModelInput, tensor) for tensor in config.inputs],
        output=[_tensor(pb.ModelOutput, tensor) for tensor in config.outputs],
    )
    message.version_policy.specific.versions.append(config.version)
    _fill(config, message)
    return message


def _tensor(kind: Any, tensor: TensorConfig) -> Any:
    return kind(name=tensor.name, data_type=_DATA_TYPES[tensor.data_type], dims=tensor.dims)


@singledispatch
def _fill(config: AnyModelConfig, message: Any) -> None:
    raise TypeError(f"no message for {type(config).__name__}")


@_fill.register
def _(config: StageModelConfig, message: Any) -> None:
    message.backend = ONNX_BACKEND
    message.default_model_filename = DEFAULT_MODEL_FILENAME
    message.instance_group.add(kind=_INSTANCE_KINDS[config.instances.kind], count=config.instances.count)
    # The names the native ONNX Runtime backend reads; it takes 0 for "leave the default".
    message.parameters["intra_op_thread_count"].string_value = str(config.instances.intra_op_threads)
    message.parameters["inter_op_thread_count"].string_value = "1"
    message.parameters["max_input_bytes"].string_value = str(config.max_input_bytes)
    for key, value in config.parameters.items():
        message.parameters[key].string_value = value
    _fill_batching(config.batching, message)
    if config.warmup is not None:
        warmup = message.model_warmup.add(name="zeros", batch_size=1)
        types = {tensor.name: _DATA_TYPES[tensor.data_type] for tensor in config.inputs}
        for name, dims in config.warmup.items():
            warmup.inputs[name].CopyFrom(
                pb.ModelWarmup.Input(data_type=types[name], dims=dims, zero_data=True)
            )


@_fill.register
def _(config: EnsembleConfig, message: Any) -> None:
    message.platform = "ensemble"
    for key, value in config.parameters.items():
        message.parameters[key].string_value = value
    for step in config.steps:
        message.ensemble_scheduling.step.add(
            model_name=step.model,
            model_version=step.version,
            input_map=dict(step.inputs),
            output_map=dict(step.outputs),
        )


@singledispatch
def _fill_batching(batching: DynamicBatching | SequenceBatching, message: Any) -> None:
    raise TypeError(f"no message for {type(batching).__name__}")


@_fill_batching.register
def _(batching: DynamicBatching, message: Any) -> None:
    message.dynamic_batching.max_queue_delay_microseconds = batching.max_queue_delay_us


@_fill_batching.register
def _(batching: SequenceBatching, message: Any) -> None:
    # No control inputs: the server itself starts each sequence from the initial state, so the graph needs no
    # START flag, and with the "oldest" strategy every row of a batch is a live request, so it needs no READY.
    sequences = message.sequence_batching
    sequences.max_sequence_idle_microseconds = round(batching.idle_seconds * 1e6)
    sequences.oldest.max_candidate_sequences = batching.max_sequences
    sequences.oldest.max_queue_delay_microseconds = batching.max_queue_delay_us
    for state in batching.states:
        sequences.state.add(
            input_name=state.input_name,
            output_name=state.output_name,
            data_type=pb.TYPE_FP32,
            dims=[state.size],
            initial_state=[
                pb.ModelSequenceBatching.InitialState(
                    name="zeros", data_type=pb.TYPE_FP32, dims=[state.size], zero_data=True
                )
            ],
        )
    # A cached answer would be that of another moment of the stream.
    message.response_cache.enable = False
