"""Changes of a model repository that happen whole or not at all, even when the process is killed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from autovoice.atomic import atomic_path, reason_of, sync
from autovoice.errors import RepositoryError
from autovoice.repository.model_config import DEFAULT_MODEL_FILENAME, dump_config
from autovoice.repository.reader import CONFIG_FILENAME, UPDATE_FOLDER, UPDATE_JOURNAL, ModelRepository
from autovoice_export.config_files import to_message
from autovoice_export.config_types import FIRST_VERSION, AnyModelConfig, EnsembleConfig
from autovoice_export.repository_check import check_repository
from autovoice_export.tensorrt.plan_config import config_path


class RepositoryWriter:
    """Prepares models inside a repository and exchanges them with those of the same names at the end.

    Used as a context manager: leaving it normally puts the new models in place and keeps everything else that
    lies in the repository; leaving it by an exception changes nothing. The folder of the repository itself is
    never renamed, so it may be a mount or a link. A process that is killed while models are exchanged leaves
    a journal, and the next change of the repository begins by finishing that one.

    Args:
        root: the repository; made where missing.

    Raises:
        RepositoryError: on entering, when `root` is no folder that can be written, or is being changed by
            another process; on leaving, when the models could not be exchanged.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self._update = self.root / UPDATE_FOLDER
        self._new = self._update / "new"
        self._dropped: set[str] = set()

    def __enter__(self) -> RepositoryWriter:
        self._made_root = not self.root.exists()
        if not self._made_root and not self.root.is_dir():
            raise RepositoryError(f"{self.root} is not a folder: name another place for the model repository")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.root)
        except OSError as error:
            raise RepositoryError(
                f"cannot write into {self.root} ({reason_of(error)}): name another place for the model "
                "repository"
            ) from error
        try:
            _finish(self.root)
            self._new.mkdir(parents=True)
        except BaseException as error:
            self._leave()
            if isinstance(error, OSError):
                raise RepositoryError(f"cannot write into {self.root}: {reason_of(error)}") from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._exchange()
        finally:
            self._leave()

    def _leave(self) -> None:
        if not (self._update / UPDATE_JOURNAL).exists():
            shutil.rmtree(self._update, ignore_errors=True)
        if self._made_root and not any(self.root.iterdir()):
            self.root.rmdir()
        os.close(self._lock)

    def _exchange(self) -> None:
        added = sorted(folder.name for folder in self._new.iterdir())
        dropped = sorted(self._dropped - {*added})
        if not added and not dropped:
            return
        journal = self._update / UPDATE_JOURNAL
        try:
            _sync_tree(self._new)
            with atomic_path(journal) as path:
                path.write_text(json.dumps({"added": added, "dropped": dropped}), encoding="utf-8")
            _exchange(self.root)
        except OSError as error:
            state = "run it again to finish" if journal.exists() else "they are as they were"
            raise RepositoryError(
                f"the models of {self.root} could not be exchanged ({error}); {state}"
            ) from error

    def add(self, config: AnyModelConfig, *, tensorrt: Any = None) -> Path:
        """Makes the folder of a model with its configs and its version folder.

        Args:
            config: of the model; a version above the first joins the versions that are there already.
            tensorrt: ``ModelConfig`` message for servers with TensorRT, kept as ``configs/tensorrt.pbtxt``.

        Returns:
            Where the model's ONNX file belongs; an ensemble has none.

        Raises:
            RepositoryError: the repository holds a link of that name, whose target would stay as it is.
        """
        present = self.root / config.name
        if present.is_symlink():
            raise RepositoryError(
                f"{present} is a link, which a new model cannot take the place of: put the folder it points "
                "to there, or make the whole repository the link"
            )
        folder = self._new / config.name
        versions = folder / str(config.version)
        versions.mkdir(parents=True)
        for number in model_versions(present) if config.version > FIRST_VERSION else ():
            if number != config.version:
                _copy_tree(present / str(number), folder / str(number))
        (folder / CONFIG_FILENAME).write_text(dump_config(to_message(config)), encoding="utf-8")
        if tensorrt is not None:
            path = config_path(folder)
            path.parent.mkdir()
            path.write_text(dump_config(tensorrt), encoding="utf-8")
        if isinstance(config, EnsembleConfig):
            # Git keeps no empty folders, and Triton refuses a model without a version folder.
            (versions / ".gitkeep").touch()
        return versions / DEFAULT_MODEL_FILENAME

    def share_onnx(self, model: str, owner: str) -> None:
        """Gives a model, added before, the ONNX file of another one by a relative link."""
        path = self._new / model / str(FIRST_VERSION) / DEFAULT_MODEL_FILENAME
        path.symlink_to(Path("..", "..", owner, str(FIRST_VERSION), DEFAULT_MODEL_FILENAME))

    def drop(self, model: str) -> None:
        """Leaves a model of the repository out of the new one."""
        self._dropped.add(model)

    def check(self) -> ModelRepository:
        """Checks the repository as it is going to be and returns it; valid until the writer is left.

        Raises:
            RepositoryError: names the first model and tensor that do not fit.
            PlanError: a config for TensorRT has an unreadable optimisation profile.
        """
        whole = self._update / "all"
        whole.mkdir()
        for source in (self._new, self.root):
            for entry in source.iterdir():
                link = whole / entry.name
                if entry.name not in {UPDATE_FOLDER, *self._dropped} and not link.is_symlink():
                    link.symlink_to(entry)
        return check_repository(whole)


