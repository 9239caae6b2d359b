"""Whether a release is as it was published, and by whom."""

from __future__ import annotations

import os
from pathlib import Path

from autovoice.errors import ReleaseError
from autovoice.releases import documents
from autovoice.releases.release import (
    GATE_FILENAME,
    GATE_SIGNATURE_FILENAME,
    SIGNATURE_FILENAME,
    Release,
    read_release,
)
from autovoice.releases.signing import TrustedKey, check_signature

GATED_RELEASE = "release_sha256"
"""Key of the gate's report: `Release.sha256` of the release that it is about."""

_SHOWN = 3


def verify(path: str | os.PathLike[str], key: TrustedKey | None = None) -> Release:
    """Check every byte of a release, and of the gate's report where there is one.

    Args:
        path: its folder.
        key: that must have signed both; None to leave signatures alone.

    Raises:
        ReleaseError: names what differs, in one line.
    """
    folder = Path(path)
    release = read_release(folder)
    differences = release.check()
    if differences:
        more = f", and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise ReleaseError(
            f"release {release.number} in {folder} is not as it was published: "
            f"{', '.join(differences[:_SHOWN])}{more}"
        )
    if key is not None:
        check_signature(folder, folder / SIGNATURE_FILENAME, key)
    report, signature = folder / GATE_FILENAME, folder / GATE_SIGNATURE_FILENAME
    if report.exists() or signature.exists():
        if documents.load(report).get(GATED_RELEASE) != release.sha256:
            raise ReleaseError(f"{report} is the report of another release")
        if key is not None:
            check_signature(report, signature, key)
    return release
