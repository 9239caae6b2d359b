"""Publishing into a folder: what a release holds, and that it appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from toy_repository import build_toy_repository, expected_conversion

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.errors import ReleaseError
from autovoice.releases.publishing import publish
from autovoice.releases.release import read_release, release_numbers
from autovoice.repository.model_config import read_config
from autovoice.repository.reader import ModelRepository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return build_toy_repository(tmp_path / "repository")


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    return tmp_path / "releases"


def test_the_number_is_the_version_of_every_model_and_step(repository: Path, releases: Path) -> None:
    release = publish(repository, releases, 7)
    assert (release.number, release.parent, release.path) == (7, None, releases / "7")
    assert release == read_release(releases / "7")
    assert release.check() == []
    models = ModelRepository(release.path)
    assert models.names() == ModelRepository(repository).names()
    for name in models.names():
        assert models.spec(name).versions == (7,)
        config = read_config(release.path / name / "config.pbtxt")
        assert list(config.version_policy.specific.versions) == [7]
        assert all(step.model_version == 7 for step in config.ensemble_scheduling.step)


def test_a_release_converts_like_its_repository(repository: Path, releases: Path) -> None:
    source = np.linspace(-0.5, 0.5, 5000, dtype=np.float32)
    path = publish(repository, releases, 3).path
    with VoiceConversionPipeline(PipelineConfig(repository=path, threads=1)) as pipeline:
        made = pipeline.convert(
            source, np.array([0.6, 0, 0, 0.8], np.float32), source_sample_rate=24000, pitch_shift_semitones=3
        )
    np.testing.assert_allclose(made, expected_conversion(source, 0.6, 3), atol=1e-5)


def test_files_that_did_not_change_are_those_of_the_parent(repository: Path, releases: Path) -> None:
    first = publish(repository, releases)
    changed = repository / "delay" / "1" / "model.onnx"
    changed.write_bytes(changed.read_bytes() + b"\x12\x00")
    second = publish(repository, releases)
    assert (first.number, second.number, second.parent) == (1, 2, 1)
    assert release_numbers(releases) == [1, 2]
    for name in ModelRepository(repository).names():
        if (first.path / name / "1" / "model.onnx").exists():
            same = os.path.samefile(first.path / name / "1/model.onnx", second.path / name / "2/model.onnx")
            assert same == (name not in ("delay", "delay_stream"))
    assert first.check() == second.check() == []


def test_an_existing_number_is_refused(repository: Path, releases: Path) -> None:
    publish(repository, releases, 2)
    before = sorted(releases.rglob("*"))
    with pytest.raises(ReleaseError, match=r"release 2 exists in .*releases and was left as it is"):
        publish(repository, releases, 2)
    assert sorted(releases.rglob("*")) == before
