"""ONNX files in FP16: TensorRT 11 takes the precision of the file, and ONNX Runtime always does.

Pitch and phase stay FP32, and so does whatever leads to a logarithm or a decision, leaves a measured range,
or only carries a state on. Values that pass from one FP32 node to the next are never rounded, and inputs and
outputs keep their types. The conversion of `onnxruntime.transformers.float16` does not promise either: it
casts the outputs of the nodes it leaves in FP32, and all inputs of the graph, to FP16 and back, which moves
F0 by up to 0.06 Hz even with every node left in FP32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autovoice.engines.onnx_session import make_session
from autovoice_export.build_errors import ExportError
from autovoice_export.onnx.graph import float_tensors
from autovoice_plugins.function_builder import DOMAIN

LARGEST_VALUE = 1024.0
"""Nodes whose inputs or outputs were seen to exceed it stay FP32: sums of products must stay below 65504."""

SMALLEST_CONSTANT = 2.0**-14
"""Smallest normal number of FP16; nodes with a smaller constant, such as a division's floor, stay FP32."""

_PITCH_OPS = ("PitchYin", "HarmonicSource")
# fmt: off
_FP32_OPS = (
    "Ceil", "Cos", "CumSum", "Exp", "Floor", "InstanceNormalization", "LayerNormalization", "Log", "Mod",
    "Pow", "Range", "Reciprocal", "ReduceMean", "ReduceSum", "Resize", "Round", "Sin", "Sqrt",
)
_DECIDING_OPS = ("Ceil", "Floor", "Round", "Sign", "TopK")
_MOVING_OPS = (
    "Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad",
    "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
)
# fmt: on

Ranges = Mapping[str, float]


def to_half(model: onnx.ModelProto, ranges: Ranges, states: Iterable[str]) -> onnx.ModelProto:
    """Converts what gains from FP16 and can bear it.

    Args:
        model: FP32, with its functions; stays as it is.
        ranges: largest magnitude seen in each float tensor, see `measure_ranges`.
        states: names of inputs and outputs that carry state.

    Returns:
        A copy with ``Cast`` nodes at the borders.

    Raises:
        ExportError: the model has nodes with graphs inside, whose values this conversion does not follow.
    """
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    graph = converted.graph
    for node in graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise ExportError(f"{node.op_type} has a graph inside, which is not converted to FP16: use fp32")
    floats = float_tensors(model)
    halved = _halved_nodes(graph.node, floats, ranges, set(states), _constants(graph))
    _rewrite(graph, halved, floats)
    onnx.checker.check_model(converted)
    return converted


def measure_ranges(model: onnx.ModelProto, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, float]:
    """Largest magnitude of every float tensor of the graph while ONNX Runtime works on some inputs."""
    made = sorted(float_tensors(model) & {name for node in model.graph.node for name in node.output})
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    # Only the magnitudes leave the graph: a large network's values would not fit into memory all at once.
    del probe.graph.output[:]
    for number, name in enumerate(made):
        size, largest = f"probe_{number}_size", f"probe_{number}_largest"
        probe.graph.node.append(helper.make_node("Abs", [name], [size]))
        probe.graph.node.append(helper.make_node("ReduceMax", [size], [largest], keepdims=0))
        probe.graph.output.append(helper.make_tensor_value_info(largest, TensorProto.FLOAT, []))
    session = make_session(probe.SerializeToString(), threads=0)
    ranges: dict[str, float] = {}
    for feed in feeds:
        found = dict(zip(made, map(float, session.run(None, dict(feed))), strict=True))
        found |= {name: float(np.abs(value).max(initial=0.0)) for name, value in feed.items()}
        for name, value in found.items():
            ranges[name] = max(ranges.get(name, 0.0), value)
    return ranges


