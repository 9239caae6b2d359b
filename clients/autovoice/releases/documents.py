"""JSON files of a release, in which one changed byte is seen: each holds the digest of its own content."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from autovoice.atomic import reason_of
from autovoice.errors import ReleaseError

DIGEST = "sha256"
"""Key of the digest of everything else in the file."""


def dumps(content: Mapping[str, Any]) -> str:
    """The text of a document: equal content gives equal text.

    Args:
        content: what JSON can hold, without the digest.
    """
    return _text({**content, DIGEST: digest(content)})


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256, hexadecimal, of a document's content."""
    return hashlib.sha256(_text(content).encode()).hexdigest()


def load(path: Path) -> dict[str, Any]:
    """Read what `dumps` made.

    Returns:
        The content, without the digest.

    Raises:
        ReleaseError: the file is missing, cannot be read, or is not byte for byte what was written.
    """
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
    except FileNotFoundError:
        raise ReleaseError(f"{path} is missing: {path.parent} is no whole release") from None
    except OSError as error:
        raise ReleaseError(f"{path} cannot be read: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ReleaseError(f"{path} was changed: it is no JSON any more ({error})") from error
    if not isinstance(content, dict):
        raise ReleaseError(f"{path} was changed: it holds no object any more")
    content.pop(DIGEST, None)
    try:
        is_whole = dumps(content) == text
    except ValueError:  # NaN, lone surrogates
        is_whole = False
    if not is_whole:
        raise ReleaseError(f"{path} was changed: its content differs from its digest")
    return content


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Version of Python, and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
