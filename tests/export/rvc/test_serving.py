"""Imported voices on a real Triton server: the numbers of the embedded runtime."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from imported_voices import Files, feeds, voice_like

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.engines.local import LocalEngine
from autovoice.repository.reader import ModelRepository
from autovoice.server.options import ServeOptions
from autovoice.server.server import TritonServer

VOICES = ("sung", "plain", "tracked")
RATE = 16000
pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Serves the three voices; skips where no server can be installed."""
    if shutil.which("tritonserver") is None and importlib.util.find_spec("pytriton") is None:
        pytest.skip("no tritonserver: pip install 'autovoice[server]'")
    options = ServeOptions(files.repository, http_port=0, grpc_port=0, metrics=False)
    with TritonServer(options, cache=tmp_path_factory.mktemp("cache")) as running:
        yield running


def request(client: Any, model: str, values: dict[str, Any]) -> dict[str, Any]:
    """All outputs of one request by gRPC."""
    import tritonclient.grpc
    from tritonclient.utils import np_to_triton_dtype

    inputs = []
    for name, value in values.items():
        item = tritonclient.grpc.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
        item.set_data_from_numpy(value)
        inputs.append(item)
    result = client.infer(model, inputs)
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def test_ensembles_are_those_of_the_embedded_runtime(files: Files, server: TritonServer) -> None:
    import tritonclient.grpc

    engine = LocalEngine(ModelRepository(files.repository), threads=1)
    whole = feeds(voice_like(2, 16077).numpy())
    window = feeds(voice_like(2, 50 * 320).numpy(), window=True)
    place = {"FIRST_FRAME": [[730], [4]], "ANCHOR_FRAME": [[20], [0]], "SPEAKER_ID": [[0], [0]]}
    window |= {name: np.array(value, np.int64) for name, value in place.items()}
    window["ANCHOR_PHASE"] = np.float32([[0.25], [0.5]])
    for values in (whole, window):
        values["RMS_MIX"] = np.float32([[0.2], [0.9]])
        values["INDEX_RATE"] = np.float32([[0.7], [0.0]])
    client = tritonclient.grpc.InferenceServerClient(server.options.grpc_url.split("://")[1])
    try:
        for name in VOICES:
            for model, values in ((name, whole), (f"{name}_window", window)):
                expected, found = engine.infer(model, values), request(client, model, values)
                assert found.keys() == expected.keys()
                assert np.abs(expected["CONVERTED_AUDIO"]).max() > 0.01
                for output, value in expected.items():
                    scale = max(1.0, float(np.abs(value).max()))
                    np.testing.assert_allclose(found[output], value, atol=1e-4 * scale, err_msg=model)
    finally:
        client.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_pipelines_convert_and_stream_alike(files: Files, server: TritonServer, protocol: str) -> None:
    source = voice_like(1, 5 * RATE + 77)[0].numpy()
    backend = getattr(server.options, f"{protocol}_url")
    for name in VOICES:
        made = []
        for options in ({"repository": files.repository, "threads": 1}, {"backend": backend}):
            # Longer than a block, so that windows are joined.
            config = PipelineConfig(block_seconds=2.0, timeout_seconds=120.0, fallback="raise", **options)
            with VoiceConversionPipeline(config, voice=name) as pipeline:
                made.append(pipeline.convert(source, source_sample_rate=RATE))
                with pipeline.stream(output_sample_rate=RATE, core_seconds=1.0) as stream:
                    parts = [stream.push(source[at : at + 9000]) for at in range(0, 40000, 9000)]
                    made.append(np.concatenate([*parts, stream.flush()]))
        embedded, embedded_stream, remote, remote_stream = made
        assert np.abs(embedded).max() > 0.01
        np.testing.assert_allclose(remote, embedded, atol=1e-4)
        np.testing.assert_allclose(remote_stream, embedded_stream, atol=1e-4)
