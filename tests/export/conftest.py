"""Small untrained stages and their ONNX files, exported once for all test processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from autovoice_export import base_family
from autovoice_export.checkpoint import Checkpoint
from autovoice_export.composition import Composition, compose_stages
from autovoice_export.onnx_export import export_stage
from autovoice_export.stage import Stage
from autovoice_export.stages.content_encoder import ContentEncoder, ContentEncoderConfig
from autovoice_export.stages.synthesizer import Synthesizer, SynthesizerConfig
from autovoice_export.stages.target_pitch import TargetPitch


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """Stages of the real structure but narrow, with weights that make every input matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        content_encoder = ContentEncoder(ContentEncoderConfig(channels=16, dilations=(1, 4), content_size=8))
        synthesizer = Synthesizer(
            SynthesizerConfig(content_size=8, channels=16, dilations=(1, 4), condition_size=16)
        )
        torch.nn.init.normal_(synthesizer.output.weight, std=0.2)
        target_pitch = TargetPitch()
        torch.nn.init.normal_(target_pitch.linear.weight)
    return Checkpoint(content_encoder.eval(), synthesizer.eval(), target_pitch.eval())


@pytest.fixture(scope="session")
def family(checkpoint: Checkpoint) -> dict[str, Stage]:
    """The stages of the base family by name."""
    return {stage.name: stage for stage in base_family.stages(checkpoint)}


@pytest.fixture(scope="session")
def converter(family: dict[str, Stage]) -> Composition:
    """The stages of a live stream in one model."""
    return base_family.converter(tuple(family.values()))


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
