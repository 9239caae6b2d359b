"""Publishing into a folder: what a release holds, and that it appears whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keys import write_key_pair
from toy_repository import expected_conversion

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.errors import ReleaseError, RepositoryError
from autovoice.releases import publishing
from autovoice.releases.publishing import publish
from autovoice.releases.release import read_release, release_numbers
from autovoice.releases.signing import SigningKey, TrustedKey
from autovoice.releases.verifying import verify
from autovoice.repository.model_config import dump_config, read_config
from autovoice.repository.plans import manifest_path
from autovoice.repository.reader import UPDATE_FOLDER, UPDATE_JOURNAL, ModelRepository


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def pin(folder: Path, model: str, version: int) -> None:
    """Let every ensemble of a repository ask for one version of a model."""
    for path in folder.glob("*/config.pbtxt"):
        config = read_config(path)
        for step in config.ensemble_scheduling.step:
            if step.model_name == model:
                step.model_version = version
        path.write_text(dump_config(config))


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


def test_the_contract_is_what_clients_ask_for(repository: Path, releases: Path) -> None:
    contract = publish(repository, releases).contract
    assert set(contract) == {
        "speaker_encoder",
        "target_pitch",
        *(f"voice_conversion{f0}{stream}" for f0 in ("", "_with_f0") for stream in ("", "_stream")),
    }
    voice = contract["voice_conversion"]
    assert voice["inputs"]["SOURCE_AUDIO"] == {"type": "float32", "dims": [-1]}
    assert voice["outputs"] == {"CONVERTED_AUDIO": {"type": "float32", "dims": [-1]}}
    assert voice["max_batch_size"] == 16
    assert {"sample_rate", "lookahead_samples", "embedding_size"} <= set(voice["parameters"])
    assert contract["speaker_encoder"]["outputs"]["EMBEDDING"]["dims"] == [4]


class TestFiles:
    def test_what_lies_beside_the_models_comes_along(self, repository: Path, releases: Path) -> None:
        (repository / "MODEL_CARD.md").write_text("a card")
        (repository / ".DS_Store").touch()
        (repository / "lost+found").mkdir()
        (repository / "delay" / "labels").mkdir()
        (repository / "delay" / "labels" / "names.txt").write_text("a")
        (repository / "delay" / "1" / ".swap").touch()
        (repository / "delay" / "configs").mkdir()
        shutil.copy(
            repository / "delay" / "config.pbtxt", repository / "delay" / "configs" / "tensorrt.pbtxt"
        )
        release = publish(repository, releases, 4)
        assert sorted(name for name in release.files if name.startswith("delay/")) == [
            "delay/4/model.onnx",
            "delay/config.pbtxt",
            "delay/configs/tensorrt.pbtxt",
            "delay/labels/names.txt",
        ]
        assert {name for name in release.files if "/" not in name} == {"MODEL_CARD.md"}
        variant = read_config(release.path / "delay" / "configs" / "tensorrt.pbtxt")
        assert list(variant.version_policy.specific.versions) == [4]

    def test_the_steps_of_every_variant_are_pinned(self, repository: Path, releases: Path) -> None:
        path = repository / "voice_conversion_stream" / "configs" / "tensorrt.pbtxt"
        path.parent.mkdir()
        config = read_config(repository / "voice_conversion_stream" / "config.pbtxt")
        config.ensemble_scheduling.step[0].model_name = "target_pitch"
        path.write_text(dump_config(config))
        release = publish(repository, releases, 4)
        pinned = read_config(release.path / "voice_conversion_stream" / "configs" / "tensorrt.pbtxt")
        assert {step.model_version for step in pinned.ensemble_scheduling.step} == {4}
        assert "target_pitch" not in release.contract

    def test_a_linked_plan_brings_its_manifest(self, repository: Path, releases: Path) -> None:
        folder = repository / "delay" / "1"
        (folder / "sm_86.plan").write_text("plan")
        (folder / "sm_86.plan.json").write_text("manifest")
        link = repository / "delay_stream" / "1" / "sm_86.plan"
        link.symlink_to("../../delay/1/sm_86.plan")
        release = publish(repository, releases)
        for model in ("delay", "delay_stream"):
            plan = release.path / model / "1" / "sm_86.plan"
            assert not plan.is_symlink()
            assert manifest_path(plan).read_text() == "manifest"
        assert os.path.samefile(
            release.path / "delay/1/sm_86.plan", release.path / "delay_stream/1/sm_86.plan"
        )

    def test_the_version_that_ensembles_use_is_published(self, repository: Path, releases: Path) -> None:
        shutil.copytree(repository / "delay" / "1", repository / "delay" / "2")
        (repository / "delay" / "2" / "model.onnx").write_text("a later one")
        old = (repository / "delay" / "1" / "model.onnx").read_bytes()
        pin(repository, "delay", 1)
        release = publish(repository, releases, 5)
        assert (release.path / "delay" / "5" / "model.onnx").read_bytes() == old

    def test_ensembles_that_use_different_versions_are_refused(
        self, repository: Path, releases: Path
    ) -> None:
        shutil.copytree(repository / "delay" / "1", repository / "delay" / "2")
        pin(repository, "delay", 1)
        path = repository / "voice_conversion" / "config.pbtxt"
        path.write_text(re.sub("model_version: 1", "model_version: 2", path.read_text()))
        with pytest.raises(RepositoryError, match="use versions 1, 2 of delay, and a release holds one"):
            publish(repository, releases)
        assert not releases.exists()

    def test_a_damaged_parent_gives_no_files(self, repository: Path, releases: Path) -> None:
        first = publish(repository, releases)
        (first.path / "delay/1/model.onnx").chmod(0o644)
        (first.path / "delay/1/model.onnx").write_text("damaged")
        second = publish(repository, releases)
        model = (repository / "delay/1/model.onnx").read_bytes()
        assert (second.path / "delay/2/model.onnx").read_bytes() == model
        (second.path / "release.json").chmod(0o644)
        (second.path / "release.json").write_text("damaged")
        third = publish(repository, releases)
        assert (third.parent, third.check()) == (2, [])

    @pytest.mark.parametrize("refusal", [errno.EPERM, errno.EMLINK, errno.EXDEV])
    def test_without_hard_links_files_are_copied(
        self, repository: Path, releases: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(refusal, "no links here")

        monkeypatch.setattr(os, "link", refuse)
        publish(repository, releases)
        release = publish(repository, releases)
        assert release.check() == []
        assert (release.path / "delay/2/model.onnx").stat().st_nlink == 1


class TestGit:
    def git(self, repository: Path, *arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(repository), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def test_the_commit_is_named_with_whether_files_differ(self, repository: Path, releases: Path) -> None:
        assert publish(repository, releases).commit is None
        self.git(repository.parent, "init", "-q")
        (repository.parent / "other").touch()
        self.git(repository.parent, "add", "other")
        self.git(repository.parent, "commit", "-qm", "other")
        assert publish(repository, releases).commit is None, "Git does not keep the repository"
        self.git(repository.parent, "add", "repository")
        self.git(repository.parent, "commit", "-qm", "models")
        head = self.git(repository, "rev-parse", "HEAD")
        assert publish(repository, releases).commit == head
        (repository / "delay" / "config.pbtxt").open("a").write("# a note")
        assert publish(repository, releases).commit == head + "+"


class TestOneReleaseAsItIs:
    @pytest.fixture
    def release(self, repository: Path, releases: Path, tmp_path: Path) -> Path:
        private, _ = write_key_pair(tmp_path)
        return publish(repository, releases, 7, key=SigningKey(private)).path

    def test_it_keeps_its_number_and_its_signature(self, release: Path, tmp_path: Path) -> None:
        copy = publish(release, tmp_path / "elsewhere")
        assert copy.path == tmp_path / "elsewhere" / "7"
        assert contents(copy.path) == contents(release)
        verify(copy.path, TrustedKey(tmp_path / "key.pub"))

    def test_another_key_signs_it_anew(self, release: Path, tmp_path: Path) -> None:
        private, public = write_key_pair(tmp_path, "other")
        copy = publish(release, tmp_path / "elsewhere", key=SigningKey(private))
        verify(copy.path, TrustedKey(public))
        verify(release, TrustedKey(tmp_path / "key.pub"))

    def test_it_takes_no_other_number_and_no_damage(self, release: Path, tmp_path: Path) -> None:
        with pytest.raises(ReleaseError, match="is release 7, which cannot be published as 8"):
            publish(release, tmp_path / "elsewhere", 8)
        (release / "more").touch()
        with pytest.raises(ReleaseError, match="more was added"):
            publish(release, tmp_path / "elsewhere")
        assert not (tmp_path / "elsewhere").exists()


class TestRefusals:
    @pytest.mark.parametrize("number", [0, -1, 2**31])
    def test_what_no_version_can_be_is_refused(self, repository: Path, releases: Path, number: int) -> None:
        with pytest.raises(ReleaseError, match=f"number {number} is none of a release"):
            publish(repository, releases, number)

    @pytest.mark.parametrize("there", ["file", "folder", "link"])
    def test_anything_with_that_name_is_left_alone(
        self, repository: Path, releases: Path, there: str
    ) -> None:
        releases.mkdir()
        {
            "file": (releases / "1").touch,
            "folder": (releases / "1").mkdir,
            "link": lambda: (releases / "1").symlink_to("nowhere"),
        }[there]()
        with pytest.raises(ReleaseError, match="release 1 exists"):
            publish(repository, releases, 1)
        assert [path.name for path in releases.iterdir()] == ["1"]

    @pytest.mark.parametrize(
        ("harm", "message"),
        [
            (lambda root: (root / "delay/1/model.onnx").unlink(), "model.onnx .*is missing"),
            (lambda root: shutil.rmtree(root / "delay"), "has no model 'delay'"),
            (lambda root: (root / "delay/config.pbtxt").write_text("x"), "is not a Triton model config"),
            (lambda root: pin(root, "delay", 9), "model delay has no version 9"),
        ],
    )
    def test_a_broken_repository_is_refused(
        self, repository: Path, releases: Path, harm: Callable[[Path], object], message: str
    ) -> None:
        harm(repository)
        with pytest.raises(RepositoryError, match=message):
            publish(repository, releases)
        assert not releases.exists()

    def test_a_repository_that_is_being_changed_is_refused(self, repository: Path, releases: Path) -> None:
        descriptor = os.open(repository, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(RepositoryError, match="is being changed by another process"):
            publish(repository, releases)
        os.close(descriptor)
        (repository / UPDATE_FOLDER).mkdir()
        (repository / UPDATE_FOLDER / UPDATE_JOURNAL).touch()
        with pytest.raises(RepositoryError, match="is being changed, or a change of it was interrupted"):
            publish(repository, releases)

    def test_a_place_that_is_no_folder_is_refused(self, repository: Path, releases: Path) -> None:
        releases.touch()
        with pytest.raises(ReleaseError, match=r"no release could be published in .*releases"):
            publish(repository, releases)

    def test_a_release_that_cannot_be_signed_is_none(self, repository: Path, releases: Path) -> None:
        with pytest.raises(ReleaseError, match=r"cannot be signed with nowhere\.pem"):
            publish(repository, releases, key=SigningKey(Path("nowhere.pem")))
        assert not releases.exists()


class TestTwoAtOnce:
    def test_the_second_is_told_while_the_first_writes(
        self, repository: Path, releases: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = []
        write = publishing.write_models

        def meanwhile(*arguments: Any) -> None:
            monkeypatch.setattr(publishing, "write_models", write)
            with pytest.raises(ReleaseError, match="another process is publishing in") as caught:
                publish(repository, releases)
            told.append(caught.value)
            write(*arguments)

        monkeypatch.setattr(publishing, "write_models", meanwhile)
        publish(repository, releases)
        assert len(told) == 1
        assert contents(releases).keys() >= {"1/release.json"}
        assert release_numbers(releases) == [1]

    def test_without_locks_the_name_is_given_once(
        self, repository: Path, releases: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_locks(*_: object) -> None:
            raise OSError(errno.ENOLCK, "no locks here")

        place = publishing._place

        def first_another(release: Path, target: Path) -> None:
            shutil.copytree(release, target)
            (target / "release.json").chmod(0o644)
            (target / "release.json").write_text("the other's")
            place(release, target)

        monkeypatch.setattr(fcntl, "flock", no_locks)
        monkeypatch.setattr(publishing, "_place", first_another)
        with pytest.raises(ReleaseError, match=r"release 1 was published in .* by another process meanwhile"):
            publish(repository, releases)
        assert (releases / "1" / "release.json").read_text() == "the other's"
        assert [path.name for path in releases.iterdir()] == ["1"]


CALLS = ("rename", "mkdir", "rmdir", "unlink", "link", "chmod", "fsync", "open")


def counting(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> list[int]:
    """Do something at the file system's call of that number; returns a list with what is left to count."""
    left = [step]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                act()
            return call(*arguments, **options)

        return run

    for name in CALLS:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(io, "open", counted(io.open))
    monkeypatch.setattr(shutil, "copyfile", counted(shutil.copyfile))
    return left


