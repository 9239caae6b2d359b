"""ONNX graphs: reading them, their inputs and outputs, nodes, element types and custom ops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import onnx
from onnx import TensorProto, helper

from autovoice.errors import RepositoryError
from autovoice_export.build_errors import PlanError
from autovoice_plugins.function_builder import DOMAIN, PLUGIN_VERSION


@dataclass(frozen=True)
class ModelTensor:
    """An input or output of an ONNX file, as ONNX Runtime describes it.

    Attributes:
        name: of the tensor.
        type: such as "tensor(float)".
        shape: fixed sizes as numbers, others by the name of their axis, batch axis first.
    """

    name: str
    type: str
    shape: tuple[int | str, ...]


def load_model(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file.

    Raises:
        RepositoryError: it is missing, or no ONNX file.
    """
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's own error has no public class, and OSError comes too
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RepositoryError(
            f"{path} cannot be read as ONNX ({reason}): export the repository again"
        ) from error


def model_tensors(values: Iterable[onnx.ValueInfoProto]) -> list[ModelTensor]:
    """Describes the inputs or the outputs of a graph without loading it into ONNX Runtime."""
    return [
        ModelTensor(
            value.name,
            f"tensor({onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()})",
            tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param
                for dim in value.type.tensor_type.shape.dim
            ),
        )
        for value in values
    ]


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes of a graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)
            for inner in attribute.graphs:
                yield from nodes_of(inner)


def plugin_versions(model: onnx.ModelProto) -> dict[str, str]:
    """Version of the plugin that each custom op of a model needs, by op.

    Raises:
        PlanError: a node does not say which plugin it wants, so that TensorRT might take its function.
    """
    versions: dict[str, str] = {}
    for node in nodes_of(model.graph):
        if node.domain != DOMAIN:
            continue
        values = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        wanted = {"plugin_namespace": DOMAIN.encode(), "plugin_version": PLUGIN_VERSION.encode()}
        for key, value in wanted.items():
            if values.get(key) != value:
                raise PlanError(
                    f"a {node.op_type} node has {key} {values.get(key)!r} where {value!r} belongs: export "
                    "the repository again"
                )
        versions[node.op_type] = PLUGIN_VERSION
    return versions


def without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the functions of the custom ops, each of whose nodes has the op in its name.

    With the functions in place some versions of the parser expand them, other versions prefer the plugin. The
    name is how a plan's layer is recognised afterwards.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    kept = [function for function in bare.functions if function.domain != DOMAIN]
    del bare.functions[:]
    bare.functions.extend(kept)
    for number, node in enumerate(nodes_of(bare.graph)):
        if node.domain == DOMAIN:
            node.name = f"{node.op_type}_{number}"
    return bare


def expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the bodies of the custom ops in place of their nodes, for engines that have no plugins."""
    from onnx.inliner import inline_local_functions

    return cast(onnx.ModelProto, inline_local_functions(model))


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor outside of function bodies: inputs, constants, outputs of nodes.

    The graphs inside nodes such as ``Loop`` are part of it. Types that cannot be inferred are left out.
    """
    # The custom ops' tensors are all float32, which is said here, not inferred through their functions.
    bare = without_functions(model)
    custom = [name for node in nodes_of(bare.graph) if node.domain == DOMAIN for name in node.output if name]
    known = {value.name for value in (*bare.graph.value_info, *bare.graph.output)}
    bare.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in custom if name not in known
    )
    inferred = onnx.shape_inference.infer_shapes(bare)
    types: dict[str, int] = {}

    def collect(graph: onnx.GraphProto) -> None:
        types.update((item.name, item.data_type) for item in graph.initializer)
        for value in (*graph.input, *graph.value_info, *graph.output):
            if value.type.tensor_type.elem_type:
                types[value.name] = value.type.tensor_type.elem_type
        for node in graph.node:
            for attribute in node.attribute:
                for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                    collect(inner)

    collect(inferred.graph)
    return types


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the float32 tensors outside of function bodies."""
    return {name for name, kind in element_types(model).items() if kind == TensorProto.FLOAT}


def holds_half(model: onnx.ModelProto) -> bool:
    """Whether some of a model computes in float16."""
    return any(item.data_type == TensorProto.FLOAT16 for item in model.graph.initializer)
