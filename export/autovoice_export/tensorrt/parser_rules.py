"""What TensorRT's ONNX parser takes, by its own documentation, and a check of files against it.

Sources: ``docs/operators.md`` of github.com/onnx/onnx-tensorrt at the commits that TensorRT's releases name
as their parser: 7c51a63a7191 (11.1) and c72727708d4e (10.14). For 10.13 it is the latter without
``Attention``, the one operator that TensorRT's CHANGELOG.md lists as new in 10.14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from autovoice_export.onnx.graph import element_types, load_model, nodes_of
from autovoice_plugins.function_builder import DOMAIN

VERSIONS = ("10.13", "11.1")
FIRST_OPSET, LAST_OPSET = 9, 22
"""10.14 and 11.1 take up to 24; ``Attention`` is of opset 23, so 10.13 is not relied on for more than 22."""

_HALF = {TensorProto.FLOAT, TensorProto.FLOAT16}
_FLOAT = _HALF | {TensorProto.BFLOAT16}
_INTEGER = {TensorProto.INT32, TensorProto.INT64}
_NUMBER = _FLOAT | _INTEGER
_BOOL = {TensorProto.BOOL}
_ANY = _NUMBER | _BOOL

_TYPES_OF: tuple[tuple[set[int], str], ...] = (
    (
        _FLOAT,
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv "
        "ConvTranspose Cos Cosh CumSum Dropout Einsum Elu Erf Exp Floor Gemm GlobalAveragePool "
        "GlobalLpPool GlobalMaxPool GroupNormalization GRU HardSigmoid HardSwish Hardmax "
        "InstanceNormalization IsInf LayerNormalization LeakyRelu Log LogSoftmax LRN LSTM "
        "LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu RandomNormal "
        "RandomNormalLike RandomUniform RandomUniformLike Reciprocal Resize RNN Round Scan Selu Sigmoid "
        "Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample",
    ),
    (
        _NUMBER,
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less "
        "LessOrEqual Max Mean Min Mod Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum "
        "ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu "
        "Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK",
    ),
    (
        _ANY,
        "Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity "
        "If Loop OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu "
        "Unsqueeze Where",
    ),
    (_ANY | {TensorProto.UINT8}, "Cast CastLike"),
    (_BOOL, "And Not Or Xor"),
    (_HALF, "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign"),
    ({TensorProto.FLOAT}, "STFT"),
)
TYPES: Mapping[str, set[int]] = {name: types for types, names in _TYPES_OF for name in names.split()}
"""Element types of the values an op computes with, for the ops that both versions take.

What only one of them takes, or what only quantised models need, is left out: no file of ours should use it.
"""

_INDEX_INPUTS: Mapping[str, tuple[int, ...]] = {
    # Inputs that say where or how, and have a type of their own.
    "CumSum": (1,),
    "Dropout": (2,),
    "GRU": (4,),
    "LSTM": (4,),
    "NonMaxSuppression": (2,),
    "Pad": (1, 3),
    "RNN": (4,),
    "Resize": (3,),
    "RoiAlign": (2,),
    "STFT": (1, 3),
    "ScatterElements": (1,),
    "ScatterND": (1,),
    "TopK": (1,),
    **{name: (1,) for name in TYPES if name.startswith("Reduce")},
}
_INDEX_OUTPUTS: Mapping[str, tuple[int, ...]] = {
    "ArgMax": (0,),
    "ArgMin": (0,),
    "Dropout": (1,),
    "NonMaxSuppression": (0,),
    "NonZero": (0,),
    "TopK": (1,),
    "Equal": (0,),
    "Greater": (0,),
    "GreaterOrEqual": (0,),
    "IsInf": (0,),
    "IsNaN": (0,),
    "Less": (0,),
    "LessOrEqual": (0,),
}


@dataclass(frozen=True)
class Violation:
    """One node that the parser would not take, or would take for something else.

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


@dataclass(frozen=True)
class _Context:
    """What a rule may look at.

    Attributes:
        types: element type by tensor.
        constants: values known when a plan is built.
        functions: names of the custom ops' functions in the file.
    """

    types: Mapping[str, int]
    constants: Mapping[str, Any]
    functions: frozenset[str]


_Rule = Callable[[onnx.NodeProto, dict[str, Any], _Context], str | None]


def _constant_input(position: int, name: str) -> _Rule:
    def check(node: onnx.NodeProto, attributes: dict[str, Any], context: _Context) -> str | None:
        given = node.input[position] if position < len(node.input) else ""
        return f"has a {name} that is no constant" if given and given not in context.constants else None

    return check


def _attribute(name: str, allowed: tuple[Any, ...]) -> _Rule:
    def check(node: onnx.NodeProto, attributes: dict[str, Any], context: _Context) -> str | None:
        value = attributes.get(name, allowed[0])
        return None if value in allowed else f"has {name}={value!r}; the parser takes {allowed}"

    return check


def _ones(name: str) -> _Rule:
    def check(node: onnx.NodeProto, attributes: dict[str, Any], context: _Context) -> str | None:
        return None if set(attributes.get(name, ())) <= {1} else f"has {name}; the parser takes none"

    return check


def _one_output(node: onnx.NodeProto, attributes: dict[str, Any], context: _Context) -> str | None:
    return None if len([name for name in node.output if name]) == 1 else "has outputs beyond the first"


