"""Element types of the tensors of an ONNX graph."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from autovoice_export.tensorrt.network import nodes_of, without_functions
from autovoice_plugins.function_builder import DOMAIN


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
