"""With TensorRT and a GPU: every stage's plan against ONNX Runtime, by Polygraphy."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from autovoice.errors import VoiceConversionError
from autovoice.repository import ModelRepository
from autovoice.serving.plans import check_plan, find_gpus, find_plugin_library
from autovoice_export import build
from autovoice_export.tensorrt import wire
from autovoice_export.tensorrt.plans import PlanOptions, Progress, build_plans
from autovoice_export.tensorrt.validation import engine_models


def missing() -> str:
    """What keeps the tests of this file from running; nothing where they can."""
    if importlib.util.find_spec("tensorrt") is None:
        return "the package tensorrt is not installed: run the tests inside NVIDIA's TensorRT image"
    try:
        find_gpus()
        find_plugin_library()
    except VoiceConversionError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the committed repository without any plan."""
    folder = tmp_path_factory.mktemp("plans") / "models"
    shutil.copytree(build.DEFAULT_REPOSITORY, folder, symlinks=True, ignore=shutil.ignore_patterns("*.plan*"))
    return folder


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("model", engine_models(build.DEFAULT_REPOSITORY))
def test_plan_agrees_with_onnx_runtime(root: Path, model: str, precision: str) -> None:
    """`build_plans` runs both in Polygraphy at the shapes of every profile, and raises where they part."""
    options = PlanOptions(precision=precision, models=(model,))  # type: ignore[arg-type]
    ((_, manifest),) = build_plans(root, options, Progress())
    assert manifest is not None
    outputs = {tensor.name for tensor in wire.read(root / model).output}
    assert outputs <= set(manifest.deviation)
    assert all(0 <= share <= 1 for share in manifest.deviation.values())
    check_plan(ModelRepository(root), model, wire.read(root / model), find_gpus()[0], manifest.tensorrt)


def test_timing_cache_is_kept(root: Path) -> None:
    build_plans(root, PlanOptions(models=("pitch_extractor",), force=True), Progress())
    (cache,) = root.glob("*.timing_cache")
    assert os.path.getsize(cache) > 0
