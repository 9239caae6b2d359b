"""`--model-config-name=tensorrt` on a server that cannot run plans: what it reads, and what stops it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from triton_calls import local_options

from autovoice.cli.main import run
from autovoice.repository.plans import models_with_plans
from autovoice.repository.reader import ModelRepository
from autovoice.server.server import ServerError, TritonServer

pytestmark = pytest.mark.server


def test_triton_reads_the_configurations_and_lacks_only_the_backend(
    installed: None, repository: Path, cache: Path
) -> None:
    """Past AutoVoice's own look at the plans, which a machine without a GPU would not get by."""
    options = local_options(repository, extra=("--model-config-name=tensorrt",))
    with pytest.raises(ServerError) as caught, TritonServer(options, cache=cache):
        pass
    reasons = dict(re.findall(r"model (\w+) did not load: ([^;]+)", str(caught.value)))
    stages = set(models_with_plans(ModelRepository(repository), "tensorrt"))
    assert {"synthesizer", "synthesizer_stream", "speaker_encoder"} <= stages
    assert {name for name, reason in reasons.items() if "backend 'tensorrt'" in reason} == stages
    assert all("tensorrt" in reason or "depends on" in reason for reason in reasons.values())


def test_plans_without_a_gpu_are_refused_before_the_server_starts(
    installed: None,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    assert run(["serve", "--repository", str(repository), "--config-name", "tensorrt"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no NVIDIA GPU can be seen here" in error
