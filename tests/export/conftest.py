"""Small untrained stages and their ONNX files, exported once for all test processes, and builders of plans.

A stand-in for TensorRT makes plans that say what they were built from; where there is TensorRT, it makes real
ones.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from rtx_engines import Builder, run_builder

from autovoice.errors import VoiceConversionError
from autovoice.repository.plans import check_plan, find_gpus, find_plugin_library
from autovoice.repository.reader import ModelRepository
from autovoice_export.base import plans, wiring
from autovoice_export.base.checkpoint import Checkpoint
from autovoice_export.base.stages.content_encoder import ContentEncoder, ContentEncoderConfig
from autovoice_export.base.stages.pitch_extractor import PitchExtractor, PitchExtractorConfig
from autovoice_export.base.stages.synthesizer import Synthesizer, SynthesizerConfig
from autovoice_export.base.stages.target_pitch import TargetPitch
from autovoice_export.base.stages.voice_encoder import ReferenceEncoder, ReferenceEncoderConfig
from autovoice_export.config_types import Instances
from autovoice_export.onnx.composition import Composition, compose_stages
from autovoice_export.onnx.export import export_stage
from autovoice_export.repository_writer import RepositoryWriter
from autovoice_export.stage import Stage
from autovoice_export.tensorrt import plan_config
from autovoice_export.tensorrt.plan_config import PlanConfig
from autovoice_export.tensorrt.plans import PlanOptions, Precision, Progress
from autovoice_export.tensorrt.plans import build_plans as build_with_tensorrt

FAKE = Path(__file__).parent / "tensorrt" / "fake"
GPU, CAPABILITY = "NVIDIA A10", "8.6"


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """Stages of the real structure but narrow, with weights that make every input matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        content_encoder = ContentEncoder(ContentEncoderConfig(channels=16, dilations=(1, 4), content_size=8))
        reference_encoder = ReferenceEncoder(
            ReferenceEncoderConfig(channels=16, dilations=(1, 4), content_size=8)
        )
        synthesizer = Synthesizer(
            SynthesizerConfig(content_size=8, channels=16, dilations=(1, 4), condition_size=16)
        )
        for layer in (synthesizer.share, synthesizer.correction):
            torch.nn.init.normal_(layer.weight, std=0.2)
        target_pitch = TargetPitch()
        torch.nn.init.normal_(target_pitch.linear.weight)
        pitch_extractor = PitchExtractor(PitchExtractorConfig(channels=8, dilations=(1, 4)))
    stages = content_encoder, reference_encoder, synthesizer, target_pitch, pitch_extractor
    return Checkpoint(*(stage.eval() for stage in stages))


@pytest.fixture(scope="session")
def family(checkpoint: Checkpoint) -> dict[str, Stage]:
    """The stages of the base family by name."""
    return {stage.name: stage for stage in wiring.stages(checkpoint)}


@pytest.fixture(scope="session")
def converter(family: dict[str, Stage]) -> Composition:
    """The stages of a live stream in one model."""
    return wiring.converter(tuple(family.values()))


@pytest.fixture(scope="session")
def exported(
    family: dict[str, Stage], converter: Composition, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Gives the ONNX file of a stage or of the converter, exporting it on first use in any test process."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def path_of(name: str) -> Path:
        path = shared / f"{name}.onnx"
        with FileLock(f"{path}.lock"):
            if path.exists():
                return path
            if name == converter.name:
                files = {step.model: path_of(step.model) for step in converter.steps}
                compose_stages(converter, files, path, {"family": "base"})
            else:
                export_stage(family[name], path, {"family": "base"})
        return path

    return path_of


@pytest.fixture(scope="session")
def small_stages(family: dict[str, Stage]) -> tuple[Stage, ...]:
    """All stages but the speaker encoder, which is slow to export."""
    return tuple(stage for stage in family.values() if stage.name != "speaker_encoder")


@pytest.fixture(scope="session")
def engines(small_stages: tuple[Stage, ...]) -> dict[str, PlanConfig]:
    """Configurations for TensorRT by model."""
    return {item.model.name: item for item in plans.plan_configs(small_stages, Instances())}


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
        paths = {
            config.name: writer.add(
                config,
                tensorrt=plan_config.to_message(engines[config.name]) if config.name in engines else None,
            )
            for config in wiring.model_configs(small_stages, Instances())
        }
        for stage in small_stages:
            shutil.copy(exported(stage.name), paths[stage.name])
            if stage.state_size:
                writer.share_onnx(f"{stage.name}_stream", stage.name)
        shutil.copy(exported(wiring.CONVERTER), paths[wiring.CONVERTER])
    return folder


@pytest.fixture
def repository(root: Path) -> ModelRepository:
    """The reader of that folder."""
    return ModelRepository(root)


@pytest.fixture
def rtx() -> Builder:
    """Runs ``autovoice build --engine tensorrt-rtx`` on a repository; takes both folders, then options."""
    return run_builder


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts an ``nvidia-smi`` on PATH that shows one GPU; called with other lines, it shows those."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "nvidia-smi"

    def show(lines: str) -> None:
        program.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
        program.chmod(0o755)

    show(f"{GPU}, {CAPABILITY}\\n")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return show


@pytest.fixture(scope="session")
def some_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared library that can be loaded and holds no plugin."""
    name = ctypes.util.find_library("m")
    folders = ("/lib", "/usr/lib", "/lib64", "/usr/lib64")
    found = [path for folder in folders for path in Path(folder).glob(f"**/{name}")]
    if not found:
        pytest.skip("no shared library found to stand in for the plugin library")
    copy = tmp_path_factory.mktemp("plugins") / "libautovoice_plugins_trt11.so"
    shutil.copy(found[0], copy)
    return copy


@pytest.fixture
def build_plans(gpu: object, some_library: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``autovoice build --engine tensorrt`` on a repository with the stand-in.

    Takes the folder, then further arguments; keywords become settings of the stand-in.
    """

    def run(root: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(FAKE),
            "AUTOVOICE_PLUGINS": str(some_library.parent),
            "COLUMNS": "200",
            **settings,
        }
        command = [sys.executable, str(FAKE / "build_plans.py"), "build", "--engine", "tensorrt"]
        command += ["--repository", str(root), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def _missing() -> str:
    """What keeps TensorRT from running here; nothing where it can."""
    if importlib.util.find_spec("tensorrt") is None:
        return "the package tensorrt is not installed: run the tests inside NVIDIA's TensorRT image"
    try:
        find_gpus()
        find_plugin_library()
    except VoiceConversionError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def build_real_plan() -> Callable[[Path, str, Precision], None]:
    """Builds the plan of a model by TensorRT and holds it to ONNX Runtime; skipped where TensorRT is missing.

    `build_plans` runs both in Polygraphy at the shapes of every profile, and raises where they part.
    """
    if reason := _missing():
        pytest.skip(reason)

    def build(root: Path, model: str, precision: Precision) -> None:
        options = PlanOptions(precision=precision, models=(model,), force=True)
        ((_, manifest),) = build_with_tensorrt(root, options, Progress())
        assert manifest is not None
        config = plan_config.read_plan_config(root / model)
        assert {tensor.name for tensor in config.output} <= set(manifest.deviation)
        assert all(0 <= share <= 1 for share in manifest.deviation.values())
        check_plan(ModelRepository(root), model, config, find_gpus()[0], manifest.tensorrt)

    return build
