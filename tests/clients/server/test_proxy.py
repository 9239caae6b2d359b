"""Envoy as the documentation and rollouts configure it: what would end the server does not get there."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
import urllib3
from triton_calls import ROOT, Client, until

from autovoice.errors import ConfigurationError
from autovoice.rollout.envoy import render
from autovoice.rollout.proxy import find_envoy
from autovoice.rollout.state import RolloutState, ServerEntry, Service
from autovoice.server.options import free_ports
from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server
CONFIG = ROOT / "docs" / "proxy" / "envoy.yaml"
INFER = "/v2/models/target_pitch/infer"
LENGTH = "Inference-Header-Content-Length"


def documented(server: TritonServer, port: int, folder: Path) -> Path:
    """The configuration of the documentation, between other ports."""
    text = CONFIG.read_text(encoding="utf-8")
    for old, new in (
        ("9000}", f"{port}}}"),
        ("8000}", f"{server.options.http_port}}}"),
        ("0.0.0.0", "127.0.0.1"),
    ):
        assert old in text
        text = text.replace(old, new)
    path = folder / "envoy.yaml"
    path.write_text(text)
    return path


def of_a_rollout(server: TritonServer, port: int, folder: Path) -> Path:
    """What `autovoice serve --rollout` writes for a release of one server."""
    options = server.options
    entry = ServerEntry(1, options.http_port, options.grpc_port, options.metrics_port, ready=True)
    service = Service(1, "127.0.0.1", port, *free_ports("127.0.0.1", 2))
    (folder / "envoy").mkdir()
    for name, content in render(RolloutState("releases", stable=1), {1: entry}, service).items():
        (folder / "envoy" / name).write_text(json.dumps(content))
    return folder / "envoy" / "bootstrap.json"


@pytest.fixture(scope="module", params=[documented, of_a_rollout])
def proxy(
    request: pytest.FixtureRequest, server: TritonServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Address of an Envoy in front of the shared server."""
    try:
        envoy = find_envoy()
    except ConfigurationError as error:
        pytest.skip(str(error))
    (port,) = free_ports("127.0.0.1", 1)
    folder = tmp_path_factory.mktemp("envoy")
    path = request.param(server, port, folder)
    command = [str(envoy), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    process = subprocess.Popen(command, cwd=folder)
    try:

        def listens() -> bool:
            assert process.poll() is None
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(listens)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def tensor(shape: list[int], **fields: object) -> bytes:
    described = {"name": "EMBEDDING", "datatype": "FP32", "shape": shape, **fields}
    return json.dumps({"inputs": [described]}).encode()


HUGE = tensor([1, 2**62], data=[0.0])
TWICE = urllib3.HTTPHeaderDict(((LENGTH, "0"), (LENGTH, str(len(HUGE)))))
REFUSED: dict[str, tuple[str, bytes, Mapping[str, str]]] = {
    "JSON": (INFER, HUGE, {}),
    "more than there is memory": (INFER, tensor([1, 10**12], data=[0.0]), {}),
    "JSON whose length is told": (INFER, HUGE, {LENGTH: str(len(HUGE))}),
    "length that is no number": (INFER, HUGE, {LENGTH: "many"}),
    "length beyond the end": (INFER, HUGE, {LENGTH: "16000"}),
    "name written otherwise": (INFER, HUGE.replace(b'data"', b'\\u0064ata"'), {}),
    "length told twice": (INFER, HUGE, TWICE),
    "compressed": (INFER, gzip.compress(HUGE), {"Content-Encoding": "gzip"}),
    "nested without end": (INFER, b"[" * 1_000_000, {}),
    "as nested as may be": (INFER, b"[" * 16_384, {}),
    "of a version": ("/v2/models/target_pitch/versions/1/infer", HUGE, {}),
    "generate": ("/v2/models/target_pitch/generate", b"[" * 1_000_000, {}),
    "generate, nested less": ("/v2/models/target_pitch/generate", b"[" * 10_000, {}),
    "control": ("/v2/repository/models/target_pitch/load", b"{}", {}),
    "control by a detour": ("/v2/models/x/../../repository/models/target_pitch/load", b"{}", {}),
    "shared memory": ("/v2/systemsharedmemory/status", b"", {}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_end_the_server_is_refused(proxy: str, server: TritonServer, kind: str) -> None:
    path, body, headers = REFUSED[kind]
    answer = urllib3.request("POST", proxy + path, body=body, headers=headers, retries=False, timeout=30)
    # The most that may be nested is Triton's to refuse, as an error of its own.
    assert answer.status in ((500,) if kind == "as nested as may be" else (400, 404))
    assert server.process is not None
    assert server.process.poll() is None
    assert server.is_ready()


def test_binary_requests_pass(proxy: str, server: TritonServer, repository: Path) -> None:
    """Those of tritonclient, one of several megabytes and one without JSON among them."""
    source = np.sin(np.arange(1_000_000, dtype=np.float32) / 30)[None] * 0.1
    made = []
    for address in (proxy, server.options.http_url):
        with tritonclient.http.InferenceServerClient(
            address.partition("://")[2], network_timeout=120
        ) as client:
            feeds = {"REFERENCE_AUDIO": source}
            made.append(Client(tritonclient.http, client).infer("speaker_encoder", feeds)["EMBEDDING"])
    np.testing.assert_array_equal(*made)
    path, body = "/v2/models/speaker_encoder/infer", source.tobytes()
    raw = urllib3.request("POST", proxy + path, body=body, headers={LENGTH: "0"}, timeout=120)
    assert raw.status == 200
