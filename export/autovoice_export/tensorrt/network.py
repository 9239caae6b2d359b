"""An ONNX file as TensorRT gets it: its custom ops bare, so that only a plugin can stand for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from autovoice_export.tensorrt.errors import PlanError
from autovoice_plugins.function_builder import DOMAIN, PLUGIN_VERSION


def load_model(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file.

    Raises:
        PlanError: it is missing, or no ONNX file.
    """
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's own error has no public class, and OSError comes too
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise PlanError(f"{path} cannot be read as ONNX ({reason}): export the repository again") from error


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
