"""A small repository, and releases of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_repository import build_toy_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose ensembles convert; see `toy_repository`."""
    return build_toy_repository(tmp_path / "repository")


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    """Where to publish it."""
    return tmp_path / "releases"
