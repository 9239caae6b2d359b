"""The embedded engine against the toy's closed form: ensembles, implicit state, refused requests."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_repository import expected_conversion

from autovoice.engines import onnx_session as session_module
from autovoice.engines.engine import Sequence, StepTiming, observe_steps, time_limit
from autovoice.engines.local import LocalEngine, SequenceStore
from autovoice.engines.onnx_session import OnnxSession, load_session
from autovoice.errors import (
    CapacityError,
    ConfigurationError,
    DeviceError,
    InferenceTimeoutError,
    RequestError,
    SequenceError,
    StreamClosedError,
)
from autovoice.repository.model_config import ModelSpec
from autovoice.repository.reader import ModelRepository


@pytest.fixture
def engine(toy: Path) -> LocalEngine:
    return LocalEngine(ModelRepository(toy))


def audio(batch: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (batch, size)).astype(np.float32)


def request(source: np.ndarray, gain: float = 0.25, shift: float = 3.0) -> dict[str, np.ndarray]:
    batch = len(source)
    embedding = np.full((batch, 4), gain, np.float32)
    return {
        "SOURCE_AUDIO": source,
        "TARGET_EMBEDDING": embedding,
        "PITCH_SHIFT": np.full((batch, 1), shift, np.float32),
    }


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("size", [1, 240, 1000, 24_000])
def test_offline_ensemble(engine: LocalEngine, batch: int, size: int) -> None:
    source = audio(batch, size)
    outputs = engine.infer("voice_conversion", request(source))
    assert set(outputs) == {"CONVERTED_AUDIO"}
    for row, made in zip(source, outputs["CONVERTED_AUDIO"], strict=True):
        np.testing.assert_allclose(made, expected_conversion(row, 0.25, 3.0), atol=1e-5)


def test_the_models_of_an_ensemble_are_loaded_at_once(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes a core: a first conversion waits for the slowest, not for all of them."""
    together = threading.Barrier(len(engine.repository.steps_in_order(engine.spec("voice_conversion"))))
    loaded = []

    def load(spec: ModelSpec, **options: Any) -> OnnxSession:
        together.wait(60)
        loaded.append(spec.name)
        return load_session(spec, **options)

    monkeypatch.setattr("autovoice.engines.local.load_session", load)
    for _ in range(2):
        engine.infer("voice_conversion", request(audio(1, 480)))
    assert len(set(loaded)) == len(loaded) == together.parties > 2


@pytest.mark.parametrize("batch", [1, 2])
def test_state_is_kept_per_sequence_and_dropped_at_its_end(engine: LocalEngine, batch: int) -> None:
    first, second = audio(batch, 4800, 1), audio(batch, 4800, 2)
    made: dict[int, list[np.ndarray]] = {7: [], 8: []}
    for start in range(0, 4800, 480):
        for identity, source in ((7, first), (8, second)):
            position = Sequence(identity, start=start == 0, end=start == 4320)
            inputs = request(source[:, start : start + 480])
            made[identity].append(
                engine.infer("voice_conversion_stream", inputs, sequence=position)["CONVERTED_AUDIO"]
            )
    for identity, source in ((7, first), (8, second)):
        delayed = np.concatenate(made[identity], axis=1)
        for row, converted in zip(source, delayed, strict=True):
            np.testing.assert_allclose(converted[600:], expected_conversion(row, 0.25, 3.0)[:-600], atol=1e-5)
    assert len(engine.sequences) == 0
    with pytest.raises(SequenceError, match="sequence 7 is not live"):
        engine.infer("voice_conversion_stream", request(first[:, :240]), sequence=Sequence(7))


def test_start_resets_a_sequence(engine: LocalEngine) -> None:
    loud, quiet = np.ones((1, 960), np.float32), np.zeros((1, 960), np.float32)
    engine.infer("voice_conversion_stream", request(loud), sequence=Sequence(5, start=True))
    outputs = engine.infer("voice_conversion_stream", request(quiet), sequence=Sequence(5, start=True))
    assert not outputs["CONVERTED_AUDIO"].any()


