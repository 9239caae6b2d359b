"""Publishing: a model repository becomes a release, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from autovoice.atomic import as_path, reason_of, sync
from autovoice.errors import ReleaseError, RepositoryError, VoiceConversionError
from autovoice.releases import documents
from autovoice.releases.contract import read_contract
from autovoice.releases.models import KnownFiles, choose_versions, read_configs, steps_of, write_models
from autovoice.releases.release import (
    FORMAT,
    RELEASE_FILENAME,
    SIGNATURE_FILENAME,
    Release,
    read_release,
    release_numbers,
    walk,
)
from autovoice.releases.signing import SigningKey, sign
from autovoice.releases.verifying import verify
from autovoice.repository.plans import sha256
from autovoice.repository.reader import ModelRepository

_PACKAGES = ("autovoice", "numpy", "onnx", "onnxruntime", "protobuf", "torch", "tritonclient")
_PARTIAL = ".partial"
_LARGEST = 2**31 - 1  # what Triton's clients take for a version


def publish(
    repository: str | os.PathLike[str],
    to: str | os.PathLike[str],
    number: int | None = None,
    *,
    key: SigningKey | None = None,
    parent: int | None = None,
) -> Release:
    """Publish a repository as a release in a folder of releases.

    The release is a repository of its own, in the folder named by its number. That number is the version of
    every model, and what every step of an ensemble asks for. Files that the newest release before has already
    are hard links to them.

    Args:
        repository: the models; or a release, which is published as it is, under its number.
        to: folder of the releases; made where missing.
        number: of the release; None for the one after the newest, or that of the release.
        key: to sign it with; None to leave it as it is.
        parent: number of the release before, where that is not in the folder.

    Raises:
        RepositoryError: the repository is broken, or is being changed.
        ReleaseError: a release of that number exists, another one is being published there, or the folder
            cannot be written; it cannot be signed; the release to publish is damaged. Nothing has changed.
    """
    source = ModelRepository(as_path(repository, "repository", RepositoryError))
    folder = as_path(to, "folder of releases", ReleaseError)
    with _errors_of(folder), _reading(source.path), _made(folder), _lock(folder):
        numbers = release_numbers(folder)
        published = _published(source.path, number)
        if published is not None:
            number = published.number
        elif number is None:
            number = max(numbers, default=0) + 1
        _require_free(folder, number)
        before = max((other for other in numbers if other < number), default=None)
        known = KnownFiles(None if before is None else folder / str(before))
        with _partial(folder) as partial:
            release = partial / str(number)
            if published is None:
                _write(source, release, number, parent if before is None else before, known)
            else:
                for name, _ in walk(source.path):
                    known.add(source.path / name, release / name)
            if key is not None:
                sign(release, release / SIGNATURE_FILENAME, key)
            _place(release, folder / str(number))
    return read_release(folder / str(number))


def _published(path: Path, number: int | None) -> Release | None:
    """The release that a repository is; None for one that is none.

    Raises:
        ReleaseError: it is damaged, or has another number than that.
    """
    if not (path / RELEASE_FILENAME).exists():
        return None
    release = verify(path)
    if number not in (None, release.number):
        raise ReleaseError(f"{path} is release {release.number}, which cannot be published as {number}")
    return release


def _write(source: ModelRepository, target: Path, number: int, parent: int | None, known: KnownFiles) -> None:
    """Write a release into a folder that does not exist yet."""
    configs = read_configs(source)
    versions = choose_versions(source, configs)
    contract = read_contract(source, {step.model_name for step in steps_of(configs)})
    target.mkdir()
    write_models(source, configs, versions, target, number, known)
    content = {
        "format": FORMAT,
        "number": number,
        "parent": parent,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git_commit(source.path),
        "made_by": documents.versions_of(_PACKAGES),
        "contract": contract,
        "files": {
            name: {"sha256": sha256(Path(entry.path)), "size": entry.stat().st_size}
            for name, entry in walk(target)
        },
    }
    (target / RELEASE_FILENAME).write_text(documents.dumps(content), encoding="utf-8")


def git_commit(folder: Path) -> str | None:
    """Git commit of a folder, with `+` where its files differ from that commit; None where Git has none."""
    try:
        if not _git(folder, "ls-files", "--", "."):
            return None
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + "+" if _git(folder, "status", "--porcelain", "--", ".") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _require_free(folder: Path, number: int) -> None:
    if not 1 <= number <= _LARGEST:
        raise ReleaseError(f"number {number} is none of a release: give 1 to {_LARGEST}")
    if os.path.lexists(folder / str(number)):
        raise ReleaseError(
            f"release {number} exists in {folder} and was left as it is: give another number, or none for "
            "the next one"
        )


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """An empty hidden folder, removed at the end where it is still there."""
    path = folder / f".{secrets.token_hex(8)}{_PARTIAL}"
    try:
        path.mkdir()
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _place(release: Path, target: Path) -> None:
    """Give a whole release its name.

    Raises:
        ReleaseError: something has that name by now.
    """
    for _, entry in walk(release):
        os.chmod(entry.path, 0o444)
        sync(Path(entry.path))
    for folder, _, _ in os.walk(release):
        sync(Path(folder))
    try:
        os.rename(release, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise ReleaseError(
            f"release {target.name} was published in {target.parent} by another process meanwhile: publish "
            "again for the next number"
        ) from None
    with suppress(OSError):  # it is published
        sync(target.parent)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder where there is none, and remove it again where nothing came into it."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep others from publishing there, and remove what killed ones left.

    Raises:
        ReleaseError: another process publishes there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReleaseError(
                f"another process is publishing in {folder}: wait for it to end and try again"
            ) from None
        except OSError:  # a file system without locks: what lies there may be another one's
            left = []
        else:
            left = list(folder.glob(f".*{_PARTIAL}"))
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _reading(repository: Path) -> Iterator[None]:
    """Keep builds and imports from changing a repository meanwhile.

    Raises:
        RepositoryError: one is under way.
    """
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RepositoryError(
                f"{repository} is being changed by another process: wait for it to end and try again"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _errors_of(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into one error."""
    try:
        yield
    except VoiceConversionError:
        raise
    except OSError as error:
        raise ReleaseError(
            f"no release could be published in {folder} ({error.filename or 'writing'}: {reason_of(error)}): "
            "free some space, or choose a folder that you can write to"
        ) from error
