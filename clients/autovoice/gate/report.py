"""What the gate found: its checks, and the report that is kept in the release."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from autovoice.atomic import atomic_path
from autovoice.config import usable_cores
from autovoice.engines.gpus import gpu_uses
from autovoice.releases import documents
from autovoice.releases.release import GATE_FILENAME, GATE_SIGNATURE_FILENAME, Release
from autovoice.releases.signing import SigningKey, sign
from autovoice.releases.verifying import GATED_RELEASE

Verdict = Literal["passed", "refused", "left out", "not run"]
_FORMAT = 1
_PACKAGES = ("autovoice", "numpy", "onnxruntime", "nvidia-pytriton", "tritonclient")


@dataclass(frozen=True)
class Check:
    """One thing that the gate looked at.

    Attributes:
        name: of the check.
        verdict: `"left out"` where it was not asked for or does not apply, `"not run"` where an earlier check
            refused the release.
        figure: what was found.
        limit: what would have been allowed.
        reason: why it was refused, left out or not run; empty where it passed.
        values: the figures as numbers.
    """

    name: str
    verdict: Verdict
    figure: str = ""
    limit: str = ""
    reason: str = ""
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All checks of one release.

    Attributes:
        release: that was tried.
        against: the release it was compared with, None for none.
        checks: in the order in which they were made.
        judges: whether the judges were asked.
        suite: SHA-256 of each recording, by its name.
        counts: how often the release was loaded and asked; see `GateOptions`.
    """

    release: Release
    against: Release | None
    checks: Sequence[Check]
    judges: bool
    suite: Mapping[str, str]
    counts: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """Whether nothing was refused and nothing was left unfinished."""
        return all(check.verdict in ("passed", "left out") for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain types, for JSON."""
        return {
            "format": _FORMAT,
            "release": self.release.number,
            GATED_RELEASE: self.release.sha256,
            "against": self.against.number if self.against else None,
            "against_sha256": self.against.sha256 if self.against else None,
            "passed": self.passed,
            "judges": self.judges,
            "checks": [asdict(check) for check in self.checks],
            "suite": dict(self.suite),
            "counts": dict(self.counts),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "made_by": documents.versions_of(_PACKAGES),
            "machine": {
                "platform": platform.platform(),
                "cores": usable_cores(),
                "gpus": [gpu.name for gpu in gpu_uses()],
            },
        }


def write_report(content: Mapping[str, Any], folder: Path, key: SigningKey | None = None) -> None:
    """Put a report into its release, in the place of an earlier one.

    Args:
        content: the report, of `Report.to_dict`.
        folder: the release's.
        key: that signs it; None for none, and an earlier signature is removed.

    Raises:
        ReleaseError: the key cannot be used; an earlier report stays as it is.
        OutputError: the folder cannot be written.
    """
    report, signature = folder / GATE_FILENAME, folder / GATE_SIGNATURE_FILENAME
    with atomic_path(report) as partial:
        partial.write_text(documents.dumps(content))
        if key is None:
            signature.unlink(missing_ok=True)
            return
        with atomic_path(signature) as partial_signature:
            sign(partial, partial_signature, key)
