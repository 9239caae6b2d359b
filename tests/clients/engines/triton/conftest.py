"""A real Triton server for the clients, and an embedded pipeline that says what is right."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from remote_calls import KEY, Open, url

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.server.options import ServeOptions
from autovoice.server.server import TritonServer


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the backend directory is assembled; skips where no server can be installed."""
    if shutil.which("tritonserver") is None and importlib.util.find_spec("pytriton") is None:
        pytest.skip("no tritonserver: pip install 'autovoice[server]'")
    return tmp_path_factory.mktemp("remote-cache")


@pytest.fixture(scope="session")
def start(cache: Path, repository: Path) -> Callable[..., TritonServer]:
    """Makes a server, not yet started, on free ports unless told otherwise."""

    def make(**options: Any) -> TritonServer:
        ports = {"http_port": 0, "grpc_port": 0, "metrics": False}
        return TritonServer(ServeOptions(repository, **(ports | options)), cache=cache)

    return make


@pytest.fixture(scope="session")
def server(start: Callable[..., TritonServer]) -> Iterator[TritonServer]:
    """A server that no test harms."""
    with start() as running:
        yield running


@pytest.fixture(scope="session")
def embedded(repository: Path) -> Iterator[VoiceConversionPipeline]:
    """Says what is right."""
    with VoiceConversionPipeline(PipelineConfig(repository=repository, threads=1)) as pipeline:
        yield pipeline


@pytest.fixture(params=["grpc", "http"])
def remote(request: pytest.FixtureRequest, server: TritonServer, repository: Path) -> Iterator[Open]:
    """Opens pipelines over the shared server, by one protocol and then the other."""
    opened: list[VoiceConversionPipeline] = []

    def connect(**options: Any) -> VoiceConversionPipeline:
        defaults = {"repository": repository, "threads": 1, "fallback": "raise"}
        backend = url(server, request.param)
        opened.append(VoiceConversionPipeline(PipelineConfig(backend=backend, **(defaults | options))))
        return opened[-1]

    yield connect
    for pipeline in opened:
        pipeline.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for this machine; its key lies beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext "
        f"subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {folder}/key.pem -out {folder}/cert.pem"
    )
    subprocess.run(
        shlex.split(command),
        check=True,
        capture_output=True,
    )
    return folder / "cert.pem"


@pytest.fixture(scope="session")
def guarded(start: Callable[..., TritonServer], certificate: Path) -> Iterator[TritonServer]:
    """Asks for a key on both protocols and speaks TLS on gRPC."""
    tls = {"tls_certificate": certificate, "tls_key": certificate.with_name("key.pem")}
    with start(api_key=KEY, **tls) as server:
        yield server