def _constants(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    return {item.name: numpy_helper.to_array(item) for item in graph.initializer}


def _halved_nodes(
    nodes: Sequence[onnx.NodeProto],
    floats: set[str],
    ranges: Ranges,
    states: set[str],
    constants: Mapping[str, NDArray[Any]],
) -> set[int]:
    """Positions of the nodes that compute in FP16."""
    maker = {name: position for position, node in enumerate(nodes) for name in node.output}
    exact = {
        position
        for position, node in enumerate(nodes)
        if node.domain == DOMAIN
        or node.op_type in _FP32_OPS
        or not any(name in floats for name in node.output)
        or any(ranges.get(name, 0.0) > LARGEST_VALUE for name in (*node.input, *node.output))
        or any(_has_tiny(constants[name]) for name in node.input if name in constants)
    }
    # Everything that pitch, phase, a logarithm or a decision depends on.
    pending = [
        position
        for position, node in enumerate(nodes)
        if node.op_type in (*_PITCH_OPS, "Log") or _decides(node, floats)
    ]
    seen = set(pending)
    while pending:
        for name in nodes[pending.pop()].input:
            position = maker.get(name)
            if position is not None and position not in seen:
                seen.add(position)
                pending.append(position)
    exact |= seen | _state_movers(nodes, states)
    halved: set[int] = set()
    for position, node in enumerate(nodes):
        # Moving values that nobody computed in FP16 would gain nothing and round them.
        idle = node.op_type in _MOVING_OPS and not any(maker.get(name) in halved for name in node.input)
        if position not in exact and not idle:
            halved.add(position)
    return halved


def _state_movers(nodes: Sequence[onnx.NodeProto], states: set[str]) -> set[int]:
    """Nodes that only carry state: from an input that is one, or to an output that is one.

    A convolution may read its part of the state rounded, but what it hands on must be what it was handed.
    """
    carried = set(states)
    movers = set()
    for position, node in enumerate(nodes):
        if node.op_type in _MOVING_OPS and carried & set(node.input):
            movers.add(position)
            carried |= set(node.output)
    wanted = set(states)
    for position in reversed(range(len(nodes))):
        node = nodes[position]
        if node.op_type in _MOVING_OPS and wanted & set(node.output):
            movers.add(position)
            wanted |= set(node.input)
    return movers


def _decides(node: onnx.NodeProto, floats: set[str]) -> bool:
    """Whether a small change of a value may make a large one behind the node.

    Such are comparisons, choices and conversions to integers, which take floats and make none, and those that
    make floats.
    """
    if node.op_type in _DECIDING_OPS:
        return True
    reads = node.op_type not in ("Shape", "Size") and any(name in floats for name in node.input)
    return reads and not any(name in floats for name in node.output)


def _has_tiny(value: NDArray[Any]) -> bool:
    """Whether a scalar constant would round to nothing; of a weight matrix small entries may."""
    return value.dtype == np.float32 and value.size == 1 and 0 < abs(float(value.flat[0])) < SMALLEST_CONSTANT


def _rewrite(graph: onnx.GraphProto, halved: set[int], floats: set[str]) -> None:
    constants = _constants(graph)
    nodes: list[onnx.NodeProto] = []
    half_names: dict[str, str] = {}  # FP16 twin of an FP32 tensor
    outputs = {value.name for value in graph.output}
    needed = {
        name for position, node in enumerate(graph.node) if position not in halved for name in node.input
    }

    def cast(name: str, twin: str, kind: int) -> None:
        nodes.append(helper.make_node("Cast", [name], [twin], name=f"cast_{twin}", to=kind))

    def half(name: str) -> str:
        if name not in half_names:
            twin = half_names[name] = f"{name}_half"
            if name in constants:
                graph.initializer.append(numpy_helper.from_array(constants[name].astype(np.float16), twin))
            else:
                cast(name, twin, TensorProto.FLOAT16)
        return half_names[name]

    for position, node in enumerate(graph.node):
        if position not in halved:
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if name in floats:
                node.input[index] = half(name)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(
                    numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16))
                )
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in floats:
                node.output[index] = half_names[name] = f"{name}_half"
                if name in needed or name in outputs:
                    cast(half_names[name], name, TensorProto.FLOAT)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | outputs
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