def _same_activations(node: onnx.NodeProto, attributes: dict[str, Any], context: _Context) -> str | None:
    if attributes.get("direction", b"forward") != b"bidirectional" or "activations" not in attributes:
        return None
    activations = attributes["activations"]
    half = len(activations) // 2
    same = activations[:half] == activations[half:]
    return None if same else "has other activations in each direction"


def _small_k(node: onnx.NodeProto, attributes: dict[str, Any], context: _Context) -> str | None:
    k = context.constants.get(node.input[1])
    if k is None:
        return "has a K that is no constant, so it may exceed 3839"
    return (
        None if int(k.reshape(-1)[0]) < 3840 else f"has K={int(k.reshape(-1)[0])}; less than 3840 is needed"
    )


def _random(node: onnx.NodeProto, attributes: dict[str, Any], context: _Context) -> str | None:
    return "draws random numbers, whose seed TensorRT ignores; index a fixed table instead"


_AXES = (_constant_input(1, "axes"),)
_RECURRENT = (_same_activations, _attribute("layout", (0,)))
_RULES: Mapping[str, tuple[_Rule, ...]] = {
    "AveragePool": (_ones("dilations"),),
    "CumSum": (_constant_input(1, "axis"),),
    "Dropout": (_constant_input(2, "training_mode"),),
    "GRU": _RECURRENT,
    "LSTM": (*_RECURRENT, _attribute("input_forget", (0,))),
    "RNN": _RECURRENT,
    "LayerNormalization": (_one_output,),
    "LpPool": (_ones("dilations"),),
    "MaxPool": (_ones("dilations"), _one_output),
    "OneHot": (_constant_input(1, "depth"),),
    "RandomNormal": (_random,),
    "RandomNormalLike": (_random,),
    "RandomUniform": (_random,),
    "RandomUniformLike": (_random,),
    **{name: _AXES for name in TYPES if name.startswith("Reduce")},
    "Resize": (
        _attribute("mode", (b"nearest", b"linear")),
        _attribute(
            "coordinate_transformation_mode",
            (b"half_pixel", b"pytorch_half_pixel", b"tf_half_pixel_for_nn", b"asymmetric", b"align_corners"),
        ),
        _attribute("keep_aspect_ratio_policy", (b"stretch",)),
        _attribute("antialias", (0,)),
    ),
    "ScatterND": (_attribute("reduction", (b"none",)),),
    "STFT": (_constant_input(1, "frame_step"), _constant_input(2, "window")),
    "Squeeze": _AXES,
    "TopK": (_attribute("sorted", (1,)), _small_k),
    "Unsqueeze": _AXES,
}


def check_model(path: Path) -> list[Violation]:
    """Checks one ONNX file by the rules, outside of the bodies of its functions.

    Raises:
        PlanError: the file cannot be read.
    """
    model = load_model(path)
    found = [Violation(path, "opset", "", reason) for reason in _wrong_opsets(model)]
    functions = frozenset(item.name for item in model.functions if item.domain == DOMAIN)
    context = _Context(element_types(model), _constants_of(model.graph), functions)
    for node in nodes_of(model.graph):
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        found += [Violation(path, op, node.name, reason) for reason in _reasons(node, context)]
    return found


def check_models(root: Path) -> list[Violation]:
    """Checks every ONNX file below a folder by the rules; a file that models share is read once."""
    files = sorted({path.resolve() for path in root.rglob("*.onnx")})
    return [violation for file in files for violation in check_model(file)]


def _wrong_opsets(model: onnx.ModelProto) -> Iterator[str]:
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and not FIRST_OPSET <= opset.version <= LAST_OPSET:
            yield f"is {opset.version}; the parser takes {FIRST_OPSET} to {LAST_OPSET}"


def _reasons(node: onnx.NodeProto, context: _Context) -> Iterator[str]:
    if node.domain == DOMAIN:
        if node.op_type not in context.functions:
            yield "has no function in the file, so that nothing but its plugin could run it"
        return
    if node.domain not in ("", "ai.onnx"):
        yield "is of a domain that no plugin stands for"
        return
    allowed = TYPES.get(node.op_type)
    if allowed is None:
        yield f"is not supported by TensorRT {' and '.join(VERSIONS)}"
        return
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    for rule in _RULES.get(node.op_type, ()):
        if reason := rule(node, attributes, context):
            yield reason
    for name in _computed(node):
        kind = context.types.get(name)
        if kind is None:
            yield f"has the tensor {name}, whose type is not known"
        elif kind not in allowed:
            yield f"computes with {TensorProto.DataType.Name(kind)} ({name})"


def _computed(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors of a node that are of the type it computes with."""
    for names, others in ((node.input, _INDEX_INPUTS), (node.output, _INDEX_OUTPUTS)):
        for position, name in enumerate(names):
            if name and position not in others.get(node.op_type, ()):
                yield name


def _constants_of(graph: onnx.GraphProto) -> dict[str, Any]:
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    for node in nodes_of(graph):
        if node.op_type == "Constant":
            (attribute,) = node.attribute
            value = onnx.helper.get_attribute_value(attribute)
            tensor = isinstance(value, onnx.TensorProto)
            constants[node.output[0]] = onnx.numpy_helper.to_array(value) if tensor else np.asarray(value)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                constants |= _constants_of(attribute.g)
    return constants
