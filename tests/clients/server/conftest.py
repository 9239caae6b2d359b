"""A real Triton server over the repository, one for all tests of a process that do not harm it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from triton_calls import (
    CONTROL_KEY,
    KEY,
    Client,
    find_repository,
    grpc_client,
    http_client,
    local_options,
    write_small_repository,
)

from autovoice.server.logs import LogRecord
from autovoice.server.server import TritonServer


@pytest.fixture(scope="session")
def repository() -> Path:
    """See `find_repository`."""
    return find_repository()


@pytest.fixture(scope="session")
def installed() -> None:
    """Skips where no server can be installed: its wheel exists for Linux only."""
    if shutil.which("tritonserver") is None and importlib.util.find_spec("pytriton") is None:
        pytest.skip("no tritonserver: pip install 'autovoice[server]'")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the backend directory is assembled."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def server(installed: None, repository: Path, cache: Path) -> Iterator[TritonServer]:
    """A server that tests send anything to but neither kill nor reconfigure."""
    with TritonServer(local_options(repository), cache=cache) as running:
        yield running


@pytest.fixture(scope="session")
def small(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that a server loads in a second; see `write_small_repository`."""
    folder = tmp_path_factory.mktemp("small") / "models"
    write_small_repository(folder, repository)
    return folder


@pytest.fixture(scope="session")
def small_log() -> list[LogRecord]:
    """The log of `small_server`."""
    return []


@pytest.fixture(scope="session")
def small_server(
    installed: None, small: Path, cache: Path, small_log: list[LogRecord]
) -> Iterator[TritonServer]:
    """A server of the small repository, which lies under a path with a space and asks for keys."""
    spaced = small.parent / "with a space"
    spaced.symlink_to(small)
    options = local_options(spaced, api_key=KEY, control_key=CONTROL_KEY, metrics=False, threads=2)
    with TritonServer(options, cache=cache, on_log=small_log.append) as running:
        yield running


@pytest.fixture(params=[grpc_client, http_client], ids=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Client]:
    """A client of the shared server, over one protocol and then the other."""
    with request.param(server.options) as connected:
        yield connected
    assert server.is_ready()


@pytest.fixture
def over_grpc(server: TritonServer) -> Iterator[Client]:
    """A gRPC client of the shared server."""
    with grpc_client(server.options) as connected:
        yield connected
    assert server.is_ready()


@pytest.fixture
def environment(installed: None, cache: Path) -> dict[str, str]:
    """Of an `autovoice` that uses the cache of the tests."""
    return {**os.environ, "XDG_CACHE_HOME": str(cache)}
