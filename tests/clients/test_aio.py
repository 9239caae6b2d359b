"""The asyncio pipeline: the same audio, the loop kept free, cancelled callers out of each other's way."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_repository import expected_conversion

from autovoice import (
    AsyncVoiceConversionPipeline,
    PipelineConfig,
    VoiceConversionError,
    VoiceConversionPipeline,
)
from autovoice.engines.local import LocalEngine
from autovoice.errors import ConfigurationError, StreamClosedError
from autovoice.repository.reader import ModelRepository

RATE = 24_000
SOURCE = np.random.default_rng(5).uniform(-0.5, 0.5, 4800).astype(np.float32)


class GatedEngine(LocalEngine):
    """Answers only while `gate` is open, and counts who is inside at a time."""

    def __init__(self, repository: ModelRepository) -> None:
        super().__init__(repository)
        self.gate = threading.Event()
        self.inside = 0
        self.most = 0

    def infer(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        assert self.gate.wait(30)
        self.inside -= 1
        return super().infer(*args, **kwargs)


@pytest.fixture
def gated(toy: Path) -> Iterator[tuple[GatedEngine, VoiceConversionPipeline]]:
    engine = GatedEngine(ModelRepository(toy))
    with VoiceConversionPipeline(engine=engine) as pipeline:
        yield engine, pipeline


def test_results_and_errors_are_those_of_the_pipeline(toy: Path, voice: np.ndarray) -> None:
    async def main() -> None:
        async with AsyncVoiceConversionPipeline(PipelineConfig(repository=toy)) as pipeline:
            made = await pipeline.convert(SOURCE, voice, source_sample_rate=RATE, pitch_shift_semitones=2.0)
            np.testing.assert_allclose(made, expected_conversion(SOURCE, 0.5, 2.0), atol=1e-5)
            with pytest.raises(VoiceConversionError, match="is empty"):
                await pipeline.convert([], voice)
            assert (pipeline.stats.succeeded, pipeline.stats.failed) == (1, 1)
        with pytest.raises(VoiceConversionError, match="closed"):
            pipeline.pipeline.convert(SOURCE, voice)

    asyncio.run(main())


def test_the_loop_runs_on_while_conversions_wait(
    gated: tuple[GatedEngine, VoiceConversionPipeline], voice: np.ndarray
) -> None:
    """The loop itself opens the gate; no more conversions are under way than were asked for."""
    engine, blocking = gated

    async def main() -> None:
        async with AsyncVoiceConversionPipeline(pipeline=blocking, concurrency=3) as pipeline:
            tasks = [
                asyncio.create_task(pipeline.convert(SOURCE, voice, source_sample_rate=RATE))
                for _ in range(6)
            ]
            while engine.inside < 3:
                await asyncio.sleep(0.001)
            engine.gate.set()
            for made in await asyncio.gather(*tasks):
                np.testing.assert_allclose(made, 0.5 * SOURCE, atol=1e-5)

    asyncio.run(main())
    assert engine.most == 3


def test_a_cancelled_push_is_not_overtaken(
    gated: tuple[GatedEngine, VoiceConversionPipeline], voice: np.ndarray
) -> None:
    """What the cancelled push was given still goes first; only its answer is lost."""
    engine, blocking = gated

    async def main() -> np.ndarray:
        async with (
            AsyncVoiceConversionPipeline(pipeline=blocking) as pipeline,
            pipeline.stream(voice) as stream,
        ):
            cancelled = asyncio.create_task(stream.push(SOURCE[:2400]))
            while not engine.inside:
                await asyncio.sleep(0.001)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            following = asyncio.create_task(stream.push(SOURCE[2400:]))
            await asyncio.sleep(0.05)
            engine.gate.set()
            return np.concatenate([await following, await stream.flush()])

    made = asyncio.run(main())
    assert engine.most == 1
    np.testing.assert_allclose(made, 0.5 * SOURCE[2400 - 600 :], atol=1e-5)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_opening_asks_nobody_in_the_constructor_and_leaves_the_loop_running(scheme: str) -> None:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        config = PipelineConfig(
            backend=f"{scheme}://127.0.0.1:{listener.getsockname()[1]}",
            fallback="raise",
            retries=0,
            timeout_seconds=1.0,
        )

        async def main() -> int:
            pipeline = AsyncVoiceConversionPipeline(config)
            stream = pipeline.stream(np.full(4, 0.5, np.float32))
            await asyncio.sleep(0.1)
            with pytest.raises(BlockingIOError):  # nobody has connected
                listener.accept()
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.01)
                    ticks += 1

            ticking = asyncio.create_task(tick())
            for opening in (pipeline.__aenter__(), stream.__aenter__()):
                with pytest.raises(VoiceConversionError):
                    await opening
            ticking.cancel()
            await pipeline.close()
            return ticks

        assert asyncio.run(main()) > 10  # the first attempt alone takes a hundred of them


def test_properties_of_a_pipeline_that_is_not_open_yet() -> None:
    pipeline = AsyncVoiceConversionPipeline()
    assert pipeline.stats.total == 0
    with pytest.raises(StreamClosedError, match="not open yet"):
        _ = pipeline.pipeline
    with pytest.raises(ConfigurationError, match="concurrency is 0"):
        AsyncVoiceConversionPipeline(concurrency=0)
