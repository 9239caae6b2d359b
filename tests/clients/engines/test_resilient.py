"""What happens when the engine fails: retries, the CPU fallback, the flagged pass-through, the error."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from toy_repository import expected_conversion

from autovoice import (
    InferenceError,
    PassthroughWarning,
    PipelineConfig,
    Progress,
    VoiceConversionError,
    VoiceConversionPipeline,
)
from autovoice.engines import onnx_session, opening
from autovoice.engines.engine import Sequence
from autovoice.engines.local import MAX_SEQUENCES, LocalEngine, SequenceStore
from autovoice.engines.resilient import CircuitBreaker, ResilientEngine
from autovoice.errors import (
    DeviceError,
    InferenceTimeoutError,
    SequenceError,
    StreamClosedError,
    UnavailableError,
)
from autovoice.repository.model_config import ModelSpec
from autovoice.repository.reader import ModelRepository
from autovoice.results import StatsCounter

RATE = 24_000


class FailingEngine:
    """An embedded engine that plays a GPU and fails on the requests that `fails` picks by number."""

    def __init__(self, inner: LocalEngine, fails: Callable[[int], bool], error: VoiceConversionError) -> None:
        self._inner = inner
        self._fails = fails
        self._error = error
        self.requests = 0

    @property
    def device(self) -> str:
        return "cuda"

    def spec(self, model: str) -> ModelSpec:
        return self._inner.spec(model)

    def load(self, model: str) -> None:
        self._inner.load(model)

    @property
    def repository(self) -> ModelRepository:
        return self._inner.repository

    def infer(
        self, model: str, inputs: Any, *, sequence: Sequence | None = None, timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        self.requests += 1
        if self._fails(self.requests):
            raise self._error
        return self._inner.infer(model, inputs, sequence=sequence, timeout=timeout)

    def end_sequence(self, model: str, inputs: Any, sequence_id: int) -> None:
        self._inner.end_sequence(model, inputs, sequence_id)

    def close(self) -> None:
        self._inner.close()


def pipeline_with(
    toy: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[[int], bool],
    error: VoiceConversionError | None = None,
    **config: Any,
) -> tuple[VoiceConversionPipeline, list[FailingEngine]]:
    """A pipeline whose engine on `device="auto"` fails, and the engines made for it."""
    made: list[FailingEngine] = []
    original = LocalEngine

    def make(repository: ModelRepository, *, device: str, **rest: Any) -> Any:
        inner = original(repository, device="cpu", **rest)
        if device == "cpu":
            return inner
        made.append(FailingEngine(inner, fails, error or InferenceError("the GPU is gone")))
        return made[-1]

    monkeypatch.setattr(opening, "LocalEngine", make)
    config = {"retry_delay_seconds": 0.0, "block_seconds": 1.0, **config}
    return VoiceConversionPipeline(PipelineConfig(repository=toy, **config)), made


@pytest.fixture
def source() -> np.ndarray:
    return np.random.default_rng(5).uniform(-0.5, 0.5, 5 * RATE + 123).astype(np.float32)


def test_transient_failures_are_sent_again(
    toy: Path, monkeypatch: pytest.MonkeyPatch, source: np.ndarray, voice: np.ndarray
) -> None:
    pipeline, (engine,) = pipeline_with(toy, monkeypatch, lambda number: number % 3 != 0, retries=2)
    made = pipeline.convert(source, voice, None, RATE, pitch_shift_semitones=2.0)
    np.testing.assert_allclose(made, expected_conversion(source, 0.5, 2.0), atol=1e-5)
    assert engine.requests == 18  # six blocks, three attempts each
    assert (pipeline.stats.retries, pipeline.stats.fallbacks) == (12, 0)


def test_permanent_failures_are_not_sent_again(
    toy: Path, monkeypatch: pytest.MonkeyPatch, source: np.ndarray, voice: np.ndarray
) -> None:
    error = DeviceError("out of memory")
    pipeline, (engine,) = pipeline_with(toy, monkeypatch, lambda number: True, error, fallback="raise")
    with pytest.raises(DeviceError, match="out of memory"):
        pipeline.convert(source, voice, None, RATE)
    assert engine.requests == 1
    assert (pipeline.stats.total, pipeline.stats.failed, pipeline.stats.retries) == (1, 1, 0)


def test_the_cpu_takes_over_in_the_middle_of_a_sequence(
    toy: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: np.ndarray,
    voice: np.ndarray,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """State moves along: no sample tells where the device changed."""
    pipeline, (engine,) = pipeline_with(toy, monkeypatch, lambda number: number > 2, retries=0)
    assert pipeline.device == "cuda"
    made = pipeline.convert(source, voice, None, RATE, pitch_shift_semitones=2.0)
    np.testing.assert_allclose(made, expected_conversion(source, 0.5, 2.0), atol=1e-5)
    assert engine.requests == 3  # then it rests
    assert pipeline.stats.fallbacks == 4
    assert pipeline.stats.device_use == {"cpu": 1}
    assert pipeline.device == "cpu"
    assert "falling back: the GPU is gone" in caplog.text


def test_the_cpu_takes_over_in_a_live_stream(
    toy: Path, monkeypatch: pytest.MonkeyPatch, source: np.ndarray, voice: np.ndarray
) -> None:
    pipeline, _ = pipeline_with(toy, monkeypatch, lambda number: number > 7, retries=0)
    with pipeline.stream(voice, pitch_shift_semitones=2.0) as stream:
        parts = [stream.push(source[start : start + 3000]) for start in range(0, source.size, 3000)]
        made = np.concatenate([*parts, stream.flush()])
    np.testing.assert_allclose(made, expected_conversion(source, 0.5, 2.0), atol=1e-5)
    assert pipeline.stats.fallbacks > 0


def test_a_rested_primary_is_tried_again(
    toy: Path, monkeypatch: pytest.MonkeyPatch, voice: np.ndarray
) -> None:
    monkeypatch.setattr(opening, "DEVICE_REST_SECONDS", 0.0)
    pipeline, (engine,) = pipeline_with(toy, monkeypatch, lambda number: number == 1, retries=0)
    pipeline.convert(np.ones(480, np.float32), voice, None, RATE)
    pipeline.convert(np.ones(480, np.float32), voice, None, RATE)
    assert engine.requests == 2
    assert pipeline.stats.device_use == {"cpu": 2}  # what stands in for the GPU here runs on the CPU too


def test_raise_raises(
    toy: Path, monkeypatch: pytest.MonkeyPatch, source: np.ndarray, voice: np.ndarray
) -> None:
    pipeline, (engine,) = pipeline_with(toy, monkeypatch, lambda number: True, fallback="raise", retries=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InferenceError, match="the GPU is gone"):
            pipeline.convert(source, voice, None, RATE)
    assert engine.requests == 2
    with pipeline.stream(voice) as stream, pytest.raises(InferenceError):
        stream.push(source)
    with pytest.raises(InferenceError):
        pipeline.batch_convert([source, source], voice)
    assert pipeline.stats.failed == 4


def levelled(source: np.ndarray) -> np.ndarray:
    gain = min(0.1 / np.sqrt(np.mean(source.astype(np.float64) ** 2)), 0.99 / np.abs(source).max())
    return source * gain


@pytest.mark.parametrize("works_for", [0, 3])
def test_passthrough_is_the_levelled_input_and_flagged_everywhere(
    toy: Path, monkeypatch: pytest.MonkeyPatch, source: np.ndarray, voice: np.ndarray, works_for: int
) -> None:
    """However far the conversion got, nothing of it is mixed into what is handed back."""
    pipeline, _ = pipeline_with(
        toy, monkeypatch, lambda number: number > works_for, fallback="passthrough", retries=0
    )
    with pytest.warns(PassthroughWarning, match="NOT converted"):
        result = pipeline.convert_detailed(source, voice, None, RATE)
    assert result.passthrough
    np.testing.assert_allclose(result.audio, levelled(source), atol=1e-6)
    with pytest.warns(PassthroughWarning):
        assert pipeline.convert(source, voice, None, RATE, output_sample_rate=48_000).size == 2 * source.size
    assert pipeline.stats.passthroughs == 2
    assert pipeline.stats.device_use == {}


def test_passthrough_of_files_batches_and_streams(
    toy: Path, monkeypatch: pytest.MonkeyPatch, source: np.ndarray, voice: np.ndarray, tmp_path: Path
) -> None:
    pipeline, _ = pipeline_with(
        toy, monkeypatch, lambda number: number > 2, fallback="passthrough", retries=0
    )
    soundfile.write(tmp_path / "in.wav", source, RATE, subtype="FLOAT")
    with pytest.warns(PassthroughWarning):
        result = pipeline.convert_file(tmp_path / "in.wav", tmp_path / "out.wav", voice, subtype="FLOAT")
    assert result.passthrough
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], levelled(source), atol=1e-6)
    with pytest.warns(PassthroughWarning):
        batch = pipeline.batch_convert([source[:RATE], source[:999]], voice, source_sample_rates=RATE)
    np.testing.assert_allclose(batch[1], levelled(source[:999]), atol=1e-6)

    pipeline, _ = pipeline_with(
        toy, monkeypatch, lambda number: number > 10, fallback="passthrough", retries=0
    )
    stream = pipeline.stream(voice)
    parts = [stream.push(source[start : start + 2400]) for start in range(0, 24_000, 2400)]
    with pytest.warns(PassthroughWarning, match="rest of the stream is NOT converted"):
        parts.append(stream.push(source[24_000:]))
    made = np.concatenate([*parts, stream.flush()])
    assert stream.passthrough
    switch = 10 * 2400 - 600  # converted so far; the rest follows at once, still over the right samples
    np.testing.assert_allclose(made[:switch], 0.5 * source[:switch], atol=1e-6)
    np.testing.assert_array_equal(made[switch:], source[switch:])


def test_user_mistakes_are_never_passed_through(
    toy: Path, monkeypatch: pytest.MonkeyPatch, voice: np.ndarray
) -> None:
    pipeline, (engine,) = pipeline_with(toy, monkeypatch, lambda number: True, fallback="passthrough")
    with pytest.raises(VoiceConversionError, match="is empty"):
        pipeline.convert(np.zeros(0, np.float32), voice)
    assert engine.requests == 0
    assert pipeline.stats.failed == 1


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_asked_for_but_not_there(
    toy: Path, monkeypatch: pytest.MonkeyPatch, voice: np.ndarray, device: str
) -> None:
    monkeypatch.setattr(onnx_session, "available_devices", lambda: ["cpu"])
    with pytest.raises(DeviceError, match=f"'{device}' is not offered .* install onnxruntime-gpu"):
        VoiceConversionPipeline(PipelineConfig(repository=toy, device=device, fallback="raise"))
    pipeline = VoiceConversionPipeline(PipelineConfig(repository=toy, device=device))
    assert pipeline.device == "cpu"
    assert pipeline.stats.fallbacks == 1
    np.testing.assert_allclose(pipeline.convert(np.ones(480, np.float32), voice, None, RATE), 0.5, atol=1e-6)


def test_use_cuda_is_the_gpu_or_the_cpu_with_one_warning(
    toy: Path, voice: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """The first way to ask for a GPU. Here there is none, and nothing is made up for it."""
    if "cuda" in onnx_session.available_devices():
        pytest.skip("this ONNX Runtime has CUDA")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = VoiceConversionPipeline(PipelineConfig(repository=toy, use_cuda=True))
        made = pipeline.convert(np.ones(480, np.float32), voice, None, RATE)
    np.testing.assert_allclose(made, 0.5, atol=1e-6)
    assert pipeline.device == "cpu"
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "running on the CPU instead: device 'cuda' is not offered" in record.getMessage()
    assert pipeline.stats.device_use == {"cpu": 1}


def test_cuda_offered_but_broken_falls_back_at_the_first_model(
    toy: Path, monkeypatch: pytest.MonkeyPatch, voice: np.ndarray
) -> None:
    """onnxruntime lists the provider when only its library is installed, and drops it when CUDA does not
    start."""
    monkeypatch.setattr(onnx_session, "available_devices", lambda: ["cpu", "cuda"])
    pipeline = VoiceConversionPipeline(PipelineConfig(repository=toy, device="cuda", retries=5))
    assert pipeline.device == "cuda"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnxruntime warns about the provider it lacks
        made = pipeline.convert(np.ones(480, np.float32), voice, None, RATE)
    np.testing.assert_allclose(made, 0.5, atol=1e-6)
    assert (pipeline.stats.fallbacks, pipeline.stats.retries) == (1, 0)


@pytest.mark.filterwarnings("ignore")  # onnxruntime warns about the provider it lacks
def test_auto_is_the_cpu_where_cuda_is_offered_but_does_not_start(
    toy: Path, monkeypatch: pytest.MonkeyPatch, voice: np.ndarray
) -> None:
    monkeypatch.setattr(onnx_session, "available_devices", lambda: ["cpu", "cuda"])
    pipeline = VoiceConversionPipeline(PipelineConfig(repository=toy, fallback="raise"))
    assert pipeline.device == "cpu"
    np.testing.assert_allclose(pipeline.convert(np.ones(480, np.float32), voice, None, RATE), 0.5, atol=1e-6)
    assert pipeline.stats.fallbacks == 0


def test_the_configured_timeout_reaches_the_engine(toy: Path, voice: np.ndarray) -> None:
    config = PipelineConfig(repository=toy, timeout_seconds=0.001, retries=0, block_seconds=60)
    pipeline = VoiceConversionPipeline(config)
    minute = np.ones(60 * RATE, np.float32)
    with pytest.raises(InferenceTimeoutError, match="timeout_seconds"):
        pipeline.convert(minute, voice, None, RATE)


def test_what_a_callback_raises_is_not_an_engine_failure(toy: Path, voice: np.ndarray) -> None:
    pipeline = VoiceConversionPipeline(PipelineConfig(repository=toy, fallback="passthrough"))

    def cancel(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.convert(np.ones(480, np.float32), voice, None, RATE, progress_callback=cancel)
    assert (pipeline.stats.failed, pipeline.stats.retries, pipeline.stats.passthroughs) == (1, 0, 0)


class Flaky(LocalEngine):
    """Keeps its sequences to itself, and fails while `error` is set."""

    error: InferenceError | None = None
    requests = 0

    def infer(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        self.requests += 1
        if self.error is not None:
            raise self.error
        return super().infer(*args, **kwargs)


def server_with_fallback(toy: Path, stats: StatsCounter, **options: Any) -> tuple[Flaky, ResilientEngine]:
    primary = Flaky(ModelRepository(toy))
    settings = {"retries": 0, "retry_delay_seconds": 1.0, "timeout": None, **options}
    engine = ResilientEngine(
        primary, lambda: LocalEngine(ModelRepository(toy)), sequences_move=False, stats=stats, **settings
    )
    return primary, engine


def test_a_sequence_stays_where_it_was_started(toy: Path, voice: np.ndarray) -> None:
    """States do not travel between a server and this process, whoever is well at the moment."""
    stats = StatsCounter()
    primary, engine = server_with_fallback(toy, stats, breaker=CircuitBreaker(1, 0.0))
    inputs = {
        "SOURCE_AUDIO": np.ones((1, 240), np.float32),
        "TARGET_EMBEDDING": voice[np.newaxis],
        "PITCH_SHIFT": np.zeros((1, 1), np.float32),
    }

    def send(number: int, **position: bool) -> None:
        engine.infer("voice_conversion_stream", inputs, sequence=Sequence(number, **position))

    send(1, start=True)
    primary.error = InferenceError("out of order")
    send(2, start=True)
    primary.error = None
    send(2)
    send(1)
    assert primary.requests == 3  # both starts, and the rest of the first sequence
    send(2, end=True)
    assert stats.snapshot().fallbacks == 3
    with pytest.raises(SequenceError):
        send(2)
    assert stats.snapshot().lost_sequences == 1


def test_retries_wait_longer_each_time_and_end_at_the_deadline(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        pauses.append(seconds)

    monkeypatch.setattr("autovoice.engines.resilient.time.monotonic", lambda: now)
    monkeypatch.setattr("autovoice.engines.resilient.time.sleep", sleep)
    stats = StatsCounter()
    primary, engine = server_with_fallback(toy, stats, breaker=None, retries=50, timeout=30.0)
    primary.error = InferenceError("busy")
    engine.infer("target_pitch", {"EMBEDDING": np.full((1, 4), 0.5, np.float32)})
    for number, pause in enumerate(pauses):
        assert 0.5 * min(2**number, 10) <= pause <= min(2**number, 10)
    assert len(set(pauses)) == len(pauses)
    assert 20.0 <= now < 30.0
    assert stats.snapshot().retries == len(pauses)
    assert stats.snapshot().fallbacks == 1


def test_callers_that_failed_together_come_back_one_by_one(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the pauses have reached their longest."""
    pauses: list[float] = []
    monkeypatch.setattr("autovoice.engines.resilient.time.sleep", pauses.append)
    for _ in range(10):
        primary, engine = server_with_fallback(toy, StatsCounter(), breaker=None, retries=6)
        primary.error = InferenceError("busy")
        engine.infer("target_pitch", {"EMBEDDING": np.full((1, 4), 0.5, np.float32)})
    for number in range(6):
        alike = pauses[number::6]
        assert len(set(alike)) == 10
        longest = min(2**number, 10)
        assert all(0.5 * longest <= pause <= longest for pause in alike)


