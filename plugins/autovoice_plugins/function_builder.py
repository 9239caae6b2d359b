"""Writes ONNX model-local functions node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import FunctionProto, NodeProto, helper, numpy_helper

DOMAIN = "autovoice"
DOMAIN_VERSION = 1
OPSET = 20
PLUGIN_VERSION = "1"

AttributeValue = int | float | str


class FunctionBuilder:
    """Collects the nodes of one function; values are named by strings.

    Constants are given as NumPy arrays wherever a value is expected. Large cosine matrices are not stored:
    they are gathered from a table of one period by integer index, which ONNX Runtime folds when it loads
    the model, so a file stays small and the numbers are those of float64, rounded once.
    """

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(
        self, kind: str, *inputs: str | NDArray[np.generic], outputs: int = 1, **attributes: object
    ) -> str:
        """Adds a node and returns the name of its first output; further ones end in _1, _2 ..."""
        name = f"{kind.lower()}_{len(self._nodes)}"
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        results = [name] + [f"{name}_{i}" for i in range(1, outputs)]
        self._nodes.append(helper.make_node(kind, names, results, **attributes))
        return name

    def constant(self, value: NDArray[np.generic]) -> str:
        """Returns the name of a constant, adding it the first time."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._nodes)}"
            tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
            if value.ndim == 0:
                tensor = numpy_helper.from_array(value, name)
            self._nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            self._constants[key] = name
        return self._constants[key]

    def slice(self, value: str, start: int, end: int | None, axis: int, step: int = 1) -> str:
        """Returns value[start:end:step] along an axis; None runs to the end (or the beginning)."""
        limit = np.iinfo(np.int64)
        stop = end if end is not None else (limit.max if step > 0 else limit.min)
        bounds = (np.array([bound], dtype=np.int64) for bound in (start, stop, axis, step))
        return self.op("Slice", value, *bounds)

    def concat(self, *values: str | NDArray[np.generic], axis: int) -> str:
        """Returns the values joined along an axis."""
        return self.op("Concat", *values, axis=axis)

    def reshape(self, value: str, *shape: int) -> str:
        """Returns value in another shape; 0 keeps a size and -1 infers one."""
        return self.op("Reshape", value, np.array(shape, dtype=np.int64))

    def total(self, first: str, *others: str) -> str:
        """Returns the sum of values of one shape."""
        for other in others:
            first = self.op("Add", first, other)
        return first

    def waves(self, function: str, rows: NDArray[np.int64], columns: NDArray[np.int64], period: int) -> str:
        """Returns the matrix cos(2 pi row column / period), or sin, [rows, columns], float32."""
        angles = 2 * np.pi * np.arange(period) / period
        table = (np.cos(angles) if function == "cos" else np.sin(angles)).astype(np.float32)
        product = self.op("Mul", rows[:, None], columns[None, :])
        return self.op("Gather", table, self.op("Mod", product, np.array([period], dtype=np.int64)))

    def function(
        self,
        name: str,
        inputs: Sequence[str],
        outputs: Mapping[str, str],
        attributes: Mapping[str, AttributeValue],
    ) -> FunctionProto:
        """Returns the function.

        Args:
            name: The op's name.
            inputs: Names of the inputs.
            outputs: The value behind every output.
            attributes: Default of every attribute; the body holds for these values.
        """
        for output, value in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [output]))
        return helper.make_function(
            DOMAIN,
            name,
            list(inputs),
            list(outputs),
            self._nodes,
            [helper.make_opsetid("", OPSET)],
            attribute_protos=[helper.make_attribute(key, value) for key, value in attributes.items()],
        )


def with_plugin_attributes(attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    """Returns the attributes together with those by which TensorRT finds the plugin."""
    return {**attributes, "plugin_namespace": DOMAIN, "plugin_version": PLUGIN_VERSION}


def scalar(value: float) -> NDArray[np.float32]:
    """Returns a float32 scalar."""
    return np.array(value, dtype=np.float32)


def register_schema(
    name: str, inputs: Mapping[str, bool], outputs: Sequence[str], attributes: Mapping[str, AttributeValue]
) -> None:
    """Makes an op known to onnx, once per process.

    Args:
        name: The op's name.
        inputs: Every input, and whether it may be left out.
        outputs: Names of the outputs.
        attributes: Default of every attribute.
    """
    if onnx.defs.has(name, DOMAIN_VERSION, DOMAIN):
        return
    parameter = onnx.defs.OpSchema.FormalParameter
    option = onnx.defs.OpSchema.FormalParameterOption
    onnx.defs.register_schema(
        onnx.defs.OpSchema(
            name,
            DOMAIN,
            DOMAIN_VERSION,
            inputs=[
                parameter(key, "T", param_option=option.Optional if optional else option.Single)
                for key, optional in inputs.items()
            ],
            outputs=[parameter(key, "T") for key in outputs],
            type_constraints=[("T", ["tensor(float)"], "All tensors are float32.")],
            attributes=[
                onnx.defs.OpSchema.Attribute(key, helper.make_attribute(key, value))
                for key, value in with_plugin_attributes(attributes).items()
            ],
        )
    )
