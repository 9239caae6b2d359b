"""A repository of small stages with configurations for TensorRT."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autovoice.repository.reader import ModelRepository
from autovoice_export.base import plans, wiring
from autovoice_export.config_types import Instances
from autovoice_export.repository_writer import RepositoryWriter
from autovoice_export.stage import Stage
from autovoice_export.tensorrt import wire
from autovoice_export.tensorrt.plan_config import PlanConfig


@pytest.fixture(scope="session")
def small_stages(family: dict[str, Stage]) -> tuple[Stage, ...]:
    """All stages but the speaker encoder, which is slow to export."""
    return tuple(stage for stage in family.values() if stage.name != "speaker_encoder")


@pytest.fixture(scope="session")
def engines(small_stages: tuple[Stage, ...]) -> dict[str, PlanConfig]:
    """Configurations for TensorRT by model."""
    return {item.model.name: item for item in plans.engine_configs(small_stages, Instances())}


@pytest.fixture
def root(
    small_stages: tuple[Stage, ...],
    engines: dict[str, PlanConfig],
    exported: Callable[[str], Path],
    tmp_path: Path,
) -> Path:
    """The folder of a repository, to be changed at will."""
    folder = tmp_path / "models"
    with RepositoryWriter(folder) as writer:
        for config in wiring.model_configs(small_stages, Instances()):
            writer.add_config(config)
        for name, engine in engines.items():
            writer.add_alternative(name, wire.CONFIG_NAME, wire.to_wire(engine))
        for stage in small_stages:
            shutil.copy(exported(stage.name), writer.onnx_path(stage.name))
            if stage.state_size:
                writer.share_onnx(f"{stage.name}_stream", stage.name)
        shutil.copy(exported(wiring.CONVERTER), writer.onnx_path(wiring.CONVERTER))
    return folder


@pytest.fixture
def repository(root: Path) -> ModelRepository:
    """The reader of that folder."""
    return ModelRepository(root)
