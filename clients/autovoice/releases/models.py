"""The models of a release: one version of each, renumbered, with every ensemble's steps pinned to it."""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from autovoice.errors import ReleaseError, RepositoryError
from autovoice.releases.release import UNLISTED, read_release
from autovoice.repository.model_config import dump_config, read_config
from autovoice.repository.plans import manifest_path, sha256
from autovoice.repository.reader import CONFIG_FILENAME, ModelRepository, is_hidden

PLACEHOLDER = ".gitkeep"
"""Holds the version folder of an ensemble, which has no file, where only files are kept: Git, S3."""

Configs = Mapping[str, Mapping[str, Any]]
"""Every config of every model: by the model's name, and by the path inside its folder."""


class KnownFiles:
    """Files that need no copy: those of the parent, and those that the release has already.

    Args:
        parent: folder of the release before, None for none; where it is damaged, its files are not used.
    """

    def __init__(self, parent: Path | None) -> None:
        self._paths: dict[str, Path] = {}
        if parent is not None:
            with suppress(ReleaseError):
                files = read_release(parent).files
                self._paths = {file.sha256: parent / name for name, file in files.items()}

    def add(self, source: Path, target: Path) -> None:
        """Put a file into the release, as a hard link where an equal one is known.

        Raises:
            OSError: it cannot be read or written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = sha256(source)
        known = self._paths.get(digest)
        if known is not None and known.is_file() and filecmp.cmp(source, known, shallow=False):
            try:
                os.link(known, target)
                return
            except OSError as error:  # what a file system without hard links says, or one with too many
                if error.errno not in (errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP):
                    raise
        shutil.copyfile(source, target)
        self._paths[digest] = target


def read_configs(repository: ModelRepository) -> Configs:
    """Read `config.pbtxt` and `configs/*.pbtxt` of every model.

    Raises:
        RepositoryError: one cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in repository.names():
        folder = repository.path / name
        others = sorted((folder / "configs").glob("*.pbtxt"))
        found[name] = {
            path.relative_to(folder).as_posix(): read_config(path)
            for path in (folder / CONFIG_FILENAME, *others)
            if not is_hidden(path)
        }
    return found


def steps_of(configs: Configs) -> list[Any]:
    """Steps of all ensembles, under every config name."""
    messages = [message for variants in configs.values() for message in variants.values()]
    return [step for message in messages for step in message.ensemble_scheduling.step]


def choose_versions(repository: ModelRepository, configs: Configs) -> dict[str, int]:
    """The version of each model that goes into a release: what ensembles use, else what is served.

    Raises:
        RepositoryError: two ensembles use different versions of a model, or something does not fit.
    """
    used: dict[str, set[int]] = {}
    for step in steps_of(configs):
        spec = repository.spec(step.model_name, step.model_version)
        used.setdefault(step.model_name, set()).add(spec.version)
    chosen = {}
    for name in repository.names():
        spec = repository.spec(name)
        if spec.steps:
            repository.steps_in_order(spec)
        versions = sorted(used.get(name, {spec.version}))
        if len(versions) > 1:
            raise RepositoryError(
                f"ensembles of {repository.path} use versions {', '.join(map(str, versions))} of {name}, and "
                "a release holds one of each model; build or import them anew"
            )
        chosen[name] = versions[0]
    return chosen


def write_models(
    repository: ModelRepository,
    configs: Configs,
    versions: Mapping[str, int],
    target: Path,
    number: int,
    known: KnownFiles,
) -> None:
    """Write the models of a release, and the files that lie beside the models, into an empty folder.

    Args:
        repository: to copy from.
        configs: its configs; they become those of the release.
        versions: of each model to take; see `choose_versions`.
        target: the folder.
        number: of the release.
        known: files that need no copy.

    Raises:
        OSError: something cannot be read or written.
    """
    for file in _files(repository.path.iterdir()):
        if file.name not in UNLISTED:
            known.add(file, target / file.name)
    for name, variants in configs.items():
        _copy_version(repository.path / name / str(versions[name]), target / name / str(number), known)
        _copy_others(repository.path / name, target / name, known)
        for relative, message in variants.items():
            pin(message, number)
            path = target / name / relative
            path.parent.mkdir(exist_ok=True)
            path.write_text(dump_config(message), encoding="utf-8")


def pin(config: Any, number: int) -> None:
    """Make a `ModelConfig` serve one version, and the steps of an ensemble ask for it."""
    config.version_policy.specific.versions[:] = [number]
    for step in config.ensemble_scheduling.step:
        step.model_version = number


def _copy_version(source: Path, target: Path, known: KnownFiles) -> None:
    target.mkdir(parents=True)
    for file in _files(source.rglob("*")):
        place = target / file.relative_to(source)
        known.add(file, place)
        manifest = manifest_path(file)  # of a plan; that of a link lies beside the plan that it points to
        if manifest.is_file() and not (file.parent / manifest.name).exists():
            known.add(manifest, place.with_name(manifest.name))
    if not any(target.iterdir()):
        (target / PLACEHOLDER).touch()


def _copy_others(source: Path, target: Path, known: KnownFiles) -> None:
    """Copy what a model's folder holds beside its configs and versions."""
    for entry in source.iterdir():
        is_version = entry.is_dir() and entry.name.isdecimal()
        if not is_version and not is_hidden(entry) and entry.name not in (CONFIG_FILENAME, "configs"):
            for file in _files([entry] if entry.is_file() else entry.rglob("*")):
                known.add(file, target / file.relative_to(source))


def _files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and not is_hidden(path))
