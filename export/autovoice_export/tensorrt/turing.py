"""Models for GeForce RTX 20 cards (compute capability 7.5), where TensorRT for RTX lacks FP32 products.

NVIDIA's support matrix says so in a footnote, and the builder refuses each one. Convolutions in FP32 exist
there, and so do elementwise products, sums, and everything in FP16.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from autovoice_export.onnx.graph import element_types

CAPABILITY = "7.5"

_RECURRENT = ("GRU", "LSTM", "RNN")


def without_float32_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model without functions in which no node is a matrix product in FP32.

    A product with a constant matrix becomes a convolution of length 1; any other one a product of each pair
    of elements and a sum; a recurrent layer computes in FP16, whose results are 10 bits exact.
    """
    made = onnx.shape_inference.infer_shapes(model)
    types, ranks, constants = element_types(made), _ranks(made), _constants(made)
    writer = _Writer(made.graph)
    nodes: list[NodeProto] = []
    for node in made.graph.node:
        single = bool(node.input) and types.get(node.input[0]) == TensorProto.FLOAT
        if not single or node.op_type not in ("MatMul", "Gemm", *_RECURRENT):
            nodes.append(node)
        elif node.op_type == "MatMul":
            nodes += _product(writer, node, ranks, node.input[1] in constants)
        elif node.op_type == "Gemm":
            nodes += _affine(writer, node)
        else:
            nodes += _half(writer, node, types)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


class _Writer:
    """Makes nodes and constants whose names are new in a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._count = 0

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def constant(self, value: NDArray[np.generic]) -> str:
        name = self.name()
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def name(self) -> str:
        self._count += 1
        return f"turing_{self._count}"

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> NodeProto:
        name = output or self.name()
        return helper.make_node(kind, list(inputs), [name], name=f"{name}_node", **attributes)


def _product(writer: _Writer, node: NodeProto, ranks: dict[str, int], constant: bool) -> Iterator[NodeProto]:
    """The nodes for a MatMul."""
    (left, right), output = node.input, node.output[0]
    if ranks[right] == 1:
        products = writer.node("Mul", left, right)
        yield products
        yield writer.node("ReduceSum", products.output[0], writer.integers(-1), output=output, keepdims=0)
        return
    if not constant or ranks[right] != 2:
        column = writer.node("Unsqueeze", left, writer.integers(-1))  # [..., M, K, 1]
        row = writer.node("Unsqueeze", right, writer.integers(-3))  # [..., 1, K, N]
        products = writer.node("Mul", column.output[0], row.output[0])
        yield from (column, row, products)
        yield writer.node("ReduceSum", products.output[0], writer.integers(-2), output=output, keepdims=0)
        return
    turned = writer.node("Transpose", right, perm=[1, 0])
    kernel = writer.node("Unsqueeze", turned.output[0], writer.integers(-1))  # [N, K, 1]
    size = writer.node("Shape", right, end=1)
    flat = writer.node("Concat", writer.integers(-1), size.output[0], writer.integers(1), axis=0)
    rows = writer.node("Reshape", left, flat.output[0])  # [rows, K, 1]
    convolved = writer.node("Conv", rows.output[0], kernel.output[0])  # [rows, N, 1]
    leading, columns = writer.node("Shape", left, end=-1), writer.node("Shape", right, start=1)
    full = writer.node("Concat", leading.output[0], columns.output[0], axis=0)
    yield from (turned, kernel, size, flat, rows, convolved, leading, columns, full)
    yield writer.node("Reshape", convolved.output[0], full.output[0], output=output)


def _affine(writer: _Writer, node: NodeProto) -> Iterator[NodeProto]:
    """The nodes for a Gemm of activations [M, K] with constant weights, as PyTorch exports it."""
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if (
        attributes.get("transA", 0)
        or attributes.get("alpha", 1.0) != 1.0
        or attributes.get("beta", 1.0) != 1.0
    ):
        yield node  # the builder names it
        return
    weights = node.input[1]
    if not attributes.get("transB", 0):
        turned = writer.node("Transpose", weights, perm=[1, 0])
        yield turned
        weights = turned.output[0]
    kernel = writer.node("Unsqueeze", weights, writer.integers(-1))
    columns = writer.node("Unsqueeze", node.input[0], writer.integers(-1))
    convolved = writer.node("Conv", columns.output[0], kernel.output[0], *node.input[2:])
    yield from (kernel, columns, convolved)
    yield writer.node("Squeeze", convolved.output[0], writer.integers(-1), output=node.output[0])


def _half(writer: _Writer, node: NodeProto, types: dict[str, int]) -> Iterator[NodeProto]:
    """The nodes for a recurrent layer in FP16."""
    inner = NodeProto()
    inner.CopyFrom(node)
    for position, name in enumerate(node.input):
        if types.get(name) == TensorProto.FLOAT:
            cast = writer.node("Cast", name, to=TensorProto.FLOAT16)
            inner.input[position] = cast.output[0]
            yield cast
    for position, name in enumerate(node.output):
        if name:
            inner.output[position] = writer.name()
    yield inner
    for position, name in enumerate(node.output):
        if name:
            yield writer.node("Cast", inner.output[position], output=name, to=TensorProto.FLOAT)


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    ranks = {item.name: len(item.dims) for item in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        ranks[value.name] = len(value.type.tensor_type.shape.dim)
    return ranks


def _constants(model: onnx.ModelProto) -> set[str]:
    """Tensors that do not depend on the inputs."""
    known = {item.name for item in model.graph.initializer}
    for node in model.graph.node:
        if all(name in known for name in node.input if name):
            known |= set(node.output)
    return known
