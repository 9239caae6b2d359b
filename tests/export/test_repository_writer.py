"""Changing a repository whole or not at all: links, mounts, refused renames, and killed processes."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autovoice.cli.main import run
from autovoice.errors import RepositoryError
from autovoice.repository.reader import UPDATE_FOLDER, UPDATE_JOURNAL, ModelRepository
from autovoice_export.base import build, wiring
from autovoice_export.build_errors import ExportError
from autovoice_export.config_types import EnsembleConfig, EnsembleStep, StageModelConfig, TensorConfig
from autovoice_export.onnx.verification import verify, verify_composition
from autovoice_export.repository_check import check_repository
from autovoice_export.repository_writer import RepositoryWriter, finish_interrupted_change
from autovoice_export.stage import Stage

X, Y = TensorConfig("X", (-1,)), TensorConfig("Y", (-1,))
MODELS = ("first", "second", "third")


def write(root: Path, text: str, models: tuple[str, ...] = MODELS, *, version: int = 1) -> None:
    """Writes models whose files hold a text; nothing checks them."""
    with RepositoryWriter(root) as writer:
        for name in models:
            writer.add(StageModelConfig(name, (X,), (Y,), 1, version=version)).write_text(text)
        steps = tuple(EnsembleStep(name, {"X": "X"}, {"Y": "Y"}) for name in models[:1])
        writer.add(EnsembleConfig("whole", (X,), (Y,), steps, 1))


def fail() -> bytes:
    raise ExportError("no")


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def texts(root: Path) -> set[str]:
    return {(root / name / "1" / "model.onnx").read_text() for name in MODELS}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    write(root, "old")
    return root


def test_written_repository_fits_together(root: Path, tmp_path: Path) -> None:
    check_repository(root)
    link = root / "synthesizer_stream" / "1" / "model.onnx"
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    moved = root.rename(root.with_name("elsewhere"))
    check_repository(moved)
    assert all(any((folder / "1").iterdir()) for folder in moved.iterdir())


def test_a_change_replaces_its_models_and_keeps_the_rest(repository: Path) -> None:
    (repository / "MODEL_CARD.md").write_text("a card")
    shutil.copytree(repository / "first", repository / "other_voice")
    (repository / "second" / "config.pbtxt").write_text("broken")
    (repository / "second" / "2").mkdir()
    before = contents(repository)
    write(repository, "old")
    after = contents(repository)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"second/config.pbtxt"}
    assert not (repository / "second" / "2").exists()
    assert not (repository / UPDATE_FOLDER).exists()


def test_a_new_version_joins_those_there_are(repository: Path) -> None:
    write(repository, "new", version=2)
    for name in MODELS:
        assert [(repository / name / v / "model.onnx").read_text() for v in "12"] == ["old", "new"]


def test_a_dropped_model_is_gone(repository: Path) -> None:
    with RepositoryWriter(repository) as writer:
        writer.drop("second")
        writer.drop("never_there")
    assert sorted(path.name for path in repository.iterdir()) == ["first", "third", "whole"]


def test_what_is_checked_is_the_repository_as_it_is_going_to_be(root: Path) -> None:
    with RepositoryWriter(root) as writer:
        assert "trim_output" in writer.check().names()
    with RepositoryWriter(root) as writer:
        writer.drop("trim_output")
        with pytest.raises(RepositoryError, match="has no model 'trim_output'"):
            writer.check()
        writer._dropped.clear()
    check_repository(root)


def test_an_error_changes_nothing(repository: Path, tmp_path: Path) -> None:
    before = contents(repository)
    with pytest.raises(ExportError), RepositoryWriter(repository) as writer:
        writer.add(StageModelConfig("first", (X,), (Y,), 1)).write_bytes(fail())
    assert contents(repository) == before
    with pytest.raises(ExportError), RepositoryWriter(tmp_path / "made"):
        raise ExportError("no")
    assert list(tmp_path.iterdir()) == [repository]


def test_two_changes_at_once_are_refused(repository: Path) -> None:
    with RepositoryWriter(repository) as first:
        first.add(StageModelConfig("first", (X,), (Y,), 1)).write_text("new")
        with (
            pytest.raises(RepositoryError, match="is being changed by another process"),
            RepositoryWriter(repository),
        ):
            raise AssertionError
    assert texts(repository) == {"new", "old"}


class TestLinks:
    def test_a_repository_behind_a_link_is_changed_where_it_is(
        self, repository: Path, tmp_path: Path
    ) -> None:
        link = tmp_path / "link"
        link.symlink_to(repository.name)
        write(link, "new")
        assert link.is_symlink()
        assert texts(repository) == {"new"}

    def test_a_link_to_nothing_yet_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "deep" / "repository")
        write(tmp_path / "link", "new")
        assert (tmp_path / "link").is_symlink()
        assert texts(tmp_path / "deep" / "repository") == {"new"}

    def test_a_model_that_is_a_link_is_refused_before_the_work(
        self, repository: Path, tmp_path: Path
    ) -> None:
        shutil.move(repository / "second", tmp_path / "elsewhere")
        (repository / "second").symlink_to(tmp_path / "elsewhere")
        before = contents(repository)
        with pytest.raises(RepositoryError, match="repository/second is a link"):
            write(repository, "new")
        assert contents(repository) == before
        assert (repository / "second").is_symlink()


class TestMounts:
    @pytest.fixture
    def mount(self) -> Iterator[Callable[..., None]]:
        """Mounts something with the arguments of ``mount``; skips where that is not permitted."""
        mounted: list[str] = []

        def do(*arguments: str) -> None:
            done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
            mounted.append(arguments[-1])

        yield do
        for place in reversed(mounted):
            subprocess.run(["umount", place], check=True)

    @pytest.mark.parametrize("kind", ["tmpfs", "bind"])
    def test_a_mounted_repository_is_changed(
        self, tmp_path: Path, mount: Callable[..., None], kind: str
    ) -> None:
        root = tmp_path / "mounted"
        root.mkdir()
        if kind == "tmpfs":
            mount("-t", "tmpfs", "tmpfs", str(root))
        else:
            (tmp_path / "volume").mkdir()
            mount("--bind", str(tmp_path / "volume"), str(root))
        write(root, "old")
        write(root, "new")
        assert texts(root) == {"new"}
        with pytest.raises(OSError, match="busy"):
            root.rename(tmp_path / "elsewhere")

    def test_a_mounted_model_stays_and_the_others_with_it(
        self, repository: Path, tmp_path: Path, mount: Callable[..., None]
    ) -> None:
        (tmp_path / "volume").mkdir()
        mount("--bind", str(tmp_path / "volume"), str(repository / "second"))
        before = contents(repository)
        with pytest.raises(RepositoryError, match=r"busy.*repository/second.*they are as they were"):
            write(repository, "new")
        assert contents(repository) == before


@pytest.mark.parametrize("refused", range(1, 9))
def test_a_refused_rename_puts_every_model_back(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    before, calls, rename = contents(repository), 0, os.rename

    def refuse_one(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == refused:
            raise OSError(errno.EBUSY, "Device or resource busy", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_one)
    with pytest.raises(RepositoryError, match=r"could not be exchanged .*busy.*they are as they were"):
        write(repository, "new")
    assert calls > refused or refused == 1
    assert contents(repository) == before
    assert list(tmp_path.iterdir()) == [repository]


COUNTED = ("rename", "replace", "unlink", "mkdir", "rmdir", "close")


def write_and_be_killed(root: Path, step: int) -> bool:
    """Writes new models in a process of its own that kills itself at a call; whether it came to that."""
    child = os.fork()
    if child == 0:
        left = step

        def counting(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)

            return counted

        code = 1
        try:
            for name in COUNTED:
                setattr(os, name, counting(getattr(os, name)))
            write(root, "new")
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def test_a_process_killed_at_any_step_leaves_the_old_or_the_new_repository(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill loses nothing that was written
    seen: set[str] = set()
    interrupted = 0
    for step in itertools.count(1):
        root = tmp_path / "copy"
        shutil.copytree(repository, root)
        if not write_and_be_killed(root, step):
            break
        if (root / UPDATE_FOLDER / UPDATE_JOURNAL).exists():
            interrupted += 1
            with pytest.raises(RepositoryError, match="a change of it was interrupted"):
                ModelRepository(root)
            finish_interrupted_change(root)
        (text,) = texts(root)
        seen.add(text)
        ModelRepository(root)
        write(root, "newer")
        assert texts(root) == {"newer"}
        assert sorted(path.name for path in root.iterdir()) == [*MODELS, "whole"]
        shutil.rmtree(root)
    assert texts(root) == {"new"}
    assert seen == {"old", "new"}
    assert interrupted >= 2 * len(MODELS)


class TestCommand:
    def test_names_a_missing_checkpoint_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        missing = tmp_path / "no.safetensors"
        assert run(["build", "--checkpoint", str(missing), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"autovoice: checkpoint {missing} does not exist")
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_refuses_a_file_as_repository(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "out").write_text("mine")
        assert run(["build", "--random", "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("autovoice: ")
        assert "is not a folder" in error
        assert (tmp_path / "out").read_text() == "mine"

    def test_leaves_nothing_behind_when_a_stage_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def disk_full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(build, "export_stage", disk_full)
        assert run(["build", "--random", "--out", str(tmp_path / "out")]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("autovoice: ")
        assert "No space left on device" in last
        assert list(tmp_path.iterdir()) == []

    def test_plans_of_no_repository_fail_with_the_same_prefix(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["build", "--engine", "tensorrt", "--repository", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("autovoice: ")
        assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["speaker_encoder", "synthesizer"])
def test_committed_files_agree_with_pytorch(name: str) -> None:
    path = build.DEFAULT_REPOSITORY / name / "1" / "model.onnx"
    check_repository(build.DEFAULT_REPOSITORY)
    stages = wiring.stages(build.load_checkpoint(build.DEFAULT_CHECKPOINT))
    (stage,) = (stage for stage in stages if stage.name == name)
    verify(stage, path, frame_counts=(1, 2, 7, 100, 400))


def test_committed_converter_is_that_of_the_committed_stages(family: dict[str, Stage]) -> None:
    converter = wiring.converter(wiring.stages(build.load_checkpoint(build.DEFAULT_CHECKPOINT)))
    files = {
        name: build.DEFAULT_REPOSITORY / name / "1" / "model.onnx"
        for name in (converter.name, *(step.model for step in converter.steps))
    }
    verify_composition(converter, files, files[converter.name], frame_counts=(1, 2, 100), batch_sizes=(2,))
