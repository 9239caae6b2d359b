"""`serve --gpus`: which models run on which GPUs in the server's view of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from autovoice.cli.main import run
from autovoice.errors import ConfigurationError
from autovoice.repository.model_config import read_config
from autovoice.repository.reader import ModelRepository
from autovoice.server import options as options_module
from autovoice.server.options import ServeOptions, parse_gpus
from autovoice.server.overrides import write_view

ON_CPU = {"pad_source", "pad_source_with_f0", "trim_output", "target_pitch"}


@pytest.mark.parametrize("gpus", [(1,), (0, 1), (3, 0)])
def test_every_model_that_may_use_a_gpu_gets_those(
    repository: Path, tmp_path: Path, gpus: tuple[int, ...]
) -> None:
    """In the configs for TensorRT too, whose profiles stay; models for the CPU and ensembles stay."""
    models = ModelRepository(repository)
    write_view(models, tmp_path / "view", gpus=gpus)
    for before in sorted(repository.glob("*/**/*.pbtxt")):
        old, new = read_config(before), read_config(tmp_path / "view" / before.relative_to(repository))
        changed = []
        for group, former in zip(new.instance_group, old.instance_group, strict=True):
            if former.kind != former.KIND_CPU:
                assert (group.kind, list(group.gpus)) == (group.KIND_GPU, list(gpus))
                changed.append(new.name)
                group.kind = former.kind
                del group.gpus[:]
        assert new == old
        assert bool(changed) == (bool(new.backend) and new.name not in ON_CPU)


def test_copies_are_for_each_gpu(repository: Path, tmp_path: Path) -> None:
    write_view(ModelRepository(repository), tmp_path / "view", gpus=(0, 1), instances=3, threads=2)
    config = read_config(tmp_path / "view" / "synthesizer" / "config.pbtxt")
    (group,) = config.instance_group
    assert (group.count, list(group.gpus)) == (3, [0, 1])
    assert config.parameters["intra_op_thread_count"].string_value == "2"


@pytest.mark.parametrize("text", ["", ",", "0,", "a", "-1", "0;1", "0, 1", "cuda:0", "1.0"])
def test_what_is_no_list_of_gpus_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no list of numbers"):
        parse_gpus(text)


@pytest.mark.parametrize(
    ("count", "gpus", "message"),
    [
        (2, (0, 0), "each once"),
        (2, (), "each once"),
        (2, (-1,), "from 0 on"),
        (2, (0, 2), "there are 2; give numbers from 0 to 1"),
        (0, (0,), "no NVIDIA GPU can be seen here"),
        (None, (0,), "no NVIDIA GPU can be seen here"),
        (2, (1,), None),
        (2, (1, 0), None),
    ],
)
def test_gpus_have_to_be_there(
    monkeypatch: pytest.MonkeyPatch, count: int | None, gpus: tuple[int, ...], message: str | None
) -> None:
    monkeypatch.setattr(options_module, "gpu_count", lambda: count)
    if message is None:
        assert ServeOptions(Path("models"), gpus=gpus).gpus == gpus
    else:
        with pytest.raises(ConfigurationError, match=message):
            ServeOptions(Path("models"), gpus=gpus)


def test_a_gpu_that_is_not_there_is_one_line(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options_module, "gpu_count", lambda: 1)
    assert run(["serve", "--repository", str(repository), "--gpus", "0,1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "gpus is (0, 1), and there are 1" in error