@pytest.mark.parametrize("stride", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_killed_at_any_step_leaves_a_whole_release_or_none(
    repository: Path, releases: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    first = publish(repository, releases)
    before = contents(first.path)
    seen = set()
    for step in itertools.count(1, stride):
        child = os.fork()
        if child == 0:
            try:
                counting(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGKILL))
                publish(repository, releases)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert contents(first.path) == before
        numbers = release_numbers(releases)
        seen.add(tuple(numbers))
        if 2 in numbers:
            assert read_release(releases / "2").check() == []
            shutil.rmtree(releases / "2")
        if os.WIFEXITED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert step > 200
    assert seen == {(1,), (1, 2)}
    publish(repository, releases)
    assert [path.name for path in sorted(releases.iterdir())] == ["1", "2"], "what was left is removed"


@pytest.mark.parametrize("stride", [31, pytest.param(1, marks=pytest.mark.slow)])
def test_a_write_that_fails_at_any_step_leaves_no_release(
    repository: Path, releases: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    def disk_full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    publish(repository, releases)
    before = contents(releases)
    for step in itertools.count(1, stride):
        with monkeypatch.context() as patch:
            left = counting(patch, step, disk_full)
            with suppress(ReleaseError, RepositoryError):
                publish(repository, releases)
        if left[0] > 0:
            break
        if (releases / "2").exists():  # what failed is only the removal of what is not needed any more
            assert read_release(releases / "2").check() == []
            shutil.rmtree(releases / "2")
        after = contents(releases)
        # Where the removal itself fails, empty folders stay until the next publication.
        assert {name: after[name] for name in after if after[name] or name[0] != "."} == before, step
    assert step > 200
    assert not [path for path in releases.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_leaves_no_release(repository: Path, tmp_path: Path) -> None:
    (repository / "big").write_bytes(os.urandom(1 << 20))
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], check=False)
    if done.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        with pytest.raises(ReleaseError, match="No space left on device"):
            publish(repository, disk / "releases")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
