"""Writing files whole: a new file appears under its name complete, or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from autovoice.errors import OutputError, VoiceConversionError


def as_path(path: Any, name: str, error: type[VoiceConversionError]) -> Path:
    """Return a path that the caller gave as str, bytes or `os.PathLike`.

    Args:
        path: what was given.
        name: what to call it in the error.
        error: raised for what no file system could name.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise error(f"{name} is {path!r}; give a path") from None
    if "\0" in text:
        raise error(f"{name} is {text!r}, and no path holds a NUL character; give another")
    return Path(text)


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    The new file has the mode of the file that it replaces, and otherwise what the umask leaves. A link is
    followed: the file it points to is replaced. What is no regular file, such as a pipe or a device, is
    written directly.

    Args:
        path: the file; its folder must exist.
        overwrite: replace a file of that name. Otherwise one that is there in the end stays as it is, even if
            it appeared meanwhile.

    Yields:
        The path to write to: an empty file in the same folder, with a name that always fits.

    Raises:
        OutputError: the folder is missing or not writable, `path` is a directory, or the disk is full; a
            file that must not be replaced is there.
    """
    given = as_path(path, "output", OutputError)
    mode = 0
    try:
        with suppress(FileNotFoundError):
            mode = given.stat().st_mode
    except OSError as error:
        raise _unwritable(path, error) from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"output {path} is a directory; name a file in it")
    if mode and not stat.S_ISREG(mode):
        yield given
        return
    if mode and not overwrite:
        raise _taken(path)
    target = Path(os.path.realpath(given))
    temporary = target.with_name(f".{secrets.token_hex(8)}.partial")
    # A signal may end the program at any line: the file is made where it is also removed.
    try:
        try:
            temporary.touch(exist_ok=False)
        except OSError as error:
            raise _unwritable(path, error) from error
        yield temporary
        try:
            sync(temporary)
            if mode:
                temporary.chmod(stat.S_IMODE(mode))
            if overwrite:
                os.replace(temporary, target)
            else:
                _link(temporary, target)
            sync(target.parent)
        except FileExistsError:
            raise _taken(path) from None
        except OSError as error:
            raise OutputError(
                f"output {path} cannot be written ({reason_of(error)}); free some space or choose another "
                "folder"
            ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, target: Path) -> None:
    """Give a file its name, unless something has it already.

    Raises:
        FileExistsError: something has it.
    """
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(temporary, target)


def _taken(path: str | os.PathLike[str]) -> OutputError:
    return OutputError(
        f"output {path} exists and was left as it is; choose another name, or allow overwriting"
    )


def _unwritable(path: str | os.PathLike[str], error: OSError) -> OutputError:
    return OutputError(
        f"output {path} cannot be written ({reason_of(error)}); choose a folder you can write to"
    )


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk.

    Raises:
        OSError: the disk refused; for a folder, whose file system may not know the operation, nothing.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def full_disk(path: str | os.PathLike[str], error: object) -> str:
    """The message for an output that does not fit on the disk."""
    return f"output {path} could not be written in full ({reason_of(error)}); free some space and try again"


def reason_of(error: object) -> str:
    """The cause in a few words, without error numbers, paths and prefixes."""
    if text := getattr(error, "strerror", None):  # of OSError, and of what FFmpeg says
        return str(text)
    text = getattr(error, "error_string", None) or str(error) or type(error).__name__
    return text.strip().rstrip(".")
