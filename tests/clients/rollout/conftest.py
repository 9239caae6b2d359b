"""Releases and a service that tests of the rollout share."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rollout_calls import KEY, RolloutProcess, flip_byte, publish_marked, set_gate, write_repository

from autovoice.errors import ConfigurationError
from autovoice.releases.publishing import publish
from autovoice.rollout.proxy import find_envoy


@pytest.fixture(scope="session")
def envoy() -> Path:
    """The program; skips where there is none."""
    try:
        return find_envoy()
    except ConfigurationError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the backend directory is assembled; skips where no server can be installed."""
    if shutil.which("tritonserver") is None and importlib.util.find_spec("pytriton") is None:
        pytest.skip("no tritonserver: pip install 'autovoice[server]'")
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Releases 1 and 2, one with other tensors, one that its gate refused, and, the newest, a damaged one."""
    folder = tmp_path_factory.mktemp("rollout") / "releases"
    for number in (1, 2, 4, 5):
        publish_marked(folder, number)
    other = write_repository(folder.parent / "other", 3)
    config = other / "mark" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 8", "max_batch_size: 4"))
    publish(other, folder, 3)
    set_gate(folder / "3", passed=True)
    set_gate(folder / "4", passed=False)
    flip_byte(folder / "5" / "mark" / "5" / "model.onnx")
    return folder


@pytest.fixture(scope="session")
def environment(envoy: Path, cache: Path) -> dict[str, str]:
    """Of an `autovoice` whose servers ask for a key."""
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "AUTOVOICE_API_KEY": KEY}


@pytest.fixture(scope="module")
def service(
    environment: dict[str, str], releases: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RolloutProcess]:
    """A service of releases 1 and 2; which of them is stable depends on the tests before."""
    folder = tmp_path_factory.mktemp("service") / "rollout"
    two = folder.parent / "releases"
    shutil.copytree(releases, two, ignore=shutil.ignore_patterns("3"))
    process = RolloutProcess(folder, environment, releases=two)
    try:
        process.wait_ready()
        shutil.copytree(releases / "3", two / "3")
        yield process
    finally:
        process.kill()
