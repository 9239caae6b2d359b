"""With TensorRT and a GPU: every stage's plan against ONNX Runtime, by Polygraphy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autovoice.repository.reader import ModelRepository
from autovoice_export.base import build
from autovoice_export.tensorrt.plan_config_check import models_for_plans
from autovoice_export.tensorrt.plans import Precision


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the committed repository without any plan."""
    folder = tmp_path_factory.mktemp("plans") / "models"
    shutil.copytree(build.DEFAULT_REPOSITORY, folder, symlinks=True, ignore=shutil.ignore_patterns("*.plan*"))
    return folder


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("model", models_for_plans(ModelRepository(build.DEFAULT_REPOSITORY)))
def test_plan_agrees_with_onnx_runtime(
    build_real_plan: Callable[[Path, str, Precision], None], root: Path, model: str, precision: Precision
) -> None:
    build_real_plan(root, model, precision)


def test_timing_cache_is_kept(build_real_plan: Callable[[Path, str, Precision], None], root: Path) -> None:
    build_real_plan(root, "pitch_extractor", "fp32")
    (cache,) = root.glob("*.timing_cache")
    assert os.path.getsize(cache) > 0
