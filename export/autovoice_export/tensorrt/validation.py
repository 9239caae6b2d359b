"""Holds ``configs/tensorrt.pbtxt`` of a repository to its ``config.pbtxt`` and its ONNX files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx

from autovoice.repository.plans import PLAN_BACKEND
from autovoice.repository.reader import ModelRepository
from autovoice_export import config_text
from autovoice_export.repository_writer import RepositoryError
from autovoice_export.tensorrt import wire
from autovoice_export.tensorrt.network import load_model
from autovoice_export.tensorrt.plan_config import ShapeRange

_SHARED_FIELDS = ("name", "max_batch_size", "input", "output", "version_policy", "sequence_batching")


def engine_models(root: Path) -> list[str]:
    """Names of the models that TensorRT is to run."""
    return sorted(
        folder.name
        for folder in root.iterdir()
        if wire.config_path(folder).is_file() and not config_text.read(folder).HasField("ensemble_scheduling")
    )


def check_engine_configs(root: Path) -> None:
    """Checks every model that TensorRT is to run.

    Raises:
        RepositoryError: names the first model and what does not fit.
    """
    repository = ModelRepository(root)
    for name in engine_models(root):
        _check_model(root / name, repository.spec(name).model_file)


def _check_model(folder: Path, onnx_file: Path | None) -> None:
    message, twin = wire.read(folder), config_text.read(folder)
    for field in _SHARED_FIELDS:
        if getattr(message, field) != getattr(twin, field):
            raise RepositoryError(f"{folder.name}: {field} differs between {_NAMES}")
    if message.backend != PLAN_BACKEND:
        raise RepositoryError(f"{wire.config_path(folder)} asks for backend {message.backend!r}")
    if onnx_file is None:
        raise RepositoryError(f"{folder.name} has no ONNX file that a plan could be built from")
    graph = load_model(onnx_file).graph
    inputs = {value.name: value for value in graph.input}
    for profile in wire.read_profiles(message):
        _check_names(folder, f"profile {profile.name}", profile.shapes, inputs)
        for name, shapes in profile.shapes.items():
            _check_axes(folder, f"profile {profile.name}", inputs[name], shapes)
    for warmup in message.model_warmup:
        _check_names(folder, f"warm-up {warmup.name}", warmup.inputs, inputs)
    for spec in message.optimization.cuda.graph_spec:
        _check_names(folder, f"CUDA graph of batch {spec.batch_size}", spec.input, inputs)


_NAMES = f"configs/{wire.CONFIG_NAME}.pbtxt and {config_text.CONFIG_FILENAME}"


def _check_names(folder: Path, what: str, names: Iterable[str], inputs: Iterable[str]) -> None:
    if set(names) != set(inputs):
        raise RepositoryError(
            f"{folder.name}: {what} has {sorted(names)}, the ONNX file takes {sorted(inputs)}"
        )


def _check_axes(folder: Path, what: str, value: onnx.ValueInfoProto, shapes: ShapeRange) -> None:
    """Checks fixed axes against their size and variable ones, such as ``240*F``, against their multiple."""
    axes: Sequence[Any] = value.type.tensor_type.shape.dim
    for shape in (shapes.smallest, shapes.typical, shapes.largest):
        fits = len(axes) == len(shape) and all(
            size == axis.dim_value if axis.HasField("dim_value") else size % _multiple(axis.dim_param) == 0
            for axis, size in zip(axes, shape, strict=True)
        )
        if not fits:
            wanted = [axis.dim_value or axis.dim_param for axis in axes]
            raise RepositoryError(
                f"{folder.name}: {what} gives {value.name} the shape {list(shape)}, the ONNX file {wanted}"
            )


def _multiple(axis: str) -> int:
    factor, star, _ = axis.partition("*")
    return int(factor) if star and factor.isdecimal() else 1
