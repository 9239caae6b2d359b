"""Releases of the shipped models, and a server over the first of them that all tests share."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_releases import copy_models, publish_changed
from triton_calls import find_repository

from autovoice.gate.serving import ServedRelease
from autovoice.gate.suite import Suite, read_suite


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server's backend directory is assembled; skips where no server can be installed."""
    if shutil.which("tritonserver") is None and importlib.util.find_spec("pytriton") is None:
        pytest.skip("no tritonserver: pip install 'autovoice[server]'")
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def suite() -> Suite:
    """The recordings that come with AutoVoice."""
    return read_suite()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that convert and stream in the base voice."""
    return copy_models(find_repository(), tmp_path_factory.mktemp("models") / "models")


@pytest.fixture(scope="session")
def releases(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Release 1, which is in service."""
    folder = tmp_path_factory.mktemp("releases") / "releases"
    publish_changed(models, folder)
    return folder


@pytest.fixture(scope="session")
def in_service(releases: Path, cache: Path) -> Iterator[ServedRelease]:
    """A server over release 1."""
    with ServedRelease(releases / "1", cache=cache) as served:
        yield served
