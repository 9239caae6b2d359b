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
from autovoice_export.onnx_export import export_stage
from autovoice_export.stage import Stage
from autovoice_export.stages.content_encoder import ContentEncoder, ContentEncoderConfig
from autovoice_export.stages.synthesizer import Synthesizer, SynthesizerConfig
from autovoice_export.stages.target_pitch import TargetPitch
from autovoice_export.stages.voice_encoder import PhoneClassifier


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """Stages of the real structure but narrow, with weights that make every input matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        content_encoder = ContentEncoder(ContentEncoderConfig(channels=16, dilations=(1, 4), content_size=8))
        synthesizer = Synthesizer(
            SynthesizerConfig(content_size=8, channels=16, dilations=(1, 4), condition_size=16)
        )
        torch.nn.init.normal_(synthesizer.correction.weight, std=0.2)
        target_pitch = TargetPitch()
        torch.nn.init.normal_(target_pitch.linear.weight)
        torch.nn.init.normal_(synthesizer.average_voice)
        classifier = PhoneClassifier()
    return Checkpoint(content_encoder.eval(), synthesizer.eval(), target_pitch.eval(), classifier.eval())


@pytest.fixture(scope="session")
def family(checkpoint: Checkpoint) -> dict[str, Stage]:
    """The stages of the base family by name."""
    return {stage.name: stage for stage in base_family.stages(checkpoint)}


@pytest.fixture(scope="session")
def exported(family: dict[str, Stage], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the ONNX file of a stage, exporting it on first use in any test process."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def path_of(name: str) -> Path:
        path = shared / f"{name}.onnx"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                export_stage(family[name], path, {"family": "base"})
        return path

    return path_of
