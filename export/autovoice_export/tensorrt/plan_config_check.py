"""Checks ``configs/tensorrt.pbtxt`` of a repository's models against ``config.pbtxt`` and the ONNX files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autovoice.errors import RepositoryError
from autovoice.repository.model_config import read_config
from autovoice.repository.plans import CONFIG_NAME, PLAN_BACKEND
from autovoice.repository.reader import CONFIG_FILENAME, ModelRepository
from autovoice_export.onnx.graph import ModelTensor, load_model, model_tensors
from autovoice_export.tensorrt.plan_config import (
    ShapeRange,
    config_path,
    read_plan_config,
    read_profiles,
)

_FILES = f"configs/{CONFIG_NAME}.pbtxt and {CONFIG_FILENAME}"
_SHARED_FIELDS = ("name", "max_batch_size", "input", "output", "version_policy", "sequence_batching")


def models_for_plans(repository: ModelRepository) -> list[str]:
    """Names of the models that TensorRT is to run."""
    return [
        name
        for name in repository.names()
        if config_path(repository.path / name).is_file() and repository.spec(name).model_file is not None
    ]


def check_plan_configs(repository: ModelRepository) -> None:
    """Checks every model that TensorRT is to run.

    Raises:
        RepositoryError: names the first model and what does not fit.
        PlanError: an optimisation profile is missing or unreadable.
    """
    for name in models_for_plans(repository):
        model_file = repository.spec(name).model_file
        assert model_file is not None
        _check_model(repository.path / name, model_file)


def _check_model(folder: Path, model_file: Path) -> None:
    message, shared = read_plan_config(folder), read_config(folder / CONFIG_FILENAME)
    for field in _SHARED_FIELDS:
        if getattr(message, field) != getattr(shared, field):
            raise RepositoryError(f"{folder.name}: {field} differs between {_FILES}: export it again")
    if message.backend != PLAN_BACKEND:
        raise RepositoryError(
            f"{config_path(folder)} asks for backend {message.backend!r}, not {PLAN_BACKEND!r}: export it "
            "again"
        )
    inputs = {tensor.name: tensor for tensor in model_tensors(load_model(model_file).graph.input)}
    for profile in read_profiles(message):
        _check_names(folder, f"profile {profile.name}", profile.shapes, inputs)
        for name, shapes in profile.shapes.items():
            _check_axes(folder, f"profile {profile.name}", inputs[name], shapes)
    for warmup in message.model_warmup:
        _check_names(folder, f"warm-up {warmup.name}", warmup.inputs, inputs)
    for spec in message.optimization.cuda.graph_spec:
        _check_names(folder, f"CUDA graph of batch {spec.batch_size}", spec.input, inputs)


def _check_names(folder: Path, what: str, names: Iterable[str], inputs: Mapping[str, Any]) -> None:
    if set(names) != set(inputs):
        raise RepositoryError(
            f"{folder.name}: {what} has {sorted(names)}, the ONNX file takes {sorted(inputs)}"
        )


def _check_axes(folder: Path, what: str, tensor: ModelTensor, shapes: ShapeRange) -> None:
    """Checks fixed axes against their size and variable ones, such as ``240*F``, against their multiple."""
    for shape in (shapes.smallest, shapes.typical, shapes.largest):
        fits = len(tensor.shape) == len(shape) and all(
            size == axis if isinstance(axis, int) else size % _multiple(axis) == 0
            for axis, size in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            raise RepositoryError(
                f"{folder.name}: {what} gives {tensor.name} the shape {list(shape)}, the ONNX file "
                f"{list(tensor.shape)}"
            )


def _multiple(axis: str) -> int:
    factor, star, _ = axis.partition("*")
    return int(factor) if star and factor.isdecimal() else 1
