"""A release on a real Triton server: from its folder, and from a bucket."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from triton_calls import grpc_client, local_options

from autovoice.releases.publishing import publish
from autovoice.releases.stores import publish_to
from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server
EMBEDDING = {"EMBEDDING": np.array([[0.25, 0, 0, 0]], np.float32)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the backend directory is assembled; skips where no server can be installed."""
    if shutil.which("tritonserver") is None and importlib.util.find_spec("pytriton") is None:
        pytest.skip("no tritonserver: pip install 'autovoice[server]'")
    return tmp_path_factory.mktemp("cache")


def test_answers_name_the_release_that_made_them(small: Path, releases: Path, cache: Path) -> None:
    publish(small, releases)
    release = publish(small, releases, 12)
    with (
        TritonServer(local_options(release.path, metrics=False), cache=cache) as server,
        grpc_client(server.options) as client,
    ):
        inputs = [tritonclient.grpc.InferInput("EMBEDDING", [1, 4], "FP32")]
        inputs[0].set_data_from_numpy(EMBEDDING["EMBEDDING"])
        for model in ("voice", "target_pitch"):
            assert client.connection.get_model_metadata(model).versions == ["12"]
            response = client.connection.infer(model, inputs).get_response()
            assert response.model_version == "12"
        np.testing.assert_allclose(client.infer("voice", EMBEDDING)["MEDIAN_F0"], [[250.0]])


def test_a_server_loads_a_release_from_a_bucket(
    small: Path, bucket: object, s3_server: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, address = publish_to(small, "s3://voices/anna", 3)
    assert address == "s3://voices/anna/3"
    of_triton = address.replace("s3://", f"s3://{s3_server}/")
    options = local_options(small, metrics=False)  # the names of the models to load
    prepare = TritonServer._prepare

    def from_bucket(self: TritonServer) -> tuple[list[str], dict[str, str]]:
        command, environment = prepare(self)
        replaced = [
            f"--model-repository={of_triton}" if part.startswith("--model-repository=") else part
            for part in command
        ]
        return replaced, environment

    monkeypatch.setattr(TritonServer, "_prepare", from_bucket)
    with TritonServer(options, cache=cache) as server, grpc_client(server.options) as client:
        assert client.connection.get_model_metadata("voice").versions == ["3"]
        np.testing.assert_allclose(client.infer("voice", EMBEDDING)["MEDIAN_F0"], [[250.0]])
