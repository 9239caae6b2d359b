"""Releases in S3 buckets (`s3://bucket/prefix`) and in OCI registries (`oci://registry/name`)."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from autovoice.errors import ReleaseError
from autovoice.releases.oci import OciStore
from autovoice.releases.publishing import publish
from autovoice.releases.release import RELEASE_FILENAME, Release
from autovoice.releases.s3 import S3Store
from autovoice.releases.signing import SigningKey

_ADDRESS = re.compile(r"(s3|oci)://(.*)")


class Store(Protocol):
    """A place for releases that is no folder of this machine."""

    def taken(self) -> list[int]:
        """Numbers under which there is something, whole or not, ascending."""

    def numbers(self) -> list[int]:
        """Numbers of the whole releases, ascending."""

    def address(self, number: int) -> str:
        """Where a release is found."""

    def put(self, release: Release) -> None:
        """Upload a release under its number, whole or not at all.

        Raises:
            ReleaseError: a release of that number exists, or the upload failed.
        """

    def get(self, number: int, folder: Path) -> None:
        """Download a release into an empty folder.

        Raises:
            ReleaseError: there is none, or the download failed.
        """


def is_remote(place: str) -> bool:
    """Whether `place` is the address of a store, or of a release in one, and not a path."""
    return _ADDRESS.match(place) is not None


def publish_to(
    repository: str | os.PathLike[str], to: str, number: int | None = None, *, key: SigningKey | None = None
) -> tuple[Release, str]:
    """Publish a repository into a folder or a store.

    Args:
        repository: the models; or a release, which is published as it is, under its number.
        to: folder, or address of a store.
        number: of the release; None for the one after the newest, or that of the release.
        key: to sign it with; None to leave it as it is.

    Returns:
        The release and where it lies. That in a store has no folder any more.

    Raises:
        RepositoryError: the repository is broken, or is being changed.
        ReleaseError: a release of that number exists, or the place cannot be written.
    """
    if not is_remote(to):
        release = publish(repository, to, number, key=key)
        return release, str(release.path)
    store = _store(to)
    taken = store.taken()
    parent = None
    if not (Path(repository) / RELEASE_FILENAME).exists():
        number = max(taken, default=0) + 1 if number is None else number
        parent = max((other for other in store.numbers() if other < number), default=None)
    with tempfile.TemporaryDirectory(prefix="autovoice-release-") as folder:
        release = publish(repository, folder, number, key=key, parent=parent)
        store.put(release)
    return release, store.address(release.number)


@contextmanager
def fetched(place: str) -> Iterator[Path]:
    """The folder of a release, which is downloaded for the time being where it lies in a store.

    Args:
        place: its folder, or its address: `s3://bucket/prefix/7`, `oci://registry/name:7`.

    Raises:
        ReleaseError: there is none, or it cannot be downloaded.
    """
    if not is_remote(place):
        yield Path(place)
        return
    match = re.fullmatch(r"(.+)[/:]([1-9][0-9]*)", place)
    if match is None:
        raise ReleaseError(f"{place} names no release: add its number, as in s3://bucket/prefix/7")
    with tempfile.TemporaryDirectory(prefix="autovoice-release-") as parent:
        folder = Path(parent, match[2])
        folder.mkdir()
        _store(match[1]).get(int(match[2]), folder)
        if not (folder / RELEASE_FILENAME).exists():
            raise ReleaseError(f"{place} holds no release")
        yield folder


def _store(address: str) -> Store:
    match = _ADDRESS.fullmatch(address)
    assert match is not None
    place = match[2].strip("/")
    kind: type[S3Store] | type[OciStore] = S3Store if match[1] == "s3" else OciStore
    return kind(place)
