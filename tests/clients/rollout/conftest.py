"""Releases and a service that tests of the rollout share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rollout_calls import KEY, RolloutProcess, flip_byte, publish_marked, set_gate, write_repository

from autovoice.errors import ConfigurationError
from autovoice.releases.publishing import publish
from autovoice.rollout.proxy import find_envoy

pytest_plugins: list[str] = []


@pytest.fixture(scope="session")
def envoy() -> Path:
    """The program; skips where there is none."""
    try:
        return find_envoy()
    except ConfigurationError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Releases 1 and 2, one with other tensors, one that its gate refused, and, the newest, a damaged one."""
    folder = tmp_path_factory.mktemp("rollout") / "releases"
    for number in (1, 2, 4, 5):
        publish_marked(folder, number)
    other = write_repository(folder.parent / "other", 3)
    config = other / "mark" / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "Y"', 'name: "Z"'))
    publish(other, folder, 3)
    set_gate(folder / "4", passed=False)
    flip_byte(folder / "5" / "mark" / "5" / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def service(
    installed: None, envoy: Path, releases: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RolloutProcess]:
    """A service of `releases` that asks for a key; which release is stable depends on the tests before."""
    import os

    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "AUTOVOICE_API_KEY": KEY}
    folder = tmp_path_factory.mktemp("service") / "rollout"
    process = RolloutProcess(folder, environment, releases=releases, key=KEY)
    try:
        process.wait_ready()
        yield process
    finally:
        process.kill()
