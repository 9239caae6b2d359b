"""Voices in ZIP archives, as they are passed around: a checkpoint and perhaps its index."""

from __future__ import annotations

import lzma
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from autovoice_export.build_errors import ImportFailure
from autovoice_export.rvc.file_kinds import is_torch_archive

LARGEST_MEMBER = 2 << 30
"""Bytes of a checkpoint or an index in an archive: voices have 55 to 120 MB, large indexes 0.6 GB."""

_DAMAGE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError)
_TRAINING = re.compile(r"[DG]_\d+\.pth", re.IGNORECASE)
_TRAINED_INDEX = re.compile(r"trained_", re.IGNORECASE)


@dataclass(frozen=True)
class VoiceFiles:
    """Files to import from.

    Attributes:
        checkpoint: of the voice.
        index: None for none.
    """

    checkpoint: Path
    index: Path | None


@contextmanager
def unpacked(checkpoint: Path, index: Path | None = None) -> Iterator[VoiceFiles]:
    """Takes a ZIP archive apart, for as long as the block runs; other files are given as they are.

    Only one checkpoint and one index are written, to a new temporary folder, under their last names alone:
    what paths the archive has does not matter.

    Args:
        checkpoint: a voice's file, or an archive with one.
        index: takes the place of an archive's own.

    Raises:
        ImportFailure: an archive without a checkpoint, with several, with a member that is encrypted, damaged
            or too large; errors of the block say where in the archive the file lies.
    """
    if not _is_archive(checkpoint):
        yield VoiceFiles(checkpoint, index)
        return
    with tempfile.TemporaryDirectory(prefix="autovoice-") as folder:
        try:
            with zipfile.ZipFile(checkpoint) as archive:
                files = _members(archive.infolist(), (".pth", ".pt"), _TRAINING)
                voice = _extracted(archive, _only(checkpoint, files, "checkpoint (.pth)"), checkpoint, folder)
                if index is None:
                    indexes = _members(archive.infolist(), (".index",), _TRAINED_INDEX)
                    if indexes:
                        member = _only(checkpoint, indexes, "index")
                        index = _extracted(archive, member, checkpoint, folder)
        except (*_DAMAGE, zlib.error, lzma.LZMAError) as error:
            raise ImportFailure(f"{checkpoint} is damaged ({error}): download it again") from error
        except OSError as error:
            raise ImportFailure(
                f"{checkpoint} could not be unpacked into {folder}: {error}; set TMPDIR to a folder with room"
            ) from error
        try:
            yield VoiceFiles(voice, index)
        except ImportFailure as error:
            raise ImportFailure(str(error).replace(f"{folder}/", f"{checkpoint}: ")) from error


def _is_archive(path: Path) -> bool:
    """Whether a file is a ZIP that ``torch.save`` did not write."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError):
        return False
    arrays = bool(names) and all(name.endswith(".npy") for name in names)
    return not arrays and not is_torch_archive(names)


def _members(
    infos: Iterable[zipfile.ZipInfo], endings: tuple[str, ...], avoided: re.Pattern[str]
) -> list[zipfile.ZipInfo]:
    """Files of a kind; those that training leaves behind only where there are no others."""
    files = [info for info in infos if not info.is_dir() and _name(info).lower().endswith(endings)]
    # macOS writes a shadow of every file.
    files = [info for info in files if not _name(info).startswith("._")]
    return [info for info in files if not avoided.match(_name(info))] or files


def _only(path: Path, members: list[zipfile.ZipInfo], what: str) -> zipfile.ZipInfo:
    if not members:
        raise ImportFailure(f"{path} is a ZIP archive without a {what}: give the voice's .pth file")
    if len(members) > 1:
        names = ", ".join(repr(info.filename) for info in members[:6])
        more = f" and {len(members) - 6} more" if len(members) > 6 else ""
        raise ImportFailure(
            f"{path} holds more than one {what}, {names}{more}: unpack it and give one of them"
        )
    return members[0]


def _extracted(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, folder: str) -> Path:
    if info.flag_bits & 1:
        raise ImportFailure(f"{path}: {info.filename!r} is encrypted: unpack it with its password")
    if info.file_size > LARGEST_MEMBER:
        raise ImportFailure(
            f"{path}: {info.filename!r} has {info.file_size} bytes unpacked, at most {LARGEST_MEMBER} are "
            "unpacked here: unpack it yourself if you trust it"
        )
    target = Path(folder) / _name(info)
    # A member is read up to the size that it states, which was checked, and its checksum compared.
    with archive.open(info) as source, target.open("xb") as copy:
        shutil.copyfileobj(source, copy)
    return target


def _name(info: zipfile.ZipInfo) -> str:
    """The last part of a member's name, whatever separates the parts, as a file may be called."""
    last = PurePosixPath(info.filename.replace("\\", "/")).name[-100:]
    return "".join(letter if letter.isprintable() else "_" for letter in last)