def test_a_failed_request_leaves_the_state_alone(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delay has already run when the synthesizer fails; sent again, the request must not be delayed
    twice."""
    source = audio(1, 2400)
    engine.infer("voice_conversion_stream", request(source[:, :1200]), sequence=Sequence(3, start=True))
    original = session_module.OnnxSession.run
    broken = [True]

    def run(self: session_module.OnnxSession, model: str, *arguments: object) -> list[np.ndarray]:
        if model == "synthesizer_stream" and broken[0]:
            raise session_module.InferenceError("made to fail")
        return original(self, model, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(session_module.OnnxSession, "run", run)
    with pytest.raises(session_module.InferenceError, match="made to fail"):
        engine.infer("voice_conversion_stream", request(source[:, 1200:]), sequence=Sequence(3))
    broken[0] = False
    made = engine.infer("voice_conversion_stream", request(source[:, 1200:]), sequence=Sequence(3))
    np.testing.assert_allclose(
        made["CONVERTED_AUDIO"][0], expected_conversion(source[0], 0.25, 3.0)[600:1800], atol=1e-5
    )


def send(engine: LocalEngine, number: int, **position: bool) -> None:
    engine.infer("voice_conversion_stream", request(audio(1, 240)), sequence=Sequence(number, **position))


def test_a_full_engine_refuses_a_new_sequence_and_keeps_the_live_ones(toy: Path) -> None:
    engine = LocalEngine(ModelRepository(toy), sequences=SequenceStore(capacity=2))
    for number in (1, 2):
        send(engine, number, start=True)
    with pytest.raises(CapacityError, match=r"^2 streams .* are live .*; flush or close some"):
        send(engine, 3, start=True)
    send(engine, 4, start=True, end=True)  # needs no place
    send(engine, 2, start=True)  # has one
    for number in (1, 2):
        send(engine, number)
    send(engine, 1, end=True)
    send(engine, 3, start=True)
    send(engine, 2)


def test_a_new_sequence_takes_the_place_of_an_abandoned_one(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    engine = LocalEngine(ModelRepository(toy), sequences=SequenceStore(capacity=2, idle_seconds=60.0))
    for number in (1, 2):
        send(engine, number, start=True)
    now += 60.0
    send(engine, 1)  # however long it was idle, as long as nobody needed its place
    send(engine, 3, start=True)
    send(engine, 1)
    with pytest.raises(SequenceError, match="idle for more than 60 s"):
        send(engine, 2)
    with pytest.raises(CapacityError):
        send(engine, 2, start=True)


def test_a_sequence_is_live_while_a_long_request_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    store = SequenceStore(capacity=1, idle_seconds=60.0)
    store.commit(Sequence(1, start=True), {})
    now += 50.0
    store.begin(Sequence(1))
    now += 50.0
    with pytest.raises(CapacityError):
        store.begin(Sequence(2, start=True))
    store.commit(Sequence(1), {})
    now += 60.0
    store.begin(Sequence(2, start=True))


def test_a_sequence_that_is_given_up_leaves_nothing(engine: LocalEngine) -> None:
    send(engine, 1, start=True)
    send(engine, 2, start=True)
    engine.end_sequence("voice_conversion_stream", {}, 1)
    engine.end_sequence("voice_conversion_stream", {}, 77)
    assert len(engine.sequences) == 1
    send(engine, 2)
    with pytest.raises(SequenceError):
        send(engine, 1)


def test_a_closed_engine_refuses_every_call_and_loads_nothing(engine: LocalEngine) -> None:
    send(engine, 1, start=True)
    engine.close()
    for call in (
        lambda: send(engine, 1),
        lambda: engine.infer("voice_conversion", request(audio(1, 240))),
        lambda: engine.spec("voice_conversion"),
        lambda: engine.load("delay"),
    ):
        with pytest.raises(StreamClosedError, match="has been closed; make another"):
            call()
    engine.end_sequence("voice_conversion_stream", {}, 1)
    engine.close()
    assert not engine._sessions
    assert len(engine.sequences) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"SOURCE_AUDIO": np.zeros((1, 240))}, "SOURCE_AUDIO of voice_conversion is float64; send float32"),
        ({"SOURCE_AUDIO": np.zeros(240, np.float32)}, r"has dims \[\]; send \[-1\]"),
        ({"TARGET_EMBEDDING": np.zeros((1, 5), np.float32)}, r"has dims \[5\]; send \[4\]"),
        ({"PITCH_SHIFT": np.zeros((2, 1), np.float32)}, r"batch sizes \[1, 2\]"),
        ({"EXTRA": np.zeros((1, 1), np.float32)}, "not EXTRA, PITCH_SHIFT,"),
    ],
)
def test_requests_that_triton_would_refuse(
    engine: LocalEngine, change: dict[str, np.ndarray], says: str
) -> None:
    with pytest.raises(RequestError, match=says):
        engine.infer("voice_conversion", {**request(audio(1, 240)), **change})


def test_too_large_a_batch(engine: LocalEngine) -> None:
    with pytest.raises(RequestError, match=r"batch sizes \[17\]; send one from 1 to 16"):
        engine.infer("voice_conversion", request(audio(17, 240)))


def test_sessions_are_shared_by_file_and_freed_with_their_last_user(toy: Path) -> None:
    made: list[str] = []
    original = session_module.OnnxSession.__init__

    def count(self: session_module.OnnxSession, spec: ModelSpec, device: str, threads: int) -> None:
        made.append(spec.name)
        original(self, spec, device, threads)

    with pytest.MonkeyPatch.context() as patch:
        gc.collect()
        patch.setattr(session_module.OnnxSession, "__init__", count)
        engines = [LocalEngine(ModelRepository(toy), threads=3) for _ in range(3)]
        with ThreadPoolExecutor(8) as pool:
            runs = [pool.submit(e.infer, "voice_conversion", request(audio(1, 240))) for e in engines * 4]
            for run in runs:
                run.result()
        for engine in engines:
            engine.infer("voice_conversion_stream", request(audio(1, 240)), sequence=Sequence(1, start=True))
        # The stream models are links to the offline files, so nothing is loaded twice.
        assert sorted(made) == ["delay", "pad_source", "pitch_extractor", "synthesizer", "trim_output"]
        while engines:
            engines.pop().close()
        del engine, runs
        gc.collect()
        assert not [key for key in session_module._sessions if key[-1] == 3]


def test_threads_do_not_mix_their_sequences(engine: LocalEngine) -> None:
    def convert(identity: int) -> None:
        source = audio(1, 24_000, identity)
        parts = []
        for start in range(0, 24_000, 2400):
            position = Sequence(identity, start=start == 0, end=start == 21_600)
            inputs = request(source[:, start : start + 2400])
            parts.append(
                engine.infer("voice_conversion_stream", inputs, sequence=position)["CONVERTED_AUDIO"][0]
            )
        expected = expected_conversion(source[0], 0.25, 3.0)[:-600]
        np.testing.assert_allclose(np.concatenate(parts)[600:], expected, atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(convert, range(1, 33)))


def test_steps_are_reported_to_the_thread_that_caused_them(engine: LocalEngine) -> None:
    seen: list[StepTiming] = []
    elsewhere: list[StepTiming] = []

    def other() -> None:
        with observe_steps(elsewhere.append):
            engine.infer("target_pitch", {"EMBEDDING": np.ones((1, 4), np.float32)})

    with observe_steps(seen.append):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        engine.infer("voice_conversion", request(audio(1, 240)))
    models = [timing.model for timing in seen]
    assert models[0] == "pad_source"
    assert models[-1] == "trim_output"
    assert len(models) == 5
    assert [timing.model for timing in elsewhere] == ["target_pitch"]
    count = len(seen)
    engine.infer("target_pitch", {"EMBEDDING": np.ones((1, 4), np.float32)})
    assert len(seen) == count  # nobody listens after the block
    assert all(timing.seconds > 0 and timing.device == "cpu" for timing in seen)


def test_a_timeout_is_an_error_of_its_own(engine: LocalEngine) -> None:
    engine.infer("voice_conversion", request(audio(1, 240)), timeout=60.0)
    with pytest.raises(InferenceTimeoutError, match="raise timeout_seconds"):
        engine.infer("voice_conversion", request(audio(16, 240_000)), timeout=1e-6)


def test_a_time_limit_that_is_kept_costs_nothing_and_one_that_is_passed_stops_the_block() -> None:
    with time_limit(60.0, pytest.fail):
        pass
    with time_limit(None, pytest.fail):
        pass
    stopped = threading.Event()
    with pytest.raises(TimeoutError), time_limit(0.0, stopped.set):
        assert stopped.wait(10)


def test_cuda_is_refused_where_it_is_not_offered(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "available_devices", lambda: ["cpu"])
    for device in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match=f"'{device}' is not offered"):
            LocalEngine(ModelRepository(toy), device=device)
    assert LocalEngine(ModelRepository(toy), device="auto").device == "cpu"
    monkeypatch.setattr(session_module, "available_devices", lambda: ["cpu", "cuda"])
    assert LocalEngine(ModelRepository(toy), device="auto").device == "cuda"


@pytest.mark.parametrize(
    ("device", "providers"),
    [
        ("cpu", ["CPUExecutionProvider"]),
        ("cuda", [("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"]),
        ("cuda:1", [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]),
        ("cuda:12", [("CUDAExecutionProvider", {"device_id": 12}), "CPUExecutionProvider"]),
    ],
)
def test_a_device_is_a_provider_and_its_number(device: str, providers: list[object]) -> None:
    assert session_module.providers_for(device) == providers


@pytest.mark.filterwarnings("ignore")  # onnxruntime warns about the provider it lacks
def test_a_gpu_that_does_not_start_is_named(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime itself drops the provider, whatever its number."""
    if "cuda" in session_module.available_devices():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(DeviceError, match="could not start it on cuda:1"):
        session_module.OnnxSession(ModelRepository(toy).spec("delay"), "cuda:1", 1)


@pytest.mark.parametrize("device", ["cuda:x", "cuda:-1", "cuda:", "cuda:1.0", "gpu", "CUDA", "", None, 1])
def test_what_is_no_device_is_refused(toy: Path, device: object) -> None:
    with pytest.raises(ConfigurationError, match=f"device is {device!r}; use 'auto'"):
        LocalEngine(ModelRepository(toy), device=device)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "device", "says"),
    [
        (2, "cuda:2", "'cuda:2' is not there, but 'cuda:0', 'cuda:1'; use one of those"),
        (0, "cuda", "'cuda' is not there, but no GPU"),
        (2, "cuda:1", None),
        (1, "cuda", None),
        (None, "cuda:9", None),  # nobody tells: ONNX Runtime will
    ],
)
def test_a_gpu_has_to_be_there(
    monkeypatch: pytest.MonkeyPatch, count: int | None, device: str, says: str | None
) -> None:
    monkeypatch.setattr(session_module, "available_devices", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(session_module, "gpu_count", lambda: count)
    if says is None:
        assert session_module.resolve_device(device) == device
    else:
        with pytest.raises(DeviceError, match=says):
            session_module.resolve_device(device)
