"""Releases in an S3 bucket. `release.json` is written last: a release without it is none."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autovoice.atomic import reason_of
from autovoice.errors import ReleaseError
from autovoice.releases.release import RELEASE_FILENAME, Release, walk
from autovoice.repository.plans import sha256

_DIGEST = "sha256"


class S3Store:
    """A prefix of a bucket. Credentials, region and endpoint are those of boto3's own settings.

    Args:
        place: `bucket/prefix`.

    Raises:
        ReleaseError: boto3 is not installed, or has no settings that it can use.
    """

    def __init__(self, place: str) -> None:
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise ReleaseError(
                f"s3://{place} needs boto3 ({error}); run `pip install 'autovoice[s3]'`"
            ) from error
        self._errors = (BotoCoreError, ClientError, ValueError)
        self._place = place
        self._bucket, _, prefix = place.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        with self._naming_errors():
            self._client: Any = boto3.client("s3")

    def taken(self) -> list[int]:
        """Numbers under which there is something, whole or not, ascending."""
        with self._naming_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
            )
            names = [
                item["Prefix"][len(self._prefix) : -1]
                for page in pages
                for item in page.get("CommonPrefixes", ())
            ]
        return sorted(int(name) for name in names if re.fullmatch(r"[1-9][0-9]*", name))

    def numbers(self) -> list[int]:
        """Numbers of the whole releases, ascending."""
        with self._naming_errors():
            return [number for number in self.taken() if self._head(number, RELEASE_FILENAME) is not None]

    def address(self, number: int) -> str:
        """Where a release is found."""
        return f"s3://{self._bucket}/{self._prefix}{number}"

    def put(self, release: Release) -> None:
        """Upload a release under its number, whole or not at all.

        No object is ever overwritten, so that two processes that publish at once cannot mix their files.

        Raises:
            ReleaseError: a release of that number exists, another one is half there, or the upload failed.
        """
        number = release.number
        names = [name for name, _ in walk(release.path) if name != RELEASE_FILENAME]
        with self._naming_errors():
            for name in (*names, RELEASE_FILENAME):
                if self._put(release.path / name, number, name):
                    continue
                if name == RELEASE_FILENAME or self._head(number, RELEASE_FILENAME) is not None:
                    raise ReleaseError(
                        f"{self.address(number)} exists and was left as it is: give another number"
                    )
                raise ReleaseError(
                    f"{self.address(number)} holds part of another release, which is being published, or was "
                    "interrupted: give another number"
                )

    def get(self, number: int, folder: Path) -> None:
        """Download a release into an empty folder.

        Raises:
            ReleaseError: there is none, or the download failed.
        """
        prefix = f"{self._prefix}{number}/"
        with self._naming_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            for page in pages:
                for item in page.get("Contents", ()):
                    name = item["Key"][len(prefix) :]
                    path = folder / name
                    if not path.resolve().is_relative_to(folder.resolve()):
                        raise ReleaseError(f"{self.address(number)} holds {name!r}, which is no release's")
                    if not name.endswith("/"):  # such an object stands for a folder
                        path.parent.mkdir(parents=True, exist_ok=True)
                        self._client.download_file(self._bucket, item["Key"], str(path))

    def _put(self, path: Path, number: int, name: str) -> bool:
        """Write one object; whether it is there now, with that content."""
        digest = sha256(path)
        try:
            with path.open("rb") as file:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=f"{self._prefix}{number}/{name}",
                    Body=file,
                    IfNoneMatch="*",
                    ChecksumSHA256=base64.b64encode(bytes.fromhex(digest)).decode(),
                    Metadata={_DIGEST: digest},
                )
        except self._client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
                raise
            present = self._head(number, name)
            return (
                name != RELEASE_FILENAME
                and present is not None
                and present["Metadata"].get(_DIGEST) == digest
            )
        return True

    def _head(self, number: int, name: str) -> Any:
        """What the bucket says of an object; None where there is none."""
        try:
            return self._client.head_object(Bucket=self._bucket, Key=f"{self._prefix}{number}/{name}")
        except self._client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            return None

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise ReleaseError(f"s3://{self._place} cannot be used: {reason_of(error)}") from error
