"""What a live stream keeps, to be played again to an engine that lost its state: enough, and never more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_repository import expected_conversion

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.engines.engine import Sequence, Tensors
from autovoice.engines.local import LocalEngine
from autovoice.errors import SequenceError
from autovoice.repository.model_config import ModelSpec
from autovoice.repository.reader import ModelRepository

RATE = 24_000
BLOCK = 4800


class Forgetting:
    """An engine that counts the samples of live requests, and loses all states when told to.

    Args:
        root: repository that it runs.
    """

    device = "server"

    def __init__(self, root: Path) -> None:
        self._models = ModelRepository(root)
        self._engine = LocalEngine(self._models)
        self._known: set[int] = set()
        self.samples = 0

    def spec(self, model: str) -> ModelSpec:
        return self._models.spec(model)

    def infer(
        self, model: str, inputs: Any, *, sequence: Sequence | None = None, timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        self.samples += inputs["SOURCE_AUDIO"].size
        if sequence is not None:
            if not sequence.start and sequence.id not in self._known:
                raise SequenceError("the server has been started again")
            self._known.add(sequence.id)
        return self._engine.infer(model, inputs, sequence=sequence, timeout=timeout)

    def end_sequence(self, model: str, inputs: Tensors, sequence_id: int) -> None:
        self._engine.end_sequence(model, inputs, sequence_id)

    def forget(self) -> None:
        """Lose every state, as a server that is started again."""
        self._known.clear()
        self._engine.close()
        self._engine = LocalEngine(self._models)

    def close(self) -> None:
        self._engine.close()


def pipeline_over(engine: Forgetting, replay_seconds: float) -> VoiceConversionPipeline:
    config = PipelineConfig(
        block_seconds=BLOCK / RATE, replay_seconds=replay_seconds, retries=0, fallback="raise"
    )
    return VoiceConversionPipeline(config, engine=engine)


def kept_bytes(stream: Any) -> int:
    """Memory behind what a stream keeps: a view holds the whole array that it was cut from."""
    owners = {}
    for block in stream._stream._recent:
        owner = block
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        owners[id(owner)] = owner.nbytes
    return sum(owners.values())


@given(
    pushes=st.lists(st.integers(1, 20_000), min_size=1, max_size=30),
    replay=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_stream_keeps_the_latest_input_and_little_more(
    toy: Path, voice: np.ndarray, pushes: list[int], replay: float
) -> None:
    with pipeline_over(Forgetting(toy), replay) as pipeline, pipeline.stream(voice) as stream:
        wanted = round(replay * RATE)
        for size in pushes:
            stream.push(np.full(size, 0.1, np.float32))
            kept = sum(block.size for block in stream._stream._recent)
            converted = stream.samples_in - stream.samples_in % 240
            assert min(wanted, converted) <= kept <= wanted + BLOCK
            assert kept_bytes(stream) <= 4 * (wanted + BLOCK + max(pushes))


def test_hours_of_a_stream_take_no_more_memory_than_minutes(toy: Path, voice: np.ndarray) -> None:
    with pipeline_over(Forgetting(toy), 1.0) as pipeline, pipeline.stream(voice) as stream:
        for _ in range(3):  # one push of a minute each
            stream.push(np.zeros(60 * RATE, np.float32))
            assert kept_bytes(stream) <= 4 * (RATE + BLOCK)


@pytest.fixture
def engine(toy: Path) -> Iterator[Forgetting]:
    engine = Forgetting(toy)
    yield engine
    engine.close()


def test_a_lost_state_is_restored_with_the_latest_input_alone(engine: Forgetting, voice: np.ndarray) -> None:
    """However long the stream has been going on, an engine that was started again hears no more than that."""
    replay = 0.5
    source = np.random.default_rng(0).uniform(-0.5, 0.5, 20 * RATE).astype(np.float32)
    chunk = RATE // 10
    parts = []
    with pipeline_over(engine, replay) as pipeline, pipeline.stream(voice) as stream:
        for number, start in enumerate(range(0, source.size, chunk)):
            if number in (2, 60, 150):
                engine.forget()
                engine.samples = 0
            parts.append(stream.push(source[start : start + chunk]))
            if number in (2, 60, 150):
                # The request that was refused, the replay, and the request again.
                assert engine.samples <= round(replay * RATE) + BLOCK + 2 * chunk
        parts.append(stream.flush())
    # The toy voice remembers only its delay, which the replay restores.
    np.testing.assert_allclose(np.concatenate(parts), expected_conversion(source, 0.5), atol=1e-5)