def test_while_one_caller_tries_a_rested_engine_the_others_do_not(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    inputs = {"EMBEDDING": np.full((1, 4), 0.5, np.float32)}
    entered, answered = threading.Event(), threading.Event()

    class Slow(Flaky):
        def infer(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
            if self.requests == 1:
                self.requests = 2
                entered.set()
                assert answered.wait(60)
            return super().infer(*args, **kwargs)

    primary = Slow(ModelRepository(toy))
    primary.error = InferenceError("out of order")
    engine = ResilientEngine(
        primary,
        None,
        breaker=CircuitBreaker(1, 5.0),
        sequences_move=False,
        retries=0,
        retry_delay_seconds=0.0,
        timeout=None,
        stats=StatsCounter(),
    )
    with pytest.raises(InferenceError, match="out of order"):
        engine.infer("target_pitch", inputs)
    primary.error = None
    now += 5.0
    with ThreadPoolExecutor(1) as pool:
        trial = pool.submit(engine.infer, "target_pitch", inputs)
        try:
            assert entered.wait(60)
            for _ in range(5):
                with pytest.raises(UnavailableError, match="left alone"):
                    engine.infer("target_pitch", inputs)
        finally:
            answered.set()
        assert trial.result(60)["MEDIAN_F0"] == 500
    assert engine.infer("target_pitch", inputs)["MEDIAN_F0"] == 500


def test_an_engine_without_places_is_neither_dead_nor_replaced(toy: Path, voice: np.ndarray) -> None:
    """The fallback shares its places; a breaker that opened would only slow the live streams down."""
    stats = StatsCounter()
    models, sequences = ModelRepository(toy), SequenceStore(capacity=1)
    engine = ResilientEngine(
        LocalEngine(models, sequences=sequences),
        lambda: LocalEngine(models, sequences=sequences),
        breaker=CircuitBreaker(1, 60.0),
        sequences_move=True,
        retries=0,
        retry_delay_seconds=0.0,
        timeout=None,
        stats=stats,
    )
    pipeline = VoiceConversionPipeline(PipelineConfig(retries=0), engine=engine)
    with pipeline.stream(voice) as first, pipeline.stream(voice) as second:
        first.push(np.ones(240, np.float32))
        for _ in range(3):
            with pytest.raises(UnavailableError, match=r"1 streams .* are live .* flush or close some"):
                pipeline.stream(voice).push(np.ones(240, np.float32))
        first.push(np.ones(240, np.float32))
        first.close()
        second.push(np.ones(240, np.float32))
    assert (stats.snapshot().fallbacks, stats.snapshot().lost_sequences) == (0, 0)


def test_more_live_streams_than_places_cost_the_others_nothing(toy: Path, voice: np.ndarray) -> None:
    config = PipelineConfig(repository=toy, retries=0)
    with VoiceConversionPipeline(config) as pipeline:
        streams = [pipeline.stream(voice) for _ in range(MAX_SEQUENCES)]
        for _ in range(3):
            for stream in streams:
                stream.push(np.ones(240, np.float32))
            late = pipeline.stream(voice)
            with pytest.raises(UnavailableError, match=f"^{MAX_SEQUENCES} streams .* are live"):
                late.push(np.ones(240, np.float32))
        made = streams[0].flush()
        assert made.size == 720 - 120  # the first samples came with the third push
        pipeline.stream(voice).push(np.ones(240, np.float32))
        assert pipeline.stats.lost_sequences == 0


class Unsound(LocalEngine):
    """Fails from its fourth request on, whatever is asked of it."""

    requests = 0

    def infer(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        self.requests += 1
        if self.requests > 3:
            raise InferenceError("the synthesizer is gone")
        return super().infer(*args, **kwargs)


def raise_at_the_third_step(progress: Progress) -> None:
    if progress.chunk == 3:
        raise RuntimeError("that is enough")


@pytest.mark.parametrize("fallback", ["raise", "passthrough"])
@pytest.mark.filterwarnings("ignore::autovoice.errors.PassthroughWarning")
def test_what_ends_in_an_error_leaves_no_state_behind(
    toy: Path, source: np.ndarray, voice: np.ndarray, tmp_path: Path, fallback: str
) -> None:
    soundfile.write(tmp_path / "in.wav", source, RATE)
    config = PipelineConfig(retries=0, block_seconds=1.0, fallback=fallback)  # type: ignore[arg-type]

    def stream(pipeline: VoiceConversionPipeline) -> None:
        live = pipeline.stream(voice)
        for piece in np.array_split(source, 7):
            live.push(piece)
        live.flush()

    callback = {"progress_callback": raise_at_the_third_step}
    calls: list[Callable[[VoiceConversionPipeline], Any]] = [
        lambda pipeline: pipeline.convert(source, voice, None, RATE),
        lambda pipeline: pipeline.convert_file(tmp_path / "in.wav", tmp_path / "out.wav", voice),
        lambda pipeline: pipeline.batch_convert([source] * 2, voice, source_sample_rates=RATE),
        lambda pipeline: pipeline.extract_f0(source, RATE),
        lambda pipeline: pipeline.convert(source, voice, None, RATE, **callback),
        stream,
    ]
    for call in calls:
        engine = Unsound(ModelRepository(toy))
        pipeline = VoiceConversionPipeline(config, engine=engine)
        with suppress(InferenceError, RuntimeError):
            call(pipeline)
        assert engine.requests > 2
        assert len(engine.sequences) == 0


def test_the_state_of_a_failed_request_is_kept_as_long_as_it_may_be_sent_again(
    toy: Path, source: np.ndarray, voice: np.ndarray
) -> None:
    pipeline, engine = None, Unsound(ModelRepository(toy))
    pipeline = VoiceConversionPipeline(PipelineConfig(retries=1, retry_delay_seconds=0.0), engine=engine)
    with pipeline.stream(voice, pitch_shift_semitones=2.0) as stream:
        parts = [stream.push(piece) for piece in np.split(source[:7200], 3)]
        engine.infer = heal(engine)  # type: ignore[method-assign]
        parts += [stream.push(source[7200:]), stream.flush()]
    np.testing.assert_allclose(np.concatenate(parts), expected_conversion(source, 0.5, 2.0), atol=1e-5)
    assert pipeline.stats.retries == 1


def heal(engine: Unsound) -> Callable[..., dict[str, np.ndarray]]:
    """An `infer` that fails once more and then no longer."""

    def infer(*args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        failing = engine.requests == 3
        engine.requests = 3 if failing else 0
        return Unsound.infer(engine, *args, **kwargs)

    return infer


def test_a_stream_ends_with_its_pipeline(toy: Path, source: np.ndarray, voice: np.ndarray) -> None:
    pipeline = VoiceConversionPipeline(PipelineConfig(repository=toy))
    streams = [pipeline.stream(voice) for _ in range(3)]
    for stream in streams[:2]:
        stream.push(source[:2400])
    pipeline.close()
    for call in (lambda: streams[0].push(source[:2400]), streams[1].flush, lambda: streams[2].push(source)):
        with pytest.raises(StreamClosedError, match="pipeline has been closed; make another"):
            call()
    for stream in streams:
        stream.close()
    with pytest.raises(StreamClosedError, match="stream has been flushed or closed"):
        streams[0].push(source)


def test_nothing_falls_back_once_closed(toy: Path) -> None:
    made: list[LocalEngine] = []
    primary = Flaky(ModelRepository(toy))
    primary.error = InferenceError("out of order")

    def make() -> LocalEngine:
        made.append(LocalEngine(ModelRepository(toy)))
        return made[0]

    engine = ResilientEngine(
        primary,
        make,
        breaker=CircuitBreaker(1, 60.0),
        sequences_move=False,
        retries=0,
        retry_delay_seconds=0.0,
        timeout=None,
        stats=StatsCounter(),
    )
    engine.close()
    for call in (lambda: engine.infer("target_pitch", {}), lambda: engine.spec("target_pitch")):
        with pytest.raises(StreamClosedError):
            call()
    engine.end_sequence("voice_conversion_stream", {}, 1)
    assert (primary.requests, made) == (0, [])


def test_without_fallback_callers_of_a_dead_engine_are_refused_at_once(toy: Path) -> None:
    primary = Flaky(ModelRepository(toy))
    primary.error = InferenceError("out of order")
    engine = ResilientEngine(
        primary,
        None,
        breaker=CircuitBreaker(3, 60.0),
        sequences_move=False,
        retries=0,
        retry_delay_seconds=0.0,
        timeout=None,
        stats=StatsCounter(),
    )
    for _ in range(5):
        with pytest.raises(InferenceError) as failure:
            engine.infer("target_pitch", {})
    assert primary.requests == 3
    assert isinstance(failure.value, UnavailableError)
    assert "left alone" in str(failure.value)
