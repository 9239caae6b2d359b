"""What is under version control works on every machine and is small enough to clone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Content encoder and synthesizer are there twice, alone and in the converter of live streams: ONNX Runtime
# reads no weights outside a model's own folder, so that two different models cannot share them.
MAX_REPOSITORY_BYTES = 90_000_000
# Paths of the computer something was made on, but not KServe's /mnt/models; and hosts of package mirrors.
PRIVATE = re.compile(
    r"(?<![\w.])/(?:home|Users|root|work|mnt(?!/models\b))/[\w.]|\b(?:pypi|files)\.[\w-]+\.(?:org|com|io)\b|index-url|find-links"
)


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Every file under version control."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of tracked files")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_machine(tracked: list[Path]) -> None:
    found = []
    for file in tracked:
        data = file.read_bytes()
        if file == Path(__file__).resolve() or b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if PRIVATE.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found


def test_models_stay_small_enough_to_clone(tracked: list[Path]) -> None:
    models = [file for file in tracked if file.suffix == ".onnx" and not file.is_symlink()]
    assert models
    assert sum(file.stat().st_size for file in models) < MAX_REPOSITORY_BYTES
