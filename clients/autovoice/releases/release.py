"""One release: a model repository whose number is the version of every model, and what it consists of."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autovoice.atomic import reason_of
from autovoice.errors import ReleaseError
from autovoice.releases import documents
from autovoice.repository.plans import sha256

RELEASE_FILENAME = "release.json"
SIGNATURE_FILENAME = "release.sig"
GATE_FILENAME = "gate.json"
GATE_SIGNATURE_FILENAME = "gate.sig"
UNLISTED = frozenset({RELEASE_FILENAME, SIGNATURE_FILENAME, GATE_FILENAME, GATE_SIGNATURE_FILENAME})
"""Files of a release that `release.json` cannot list: itself, and what comes later."""

FORMAT = 1
_NUMBER = re.compile(r"[1-9][0-9]*")


@dataclass(frozen=True)
class ReleaseFile:
    """Content of one file.

    Attributes:
        sha256: hexadecimal digest.
        size: bytes.
    """

    sha256: str
    size: int


@dataclass(frozen=True)
class Release:
    """What a release says of itself.

    Attributes:
        path: its folder, a model repository.
        number: of the release, and version of each of its models.
        parent: number of the release that was the newest before it, None for the first.
        created: when it was published: UTC, ISO 8601.
        commit: Git commit of the repository it was made from, with `+` where files differed from that commit;
            None where that repository is not under Git.
        made_by: versions of what made it, by package name.
        contract: tensors and parameters of each model that clients ask; see `autovoice.releases.contract`.
        files: content of each file by its path inside the folder, with `/` between.
        sha256: digest of all this; the gate's report names it.
    """

    path: Path
    number: int
    parent: int | None
    created: str
    commit: str | None
    made_by: Mapping[str, str]
    contract: Mapping[str, Any]
    files: Mapping[str, ReleaseFile]
    sha256: str

    def check(self) -> list[str]:
        """Compare the files with what `release.json` says of them.

        Returns:
            One line for each difference, such as `synthesizer/7/model.onnx was changed`; none where every
            byte is as it was published.

        Raises:
            ReleaseError: a folder or file cannot be read.
        """
        differences = []
        if _NUMBER.fullmatch(self.path.name) and int(self.path.name) != self.number:
            differences.append(f"folder {self.path.name} holds release {self.number}")
        found = set()
        try:
            for name, entry in walk(self.path):
                found.add(name)
                difference = self._difference(name, entry)
                if difference is not None:
                    differences.append(f"{name} {difference}")
        except OSError as error:
            raise ReleaseError(f"{error.filename or self.path} cannot be read: {reason_of(error)}") from error
        return differences + [f"{name} is missing" for name in sorted(set(self.files) - found)]

    def _difference(self, name: str, entry: os.DirEntry[str]) -> str | None:
        """What differs about something in the folder."""
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return "is no regular file"
        if name in UNLISTED:
            return None
        file = self.files.get(name)
        if file is None:
            return "was added"
        if status.st_size != file.size:
            return f"has {status.st_size} bytes instead of {file.size}"
        return None if sha256(Path(entry.path)) == file.sha256 else "was changed"


def read_release(path: str | os.PathLike[str]) -> Release:
    """Read the `release.json` of a release's folder, without looking at the other files.

    Raises:
        ReleaseError: the folder holds none, or one that was changed or is of another format.
    """
    folder = Path(path)
    content = documents.load(folder / RELEASE_FILENAME)
    digest = documents.digest(content)
    try:
        if content.pop("format") != FORMAT:
            raise ValueError(f"a newer AutoVoice wrote it; this one reads format {FORMAT}")
        files = {name: ReleaseFile(**file) for name, file in content.pop("files").items()}
        return Release(folder, files=files, sha256=digest, **content)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ReleaseError(f"{folder / RELEASE_FILENAME} describes no release ({error})") from error


def release_numbers(folder: str | os.PathLike[str]) -> list[int]:
    """Numbers of the releases in a folder, ascending; whole or damaged, as nothing of them is read.

    A folder that does not exist has none.

    Raises:
        ReleaseError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if _NUMBER.fullmatch(entry.name) and entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ReleaseError(f"releases cannot be read from {os.fspath(folder)}: {reason_of(error)}") from error
    return sorted(map(int, names))


def walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below a folder that is no folder, with its path, sorted; links are not followed.

    Raises:
        OSError: a folder cannot be read.
    """
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(folder / entry.name, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry
