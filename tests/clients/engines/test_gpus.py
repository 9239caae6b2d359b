"""What is said about the GPUs of this machine, and that nothing is an error where there is none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.cli.console import describe_gpu
from autovoice.cli.main import run
from autovoice.engines.gpus import gpu_count, gpu_uses
from autovoice.results import GpuUse

LISTED = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
needs_gpu = pytest.mark.skipif(not LISTED, reason="there is no NVIDIA GPU here")


def test_gpus_are_counted_where_a_driver_tells() -> None:
    assert gpu_count() == (LISTED or None) or "CUDA_VISIBLE_DEVICES" in os.environ


def test_info_and_profiles_list_every_gpu_and_none_is_no_error(
    toy: Path, voice: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(gpu_uses()) == LISTED
    assert run(["info", "--repository", str(toy), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["gpus"]) == LISTED
    with VoiceConversionPipeline(PipelineConfig(repository=toy, device="cpu")) as pipeline:
        profile = pipeline.profile_conversion(np.full(480, 0.1, np.float32), voice, None, 24_000)
    assert len(profile.gpus) == LISTED
    assert len(json.loads(json.dumps(profile.to_dict()))["gpus"]) == LISTED


@pytest.mark.gpu
@needs_gpu
def test_memory_and_use_make_sense() -> None:
    for number, gpu in enumerate(gpu_uses()):
        assert gpu.number == number
        assert gpu.name
        assert 0 < gpu.memory_used_bytes <= gpu.memory_total_bytes
        assert gpu.use_percent is None or 0 <= gpu.use_percent <= 100


@pytest.mark.parametrize(
    ("use", "end"), [(37, ", 37 % busy"), (0, ", 0 % busy"), (None, "2.0 GB of 24.0 GB in use")]
)
def test_a_gpu_is_one_line(use: int | None, end: str) -> None:
    line = describe_gpu(GpuUse(1, "NVIDIA A10\n", 2_000_000_000, 24_000_000_000, use))
    assert line.startswith("GPU 1: NVIDIA A10\\n, 2.0 GB of 24.0 GB in use")
    assert line.endswith(end)
