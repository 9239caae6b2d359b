"""Carries the ops into ONNX files: export translations, schemas, and the functions added afterwards.

The functions are attached after export because the exporter's optimiser would inline them, and TensorRT
could no longer see one op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import onnx
from onnx import FunctionProto, ModelProto, NodeProto, helper

from autovoice_plugins.function_builder import (
    DOMAIN,
    DOMAIN_VERSION,
    OPSET,
    AttributeValue,
    register_schema,
    with_plugin_attributes,
)
from autovoice_plugins.harmonic_source import onnx_function as harmonic_source
from autovoice_plugins.pitch_yin import onnx_function as pitch_yin
from autovoice_plugins.spectral_synth import onnx_function as spectral_synth


class Op(NamedTuple):
    """One custom op."""

    name: str
    """Its name in ONNX."""
    torch_name: str
    """Its name in torch.ops.autovoice."""
    inputs: Mapping[str, bool]
    """Every input, and whether it may be left out."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, AttributeValue]
    """Default of every attribute."""
    function: Callable[..., FunctionProto]
    """Makes the function for given attributes."""


OPS = {
    op.NAME: Op(op.NAME, torch_name, op.INPUTS, op.OUTPUTS, op.ATTRIBUTES, function)
    for op, torch_name, function in (
        (pitch_yin, "pitch_yin", pitch_yin.pitch_yin_function),
        (harmonic_source, "harmonic_source", harmonic_source.harmonic_source_function),
        (spectral_synth, "spectral_synth", spectral_synth.spectral_synth_function),
    )
}


def register_schemas() -> None:
    """Makes the ops known to onnx, so that its checker and shape inference accept them."""
    for op in OPS.values():
        register_schema(op.name, op.inputs, op.outputs, op.attributes)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns what torch.onnx.export(dynamo=True) needs as custom_translation_table."""
    import torch

    from autovoice_plugins.harmonic_source import torch_op as _harmonic_source  # noqa: F401
    from autovoice_plugins.pitch_yin import torch_op as _pitch_yin  # noqa: F401
    from autovoice_plugins.spectral_synth import torch_op as _spectral_synth  # noqa: F401

    register_schemas()
    return {getattr(torch.ops.autovoice, op.torch_name).default: _translation(op) for op in OPS.values()}


def _translation(op: Op) -> Callable[..., Any]:
    """Returns the function that emits the bare node; torch passes tensors first, then the attributes."""
    from onnxscript.values import Opset

    opset = Opset(DOMAIN, DOMAIN_VERSION)
    tensors = len(op.inputs)

    def translate(*arguments: Any) -> Any:
        inputs = [argument for argument in arguments[:tensors] if argument is not None]
        values = dict(zip(op.attributes, arguments[tensors:], strict=True))
        return getattr(opset, op.name)(*inputs, **with_plugin_attributes(values))

    return translate


def attach_functions(model: ModelProto) -> ModelProto:
    """Adds the functions of exactly the autovoice ops that the model calls, in place, and checks it.

    Args:
        model: A model with nodes of the domain "autovoice", such as an exported one.

    Returns:
        The same model.

    Raises:
        ValueError: A node is of an unknown op, lacks an attribute, or two nodes of one op differ in theirs.
        onnx.checker.ValidationError: The result is not valid ONNX.
    """
    register_schemas()
    wanted: dict[str, dict[str, AttributeValue]] = {}
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        attributes = _attributes(node)
        if wanted.setdefault(node.op_type, attributes) != attributes:
            raise ValueError(
                f"Two {node.op_type} nodes differ in their attributes, {wanted[node.op_type]} and "
                f"{attributes}, but a model carries one function per op; put them into two models."
            )
    present = {function.name for function in model.functions if function.domain == DOMAIN}
    for name, attributes in wanted.items():
        if name not in present:
            model.functions.append(OPS[name].function(**attributes))
    versions = {opset.domain: opset.version for opset in model.opset_import}
    if wanted and DOMAIN not in versions:
        model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    if wanted and versions.get("", OPSET) < OPSET:
        raise ValueError(f"The model is of opset {versions['']}; export it with opset_version={OPSET}.")
    onnx.checker.check_model(model)
    return model


def _attributes(node: NodeProto) -> dict[str, AttributeValue]:
    """Returns a node's attributes without those that name the plugin."""
    if node.op_type not in OPS:
        raise ValueError(f"{node.op_type} is no autovoice op; known are {', '.join(OPS)}.")
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    values = {key: v.decode() if isinstance(v, bytes) else v for key, v in given.items()}
    expected = with_plugin_attributes(OPS[node.op_type].attributes)
    if set(values) != set(expected):
        raise ValueError(
            f"{node.op_type} has the attributes {sorted(values)}, but needs {sorted(expected)}; export the "
            "model with autovoice_plugins.onnx_export.translation_table."
        )
    for key in ("plugin_namespace", "plugin_version"):
        if values.pop(key) != expected[key]:
            raise ValueError(f'{node.op_type} has {key}="{given[key]!r}", but "{expected[key]}" is needed.')
    return values
