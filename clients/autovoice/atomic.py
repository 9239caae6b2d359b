"""Writing files whole: a new file appears under its name complete, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
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
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    Raises:
        OutputError: when the folder is missing or not writable, `path` is a directory, or the disk is full.
    """
    # Written through a link instead of replacing it.
    target = Path(os.path.realpath(as_path(path, "output", OutputError)))
    if os.path.isdir(target):
        raise OutputError(f"output {path} is a directory; name a file in it")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise OutputError(
            f"output {path} cannot be written ({reason_of(error)}); choose a folder you can write to"
        ) from error
    try:
        yield temporary
        try:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as error:
            raise OutputError(
                f"output {path} cannot be written ({reason_of(error)}); free some space or choose another "
                "folder"
            ) from error
    finally:
        temporary.unlink(missing_ok=True)


def full_disk(path: str | os.PathLike[str], error: object) -> str:
    return f"output {path} could not be written in full ({reason_of(error)}); free some space and try again"


def reason_of(error: object) -> str:
    """The cause in a few words, without error numbers, paths and prefixes."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = getattr(error, "error_string", None) or str(error) or type(error).__name__
    return text.strip().rstrip(".")
