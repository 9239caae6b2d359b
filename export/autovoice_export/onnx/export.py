"""One PyTorch stage to one self-contained ONNX file: dynamic axes, contract names, reproducible bytes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import onnx_ir.passes.common as common_passes
import onnxscript.optimizer
import onnxscript.rewriter
import onnxscript.rewriter.rules.common as rewrite_rules
import torch

from autovoice_export.build_errors import ExportError
from autovoice_export.onnx.gru import gru_translation
from autovoice_export.stage import Axis, Stage, StageTensor
from autovoice_plugins.onnx_export import attach_functions, translation_table

OPSET = 20

_EXAMPLE_BATCH = 2
_EXAMPLE_SIZES = {"F": 5, "T": 1103, "P": 8, "G": 7}
"""Sizes that torch.export traces with: none is 0 or 1, which it would take for constants."""

_FOLD_LIMIT = 1 << 28
"""Constants up to this many elements are computed at export time rather than in every session."""

_EXACT_RULES = (
    rewrite_rules.collapse_slice_rule,
    rewrite_rules.collapse_slice2_rule,
    rewrite_rules.cast_constant_of_shape_rule,
    rewrite_rules.cast_constant_of_shape_without_value_rule,
    rewrite_rules.no_op_cast_rule,
)


def export_stage(stage: Stage, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a stage as an ONNX file.

    Args:
        stage: module and tensors.
        path: the file; its folder must exist.
        metadata: facts kept in the file's ``metadata_props``.

    Raises:
        ExportError: the exporter lost a dynamic axis.
    """
    model = _to_onnx(stage)
    _name_axes(model, stage)
    _anonymise(model)
    attach_functions(model)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {"stage": stage.name, **dict(sorted(metadata.items()))})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _to_onnx(stage: Stage) -> onnx.ModelProto:
    examples = tuple(tensor.zeros(_EXAMPLE_BATCH, _EXAMPLE_SIZES) for tensor in stage.inputs)
    with warnings.catch_warnings(), _quiet_exporter(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                stage.module,
                examples,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=_dynamic_shapes(stage.inputs),
                input_names=[tensor.name for tensor in stage.inputs],
                output_names=[tensor.name for tensor in stage.outputs],
                custom_translation_table={**translation_table(), **gru_translation()},
                verbose=False,
                optimize=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = error.__cause__ or error
            raise ExportError(f"{stage.name} cannot be exported: {type(cause).__name__}: {cause}") from error
        assert program is not None
        _simplify(program.model)
    return program.model_proto


def _simplify(model: onnx_ir.Model) -> None:
    """Computes what is constant and drops what is unused.

    Stands in for the exporter's own optimiser, whose rewrite rules match constants to within 1e-8: they take
    ``log(x + 1e-9)`` for ``log(x + 0)`` and remove the addition.
    """
    common_passes.InlinePass()(model)
    onnxscript.optimizer.fold_constants_ir(model, input_size_limit=_FOLD_LIMIT, output_size_limit=_FOLD_LIMIT)
    onnxscript.rewriter.rewrite(model, pattern_rewrite_rules=_EXACT_RULES)
    for simplify in (
        common_passes.IdentityEliminationPass(),
        common_passes.RemoveUnusedNodesPass(),
        common_passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common_passes.RemoveUnusedOpsetsPass(),
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.DeduplicateInitializersPass(),
        common_passes.CommonSubexpressionEliminationPass(),
        common_passes.OutputFixPass(),
        common_passes.NameFixPass(),
    ):
        simplify(model)


def _dynamic_shapes(inputs: tuple[StageTensor, ...]) -> tuple[dict[int, Any], ...]:
    """The axes that torch.export keeps symbolic: batch, and every `Axis`, tied together by symbol."""
    batch = torch.export.Dim("B", min=1)
    symbols: dict[str, Any] = {}
    shapes: list[dict[int, Any]] = []
    for tensor in inputs:
        shape: dict[int, Any] = {0: batch}
        for position, dim in enumerate(tensor.dims, start=1):
            if isinstance(dim, Axis):
                symbol = symbols.setdefault(dim.symbol, torch.export.Dim(dim.symbol, min=1))
                shape[position] = symbol if dim.multiple == 1 else dim.multiple * symbol
        shapes.append(shape)
    return tuple(shapes)


def _name_axes(model: onnx.ModelProto, stage: Stage) -> None:
    """Checks the graph's inputs and outputs against the stage and names their axes as the stage does."""
    for kind, values, tensors in (
        ("input", model.graph.input, stage.inputs),
        ("output", model.graph.output, stage.outputs),
    ):
        if [value.name for value in values] != [tensor.name for tensor in tensors]:
            raise ExportError(
                f"{stage.name}: the graph's {kind}s are {[value.name for value in values]}, "
                f"the stage declares {[tensor.name for tensor in tensors]}"
            )
        for value, tensor in zip(values, tensors, strict=True):
            wanted = ("B", *tensor.dims)
            found = value.type.tensor_type.shape.dim
            if len(found) != len(wanted):
                raise ExportError(
                    f"{stage.name}: {tensor.name} has {len(found)} axes, the stage declares {len(wanted)}"
                )
            for position, (have, want) in enumerate(zip(found, wanted, strict=True)):
                if isinstance(want, int):
                    if have.HasField("dim_value") and have.dim_value != want:
                        raise ExportError(
                            f"{stage.name}: axis {position} of {tensor.name} has size {have.dim_value}, "
                            f"the stage declares {want}"
                        )
                    have.dim_value = want
                elif have.HasField("dim_value"):
                    raise ExportError(
                        f"{stage.name}: axis {position} of {tensor.name} should be {want} but is frozen at "
                        f"{have.dim_value}: the module makes a constant of it while it is traced"
                    )
                else:
                    have.dim_param = str(want)


def _anonymise(model: onnx.ModelProto) -> None:
    """Removes what differs between machines or runs: stack traces with paths, shapes, descriptions."""
    model.doc_string = ""
    graph = model.graph
    graph.name = "autovoice"
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for item in (*graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    _anonymise_nodes(graph)


def _anonymise_nodes(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            if attribute.HasField("g"):
                _anonymise_nodes(attribute.g)


class _quiet_exporter:
    """Silences what the exporter logs about packages and axes that are none of the user's concern."""

    _LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")

    def __enter__(self) -> None:
        self._levels = {name: logging.getLogger(name).level for name in self._LOGGERS}
        for name in self._LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