def model_versions(folder: Path) -> list[int]:
    """Numbers of the version folders of a model, ascending; none where there is no such model."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())


def finish_interrupted_change(root: Path) -> None:
    """Finishes the exchange of models that a killed process began, so that the repository can be read.

    Raises:
        RepositoryError: another process is changing the repository, or it cannot be written.
    """
    if (root / UPDATE_FOLDER / UPDATE_JOURNAL).exists():
        with RepositoryWriter(root):
            pass


def _lock(root: Path) -> int:
    """An open descriptor of the folder that holds a lock on it until it is closed.

    Raises:
        RepositoryError: another process has the lock.
    """
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise RepositoryError(
            f"{root} is being changed by another process: wait for it to end and try again"
        ) from error
    except OSError:
        pass  # a file system without locks
    return descriptor


def _finish(root: Path) -> None:
    """Ends what a killed process left: exchanges models where there is a journal, and forgets others."""
    update = root / UPDATE_FOLDER
    if (update / UPDATE_JOURNAL).exists():
        _exchange(root)
    if update.exists():
        shutil.rmtree(update)


def _exchange(root: Path) -> None:
    """Moves the models that the journal names into the repository and those that were there out of it.

    A killed process may have begun: a new model that has left the folder of the new ones is in its place.

    Raises:
        OSError: a folder could not be moved. All are back in their places, unless that failed too, which
            leaves the journal.
    """
    update = root / UPDATE_FOLDER
    new, old, journal = update / "new", update / "old", update / UPDATE_JOURNAL
    models = json.loads(journal.read_text(encoding="utf-8"))
    try:
        old.mkdir(exist_ok=True)
        for model in (*models["added"], *models["dropped"]):
            waits = model in models["dropped"] or (new / model).exists()
            if waits and os.path.lexists(root / model):
                os.rename(root / model, old / model)
            if (new / model).exists():
                os.rename(new / model, root / model)
        sync(root)
    except OSError:
        for model in (*models["added"], *models["dropped"]):
            if model in models["added"] and not (new / model).exists():
                os.rename(root / model, new / model)
            if os.path.lexists(old / model):
                os.rename(old / model, root / model)
        journal.unlink()
        raise
    journal.unlink()


def _copy_tree(source: Path, target: Path) -> None:
    """Copies a folder by linking its files, which are never changed in place, where the disk can."""

    def link(file: str, copy: str) -> None:
        try:
            os.link(file, copy, follow_symlinks=False)
        except OSError:
            shutil.copy2(file, copy, follow_symlinks=False)

    shutil.copytree(source, target, symlinks=True, copy_function=link)


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            if not Path(folder, name).is_symlink():
                sync(Path(folder, name))
        sync(Path(folder))
