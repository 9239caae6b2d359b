"""A real Triton server over the repository, one for all tests of a process that do not harm it."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from triton_calls import Client, find_repository, grpc_client, http_client, local_options

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
