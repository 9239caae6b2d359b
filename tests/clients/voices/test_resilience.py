"""Engines that fail under an imported voice: windows hold no state there, so nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_voices import RATE

from autovoice import InferenceError, PassthroughWarning, PipelineConfig, VoiceConversionPipeline
from autovoice.audio.samples import resample
from autovoice.engines.local import LocalEngine
from autovoice.engines.resilient import CircuitBreaker, ResilientEngine
from autovoice.errors import UnavailableError
from autovoice.repository.model_config import ModelSpec
from autovoice.repository.reader import ModelRepository
from autovoice.results import StatsCounter

OUT = 40_000
SOURCE = (0.2 * np.sin(np.arange(30_123) / 9) * np.clip(np.sin(np.arange(30_123) / 4000), 0, 1)).astype(
    np.float32
)


class Forgetful:
    """An engine started anew for every request, as a server that restarts all the time; some requests fail.

    Args:
        models: what it runs.
        fails: which requests fail, by number from 1.
    """

    device = "server"

    def __init__(self, models: ModelRepository, fails: Callable[[int], bool]) -> None:
        self._models = models
        self._fails = fails
        self.requests = 0

    def spec(self, model: str) -> ModelSpec:
        return self._models.spec(model)

    def infer(self, model: str, inputs: Any, **rest: Any) -> dict[str, np.ndarray]:
        self.requests += 1
        if self._fails(self.requests):
            raise UnavailableError("the server is starting again")
        return LocalEngine(self._models).infer(model, inputs, **rest)

    def close(self) -> None:
        pass


@pytest.fixture
def models(toy_voices: Path) -> ModelRepository:
    return ModelRepository(toy_voices)


def pipeline_over(engine: Any, **options: Any) -> VoiceConversionPipeline:
    config = PipelineConfig(voice="anna", block_seconds=0.2, retry_delay_seconds=0.0, **options)
    return VoiceConversionPipeline(config, engine=engine)


def live(pipeline: VoiceConversionPipeline) -> np.ndarray:
    with pipeline.stream(core_seconds=0.1, output_sample_rate=OUT) as stream:
        parts = [stream.push(SOURCE[start : start + 700]) for start in range(0, SOURCE.size, 700)]
        return np.concatenate([*parts, stream.flush()])


def whole(pipeline: VoiceConversionPipeline) -> np.ndarray:
    return pipeline.convert(SOURCE, source_sample_rate=RATE, output_sample_rate=OUT)


@pytest.mark.parametrize("convert", [live, whole])
def test_a_server_that_keeps_starting_again_changes_no_sample(
    models: ModelRepository, convert: Callable[[VoiceConversionPipeline], np.ndarray]
) -> None:
    expected = convert(pipeline_over(LocalEngine(models)))
    engine = Forgetful(models, lambda number: number % 3 != 0)
    pipeline = pipeline_over(engine, retries=2)
    np.testing.assert_array_equal(convert(pipeline), expected)
    stats = pipeline.stats
    assert stats.retries == 2 * engine.requests / 3 > 10
    assert (stats.failed, stats.lost_sequences) == (0, 0)


@pytest.mark.parametrize("convert", [live, whole])
def test_a_window_may_go_to_another_engine_in_the_middle(
    models: ModelRepository, convert: Callable[[VoiceConversionPipeline], np.ndarray]
) -> None:
    expected = convert(pipeline_over(LocalEngine(models)))
    stats = StatsCounter()
    resilient = ResilientEngine(
        Forgetful(models, lambda number: number in (3, 4, 7)),
        lambda: LocalEngine(models),
        breaker=CircuitBreaker(1, 0.0),
        sequences_move=False,
        retries=0,
        retry_delay_seconds=0.0,
        timeout=None,
        stats=stats,
    )
    np.testing.assert_array_equal(convert(pipeline_over(resilient, retries=0)), expected)
    assert stats.snapshot().fallbacks == 3


def test_a_window_that_cannot_be_converted_ends_the_stream(models: ModelRepository) -> None:
    pipeline = pipeline_over(Forgetful(models, lambda number: number > 3), retries=0)
    with pytest.raises(UnavailableError):
        live(pipeline)
    assert pipeline.stats.failed == 1


@pytest.mark.parametrize("good", [0, 3, 10])
@pytest.mark.parametrize("chunk", [700, 8000, 40_000])
def test_a_stream_passes_its_source_through_in_place(models: ModelRepository, good: int, chunk: int) -> None:
    engine = Forgetful(models, lambda number: number > good)
    pipeline = pipeline_over(engine, retries=0, fallback="passthrough")
    expected = live(pipeline_over(LocalEngine(models)))
    starts = range(0, SOURCE.size, chunk)
    with pipeline.stream(core_seconds=0.1, output_sample_rate=OUT) as stream:
        with pytest.warns(PassthroughWarning, match="NOT converted"):
            parts = [*(stream.push(SOURCE[at : at + chunk]) for at in starts), stream.flush()]
        assert stream.passthrough
    made = np.concatenate(parts)
    assert made.size == expected.size
    edge = good * OUT // 10
    np.testing.assert_array_equal(made[:edge], expected[:edge])
    handed_on = resample(SOURCE[good * RATE // 10 :], RATE, OUT)
    np.testing.assert_allclose(made[edge:], handed_on[: made.size - edge], atol=1e-4)
    assert engine.requests == good + 1
    assert pipeline.stats.passthroughs == 1


def test_a_file_is_passed_through_as_a_whole(models: ModelRepository) -> None:
    pipeline = pipeline_over(Forgetful(models, lambda number: number > 2), retries=0, fallback="passthrough")
    with pytest.warns(PassthroughWarning):
        result = pipeline.convert_detailed(SOURCE, source_sample_rate=RATE)
    assert result.passthrough
    gain = result.audio[5000] / SOURCE[5000]
    np.testing.assert_allclose(result.audio, gain * SOURCE, atol=1e-4)
    with pytest.raises(InferenceError):
        whole(pipeline_over(Forgetful(models, lambda number: True), retries=0))
