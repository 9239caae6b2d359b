"""Checks a model's config against the ONNX file that it describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from autovoice.errors import RepositoryError
from autovoice.repository.model_config import ModelSpec, TensorSpec

_ONNX_TYPES = {
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}


class FileTensor(Protocol):
    """An input or output of an ONNX file, as ONNX Runtime describes it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def type(self) -> str:
        """Its type, such as `"tensor(float)"`."""

    @property
    def shape(self) -> Sequence[Any]:
        """Fixed sizes as numbers, symbolic ones as names or None, batch axis first."""


def check_file(spec: ModelSpec, inputs: Sequence[FileTensor], outputs: Sequence[FileTensor]) -> None:
    """Check a config against the tensors of its file.

    Args:
        spec: the config; its implicit states are tensors of the file like the others.
        inputs: of the file.
        outputs: of the file; those that the config leaves out are fine.

    Raises:
        RepositoryError: naming the first tensor that is missing, extra, or of another type or shape.
    """
    expected_inputs = [*spec.inputs, *(state.source for state in spec.states)]
    expected_outputs = [
        *spec.outputs,
        *(TensorSpec(s.output_name, s.source.dtype, s.source.dims) for s in spec.states),
    ]
    for kind, expected, found in (
        ("input", expected_inputs, inputs),
        ("output", expected_outputs, outputs),
    ):
        by_name = {node.name: node for node in found}
        for tensor in expected:
            node = by_name.pop(tensor.name, None)
            if node is None:
                present = ", ".join(item.name for item in found)
                raise RepositoryError(
                    f"config of {spec.name} names {kind} {tensor.name}, but {spec.model_file} has "
                    f"{present}; make them match"
                )
            _check_tensor(spec, kind, tensor, node)
        if by_name and kind == "input":
            raise RepositoryError(
                f"{spec.model_file} needs {kind} {min(by_name)}, which the config of {spec.name} lacks; add "
                "it"
            )


def _check_tensor(spec: ModelSpec, kind: str, tensor: TensorSpec, node: FileTensor) -> None:
    if _ONNX_TYPES.get(node.type) != tensor.dtype:
        raise RepositoryError(
            f"config of {spec.name} gives {kind} {tensor.name} the type {tensor.dtype}, but "
            f"{spec.model_file} has {node.type}; make them match"
        )
    expected = (-1, *tensor.dims) if spec.max_batch_size else tensor.dims
    # Symbolic axes of the file fit anything; fixed ones must be promised by the config too.
    fits = len(node.shape) == len(expected) and all(
        not isinstance(axis, int) or axis == dim for axis, dim in zip(node.shape, expected, strict=True)
    )
    if not fits:
        raise RepositoryError(
            f"config of {spec.name} gives {kind} {tensor.name} the dims {list(expected)} (batch first), but "
            f"{spec.model_file} has {list(node.shape)}; make them match"
        )
