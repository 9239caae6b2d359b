"""Checks of a whole model repository: files, ensembles, and configs for TensorRT."""

from __future__ import annotations

from pathlib import Path

from autovoice.repository.file_check import check_file
from autovoice.repository.reader import ModelRepository
from autovoice_export.onnx.graph import load_model, model_tensors
from autovoice_export.tensorrt.plan_config_check import check_plan_configs


def check_repository(root: Path) -> ModelRepository:
    """Checks every config of a repository against its ONNX file and every ensemble against its models.

    ONNX Runtime is not asked: the graphs are read, but no session is made.

    Returns:
        The repository.

    Raises:
        RepositoryError: names the first model and tensor that do not fit.
        PlanError: a config for TensorRT has an unreadable optimisation profile.
    """
    repository = ModelRepository(root)
    for name in repository.names():
        spec = repository.spec(name)
        if spec.model_file is None:
            repository.steps_in_order(spec)
            continue
        graph = load_model(spec.model_file).graph
        check_file(spec, model_tensors(graph.input), model_tensors(graph.output))
    check_plan_configs(repository)
    return repository
