"""What TensorRT makes of an ONNX file without a word, and what its two kinds take differently.

All else is asked of TensorRT for RTX itself, whose parser and builder need no GPU. Sources for TensorRT,
which cannot be asked without one: ``docs/operators.md`` of github.com/onnx/onnx-tensorrt at the commits that
its releases name as their parser, 7c51a63a7191 (11.1) and c72727708d4e (10.14).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from autovoice_export.build_errors import PlanError
from autovoice_export.onnx.graph import element_types, expanded, load_model, nodes_of
from autovoice_plugins.function_builder import DOMAIN

LAST_OPSET = 22
"""10.14 and 11.1 take up to 24; ``Attention`` is of opset 23, so 10.13 is not relied on for more than 22."""

EXACT_TYPES = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}
"""Element types that both keep. DOUBLE becomes FLOAT without a word; UINT8 is refused between layers."""

_FLOAT_ONLY = """
    Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh
    CumSum Dropout Einsum Elu Erf Exp Floor Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
    GroupNormalization GRU HardSigmoid HardSwish Hardmax InstanceNormalization IsInf LayerNormalization
    LeakyRelu Log LogSoftmax LRN LSTM LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu
    Reciprocal Resize RNN Round Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh
    ThresholdedRelu Upsample
"""
FLOAT_ONLY = frozenset(_FLOAT_ONLY.split())
"""Ops that TensorRT takes with floating-point numbers alone; TensorRT for RTX takes integers too."""

RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})


@dataclass(frozen=True)
class Violation:
    """One node that TensorRT would not take, or would take for something else.

    Attributes:
        file: the ONNX file.
        op: its op, with the domain where it has one.
        node: its name.
        reason: what is wrong.
    """

    file: Path
    op: str
    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.op} ({self.node}) {self.reason}"


def check_model(path: Path) -> list[Violation]:
    """Checks one ONNX file, in whose place TensorRT has plugins for the custom ops.

    Raises:
        PlanError: the file cannot be read.
    """
    model = load_model(path)
    found = list(_inexact(expanded(model), path))
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > LAST_OPSET:
            reason = f"is {opset.version}; TensorRT 10.13 takes up to {LAST_OPSET}"
            found.append(Violation(path, "opset", "", reason))
    known = {item.name for item in model.functions if item.domain == DOMAIN}
    types = element_types(model)
    for node in nodes_of(model.graph):
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        if node.domain == DOMAIN and node.op_type not in known:
            reason = "has no function in the file, so that nothing but its plugin could run it"
            found.append(Violation(path, op, node.name, reason))
        if node.domain in ("", "ai.onnx") and node.op_type in FLOAT_ONLY:
            kind = types.get(node.input[0])
            if kind in (TensorProto.INT32, TensorProto.INT64):
                reason = f"computes with {TensorProto.DataType.Name(kind)} ({node.input[0]})"
                found.append(Violation(path, op, node.name, reason))
    return found


def check_models(root: Path) -> list[Violation]:
    """Checks every ONNX file below a folder; a file that models share is read once."""
    files = sorted({path.resolve() for path in root.rglob("*.onnx")})
    return [violation for file in files for violation in check_model(file)]


def require_exact_types(model: onnx.ModelProto, file: Path) -> None:
    """Sees that a model without functions computes in types that TensorRT keeps, and draws no random numbers.

    Raises:
        PlanError: it does not.
    """
    for violation in _inexact(model, file):
        raise PlanError(str(violation))


def _inexact(model: onnx.ModelProto, file: Path) -> Iterator[Violation]:
    types = element_types(model)
    for node in nodes_of(model.graph):
        if node.op_type in RANDOM:
            reason = "draws random numbers, whose seed TensorRT ignores; index a fixed table instead"
            yield Violation(file, node.op_type, node.name, reason)
        for name in (*node.input, *node.output):
            if name and (kind := types.get(name, TensorProto.FLOAT)) not in EXACT_TYPES:
                reason = f"computes with {TensorProto.DataType.Name(kind)} ({name})"
                yield Violation(file, node.op_type, node.name, reason)
                break
