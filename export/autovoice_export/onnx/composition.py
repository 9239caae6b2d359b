"""Exported stages chained into one ONNX model, as an ensemble chains them on a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import compose, helper

from autovoice_export.build_errors import ExportError
from autovoice_export.config_types import (
    EnsembleStep,
    Instances,
    SequenceBatching,
    StageModelConfig,
    StateConfig,
)
from autovoice_export.onnx.export import OPSET
from autovoice_export.stage import StageTensor
from autovoice_plugins.onnx_export import attach_functions


@dataclass(frozen=True)
class State:
    """What a composition carries from one request of a stream to the next.

    Attributes:
        input: the state before.
        output: the state after, as large.
    """

    input: StageTensor
    output: StageTensor

    def config(self) -> StateConfig:
        """The state as a model config describes it."""
        (size,) = self.input.config().dims
        return StateConfig(self.input.name, self.output.name, size)


@dataclass(frozen=True)
class Composition:
    """Stages in one graph: one run, and one request to the server's backend, instead of one for each stage.

    Attributes:
        name: folder name.
        inputs: tensors a caller sends, without the states.
        outputs: tensors a caller gets, likewise.
        states: of all stages.
        steps: the stages in the order of their running; every tensor of theirs has a name in the composition.
    """

    name: str
    inputs: tuple[StageTensor, ...]
    outputs: tuple[StageTensor, ...]
    states: tuple[State, ...]
    steps: tuple[EnsembleStep, ...]

    @property
    def graph_inputs(self) -> tuple[StageTensor, ...]:
        """Inputs of the ONNX file: the caller's, then the states."""
        return (*self.inputs, *(state.input for state in self.states))

    @property
    def graph_outputs(self) -> tuple[StageTensor, ...]:
        """Outputs of the ONNX file: the caller's, then the states."""
        return (*self.outputs, *(state.output for state in self.states))

    def config(self, max_batch_size: int, instances: Instances) -> StageModelConfig:
        """The config of the composition as a model of live streams."""
        return StageModelConfig(
            self.name,
            tuple(tensor.config() for tensor in self.inputs),
            tuple(tensor.config() for tensor in self.outputs),
            max_batch_size,
            batching=SequenceBatching(tuple(state.config() for state in self.states)),
            instances=instances,
        )


def compose_stages(
    composition: Composition, files: Mapping[str, Path], path: Path, metadata: Mapping[str, str]
) -> None:
    """Writes a composition as an ONNX file of its own.

    What the stages look like inside does not matter; the names of their tensors do. The weights of the stages
    are in the file once more: ONNX Runtime refuses weights outside a model's folder, behind a link too.

    Args:
        composition: stages and names.
        files: the ONNX file of each stage by its name.
        path: the file; its folder must exist.
        metadata: facts kept in the file's ``metadata_props``.

    Raises:
        ExportError: a stage has a tensor that the composition does not name, or the other way round.
        ValueError: two stages call the same custom op with different attributes.
    """
    graph = onnx.GraphProto(name="autovoice")
    graph.input.extend(map(_value, composition.graph_inputs))
    graph.output.extend(map(_value, composition.graph_outputs))
    ir_version = 0
    for step in composition.steps:
        model = onnx.load(files[step.model])
        part = model.graph
        _check_names(step, part)
        prefix = f"{step.model}/"
        own = (*part.initializer, *part.input, *part.output)
        names = {tensor.name: prefix + tensor.name for tensor in own} | {**step.inputs, **step.outputs}
        compose.add_prefix_graph(
            part, prefix, rename_inputs=False, rename_outputs=False, inplace=True, name_map=names
        )
        graph.node.extend(part.node)
        graph.initializer.extend(part.initializer)
        ir_version = max(ir_version, model.ir_version)
    composed = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=ir_version)
    helper.set_model_props(composed, {"stage": composition.name, **dict(sorted(metadata.items()))})
    attach_functions(composed)
    path.write_bytes(composed.SerializeToString(deterministic=True))


def _check_names(step: EnsembleStep, graph: onnx.GraphProto) -> None:
    for kind, values, named in (("input", graph.input, step.inputs), ("output", graph.output, step.outputs)):
        found = {value.name for value in values}
        if found != named.keys():
            raise ExportError(
                f"{step.model} has the {kind}s {sorted(found)}, the composition names {sorted(named)}"
            )


def _value(tensor: StageTensor) -> onnx.ValueInfoProto:
    axes = ["B", *(dim if isinstance(dim, int) else str(dim) for dim in tensor.dims)]
    return helper.make_tensor_value_info(tensor.name, onnx.TensorProto.FLOAT, axes)
