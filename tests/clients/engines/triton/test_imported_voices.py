"""Imported voices on a real server: everybody gets their own, and a restart loses nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from remote_calls import url
from toy_voices import RATE, build_toy_voices

from autovoice import (
    AsyncVoiceConversionPipeline,
    PipelineConfig,
    RvcSettings,
    VoiceConversionPipeline,
    list_voices,
)
from autovoice.cli.main import run
from autovoice.engines.triton.grpc import GrpcTransport
from autovoice.engines.triton.wire import FailureKind, TransportError
from autovoice.errors import ConfigurationError, RepositoryError, UnavailableError
from autovoice.server.options import ServeOptions
from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server

NAMES = [f"voice_{number}" for number in range(10)]
RATES = [40_000, 32_000, 48_000]
KEY = "0123456789abcdef"
LIMIT = {"timeout_seconds": 120.0}  # a busy machine is slow, not wrong


def murmur(samples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    envelope = np.clip(np.sin(np.arange(samples) / 1500 + seed), 0, None)
    return (0.2 * rng.standard_normal(samples) * envelope).clip(-1, 1).astype(np.float32)


def start(repository: Path, cache: Path, **options: Any) -> TritonServer:
    ports = {"http_port": 0, "grpc_port": 0, "metrics": False}
    return TritonServer(ServeOptions(repository, **(ports | options)), cache=cache)


@pytest.fixture(scope="module")
def ten_voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rates = {name: RATES[number % 3] for number, name in enumerate(NAMES)}
    return build_toy_voices(tmp_path_factory.mktemp("ten-voices") / "models", rates)


@pytest.fixture(scope="module")
def server_of_ten(ten_voices: Path, cache: Path) -> Iterator[TritonServer]:
    """Asks for a key, as one that others reach would."""
    with start(ten_voices, cache, api_key=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def embedded_ten(ten_voices: Path) -> Iterator[list[VoiceConversionPipeline]]:
    """Say what is right."""
    config = PipelineConfig(repository=ten_voices, threads=1, block_seconds=0.5)
    pipelines = [VoiceConversionPipeline(config, voice=name) for name in NAMES]
    yield pipelines
    for pipeline in pipelines:
        pipeline.close()


def config_for(server: TritonServer, protocol: str, voice: str | None, **options: Any) -> PipelineConfig:
    defaults = {"api_key": KEY, "fallback": "raise", "block_seconds": 0.5, **LIMIT}
    return PipelineConfig(backend=url(server, protocol), voice=voice, **(defaults | options))


def test_twenty_clients_of_ten_voices_get_their_own(
    server_of_ten: TritonServer, embedded_ten: list[VoiceConversionPipeline]
) -> None:
    """Whole sources, long ones in windows, and streams, all at the same time, two clients to a voice."""

    async def live(pipeline: AsyncVoiceConversionPipeline, source: np.ndarray) -> np.ndarray:
        async with pipeline.stream(output_sample_rate=RATE, core_seconds=0.1) as stream:
            parts = [await stream.push(source[at : at + 1234]) for at in range(0, source.size, 1234)]
            return np.concatenate([*parts, await stream.flush()])

    async def client(number: int) -> list[np.ndarray]:
        config = config_for(server_of_ten, ("grpc", "http")[number // 10], None)
        name = NAMES[number % 10]
        async with AsyncVoiceConversionPipeline(config, voice=name, concurrency=4) as pipeline:
            how: dict[str, Any] = {"source_sample_rate": RATE, "pitch_shift_semitones": float(number % 3)}
            settings = RvcSettings(speaker=number % 3)
            return await asyncio.gather(
                pipeline.convert(murmur(6000, number), voice_settings=settings, **how),
                pipeline.convert(murmur(20_000, number), voice_settings=settings, **how),
                live(pipeline, murmur(9000, number)),
            )

    async def main() -> list[list[np.ndarray]]:
        return await asyncio.gather(*(client(number) for number in range(20)))

    for number, (short, long, stream) in enumerate(asyncio.run(main())):
        pipeline = embedded_ten[number % 10]
        how: dict[str, Any] = {"source_sample_rate": RATE, "pitch_shift_semitones": float(number % 3)}
        how["voice_settings"] = RvcSettings(speaker=number % 3)
        np.testing.assert_allclose(short, pipeline.convert(murmur(6000, number), **how), atol=1e-6)
        np.testing.assert_allclose(long, pipeline.convert(murmur(20_000, number), **how), atol=1e-6)
        expected = pipeline.convert(murmur(9000, number), source_sample_rate=RATE, input_gain_db=0.0)
        np.testing.assert_allclose(stream, expected, atol=1e-6)
        neighbour = embedded_ten[(number + 1) % 10].convert(murmur(6000, number), **how)
        assert np.abs(short - neighbour).max() > 1e-2  # another's voice would have been noticed


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_batches_and_the_list_of_voices(
    server_of_ten: TritonServer,
    embedded_ten: list[VoiceConversionPipeline],
    protocol: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sources = [murmur(size, size) for size in (4000, 3990, 7000, 12_000)]
    chosen = [RvcSettings(speaker=number % 3) for number in range(4)]
    how: dict[str, Any] = {"source_sample_rates": RATE, "voice_settings": chosen}
    with VoiceConversionPipeline(config_for(server_of_ten, protocol, NAMES[4])) as pipeline:
        made = pipeline.batch_convert(sources, **how)
        assert pipeline.device == pipeline.config.backend
    for one, expected in zip(made, embedded_ten[4].batch_convert(sources, **how), strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-6)

    listed = list_voices(config_for(server_of_ten, protocol, None))
    assert [(info.name, info.sample_rate, info.version) for info in listed] == [
        (name, RATES[number % 3], 1) for number, name in enumerate(NAMES)
    ]
    monkeypatch.setenv("AUTOVOICE_API_KEY", KEY)
    assert run(["voices", "--server", url(server_of_ten, protocol), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [info.to_dict() for info in listed]
    monkeypatch.delenv("AUTOVOICE_API_KEY")
    with pytest.raises(ConfigurationError, match="another API key"):
        list_voices(config_for(server_of_ten, protocol, None, api_key=None))
    with pytest.raises(RepositoryError, match="voice 'dora' cannot be opened"):
        VoiceConversionPipeline(config_for(server_of_ten, protocol, "dora"))


def test_a_restart_loses_nothing(tmp_path: Path, cache: Path) -> None:
    """Killed in the middle of a stream: the next engine gives the samples of the first."""
    repository = build_toy_voices(tmp_path / "models", {"anna": 40_000})
    source = murmur(24_000, 5)
    with VoiceConversionPipeline(PipelineConfig(repository=repository, threads=1), voice="anna") as embedded:
        expected = embedded.convert(source, source_sample_rate=RATE, input_gain_db=0.0)

    def kill(server: TritonServer) -> None:
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGKILL)
        server.wait()

    server = start(repository, cache)
    with server:
        protocols = ("grpc", "http")
        configs = [config_for(server, each, "anna", retries=8, api_key=None) for each in protocols]
        backed = config_for(
            server, "grpc", "anna", retries=0, api_key=None, fallback="cpu", repository=repository
        )
        pipelines = [VoiceConversionPipeline(config) for config in (*configs, backed)]
        streams = [pipeline.stream(output_sample_rate=RATE, core_seconds=0.1) for pipeline in pipelines]
        parts = [[stream.push(source[:9000])] for stream in streams]
        kill(server)
        parts[2].append(streams[2].push(source[9000:15_000]))  # nobody serves, so the CPU does
        ports = {"http_port": server.options.http_port, "grpc_port": server.options.grpc_port}
        with start(repository, cache, **ports):
            for stream, made in zip(streams, parts, strict=True):
                made += [stream.push(source[stream.samples_in :]), stream.flush()]
    for pipeline, made in zip(pipelines, parts, strict=True):
        np.testing.assert_allclose(np.concatenate(made), expected, atol=1e-6)
        assert (pipeline.stats.failed, pipeline.stats.lost_sequences) == (0, 0)
        pipeline.close()
    assert pipelines[2].stats.fallbacks > 0


def test_another_voice_of_the_same_name_does_not_take_over(
    server_of_ten: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fallback must hold the voice that the server had, not one that is merely called the same."""
    here = build_toy_voices(tmp_path, {NAMES[0]: RATES[0]}, checkpoint_sha256="another")
    config = config_for(server_of_ten, "grpc", NAMES[0], retries=0, fallback="cpu", repository=here)
    with VoiceConversionPipeline(config) as pipeline:

        def fail(*request: Any) -> None:
            raise TransportError(FailureKind.UNREACHABLE, "gone")

        monkeypatch.setattr(GrpcTransport, "infer", fail)
        with pytest.raises(UnavailableError, match=f"holds another {NAMES[0]} than grpc://"):
            pipeline.convert(murmur(4000, 1), source_sample_rate=RATE)
