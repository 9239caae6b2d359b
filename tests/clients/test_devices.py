"""Several devices: who does what, that the samples are those of one, and what happens when one fails.

The devices are engines of their own on the CPU, over the real models and over the toy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autovoice import InferenceError, PipelineConfig, VoiceConversionPipeline, read_audio, write_audio
from autovoice.cli.main import run
from autovoice.conversion import StageTimer
from autovoice.engines import opening
from autovoice.engines.engine import StepTiming, observe_steps, report_step
from autovoice.engines.gpus import gpu_count
from autovoice.engines.local import LocalEngine, SequenceStore
from autovoice.engines.onnx_session import available_devices
from autovoice.errors import ConfigurationError, DeviceError
from autovoice.repository.reader import ModelRepository

ROOT = Path(__file__).resolve().parents[2]
SOURCE, TARGET = ROOT / "demo" / "source_rms.flac", ROOT / "demo" / "target_slt.flac"
RATE = 24_000


class Device(LocalEngine):
    """An engine that counts its requests and fails on those that `fails` picks by number, from 1 on.

    It says of what it ran that it was on the device `name`.
    """

    name = "cuda"
    requests = 0
    fails: Callable[[int], bool] = staticmethod(lambda number: False)
    begun: Callable[[], object] = staticmethod(lambda: None)

    def infer(self, *args: Any, **options: Any) -> Any:
        self.requests += 1
        self.begun()
        if self.fails(self.requests):
            raise DeviceError("fell off the bus")
        timings: list[StepTiming] = []
        with observe_steps(timings.append):
            outputs = super().infer(*args, **options)
        for timing in timings:
            report_step(replace(timing, device=self.name))
        return outputs


def devices(repository: Path, count: int) -> list[Device]:
    models, sequences = ModelRepository(repository), SequenceStore()
    made = [Device(models, device="cpu", sequences=sequences) for _ in range(count)]
    for number, device in enumerate(made):
        device.name = f"cuda:{number}"
    return made


def meet(engines: list[Device]) -> None:
    """Has every engine wait in its first request until all have one."""
    meeting = threading.Barrier(len(engines), timeout=60)
    for engine in engines:
        engine.begun = lambda engine=engine: engine.requests == 1 and meeting.wait()


def pipeline_over(engines: list[Device], **config: Any) -> VoiceConversionPipeline:
    return VoiceConversionPipeline(
        PipelineConfig(**{"block_seconds": 1.0, "retry_delay_seconds": 0.0, **config}), engine=engines
    )


def noise(samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def test_the_real_voice_on_two_devices_gives_the_samples_of_one(repository: Path) -> None:
    audio, rate = read_audio(SOURCE)
    sources = [audio[start : start + size] for start, size in ((0, 16000), (9000, 30001), (20000, 8000))]
    one, two = devices(repository, 1), devices(repository, 2)
    meet(two)
    with pipeline_over(one) as alone, pipeline_over(two) as shared:
        voice = alone.embed_file(TARGET)
        options: Any = {"source_sample_rates": rate, "pitch_shift_semitones": "auto"}
        expected = alone.batch_convert(sources, voice, **options)
        made = shared.batch_convert(sources, voice, **options)
    use = shared.stats.device_use
    assert use.keys() <= {"cuda:0", "cuda:1"}
    assert sum(use.values()) == len(sources)
    for have, want in zip(made, expected, strict=True):
        np.testing.assert_array_equal(have, want)


@pytest.mark.gpu
@pytest.mark.skipif((gpu_count() or 0) < 2, reason="there are not two NVIDIA GPUs here")
@pytest.mark.skipif("cuda" not in available_devices(), reason="this ONNX Runtime has no CUDA")
def test_two_gpus_give_the_samples_of_one(repository: Path) -> None:
    audio, rate = read_audio(SOURCE)
    sources = [audio[:16000], audio[9000:39000], audio[20000:28000]]
    made = []
    for device in ("cuda:0", "cuda:1", "cuda:0,cuda:1"):
        with VoiceConversionPipeline(
            PipelineConfig(repository=repository, device=device, fallback="raise")
        ) as pipeline:
            voice = pipeline.embed_file(TARGET)
            made.append(np.concatenate(pipeline.batch_convert(sources, voice, source_sample_rates=rate)))
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(240, 60_000), min_size=1, max_size=12),
    count=st.integers(2, 4),
    failing=st.sets(st.integers(0, 3)),
    healthy_requests=st.integers(0, 4),
)
def test_any_batch_on_any_devices_gives_the_samples_of_one(
    toy: Path, voice: np.ndarray, lengths: list[int], count: int, failing: set[int], healthy_requests: int
) -> None:
    """Devices that fail sooner or later change nothing, in the middle of long sources either, while one
    lasts."""
    sources = [noise(length, seed) for seed, length in enumerate(lengths)]
    expected = pipeline_over(devices(toy, 1)).batch_convert(sources, voice, source_sample_rates=RATE)
    engines = devices(toy, count)
    for number in failing & set(range(1, count)):
        engines[number].fails = lambda request: request > healthy_requests
    pipeline = pipeline_over(engines, fallback="raise")
    made = pipeline.batch_convert(sources, voice, source_sample_rates=RATE)
    for have, want in zip(made, expected, strict=True):
        np.testing.assert_array_equal(have, want)
    assert sum(pipeline.stats.device_use.values()) == len(sources)


def test_each_source_of_a_batch_counts_for_the_device_that_converted_it(toy: Path, voice: np.ndarray) -> None:
    """Sources too different to share a request: the devices wait for each other at their first ones."""
    engines = devices(toy, 2)
    meet(engines)
    pipeline = pipeline_over(engines)
    pipeline.batch_convert([noise(2000, 0), noise(20_000, 1)], voice, source_sample_rates=RATE)
    assert pipeline.stats.device_use == {"cuda:0": 1, "cuda:1": 1}


def test_a_device_that_fails_is_left_alone_and_the_others_go_on(toy: Path, voice: np.ndarray) -> None:
    engines = devices(toy, 2)
    engines[0].fails = lambda request: request > 2
    pipeline = pipeline_over(engines)
    source = noise(5 * RATE, 0)
    made = pipeline.convert(source, voice, None, RATE)  # five blocks of one sequence, and its end
    np.testing.assert_array_equal(made, pipeline_over(devices(toy, 1)).convert(source, voice, None, RATE))
    assert [engine.requests for engine in engines] == [3, 4]
    assert pipeline.stats.fallbacks == 4


def test_when_all_devices_fail_the_conversion_does(toy: Path, voice: np.ndarray) -> None:
    engines = devices(toy, 3)
    for engine in engines:
        engine.fails = lambda request: True
    pipeline = pipeline_over(engines)
    with pytest.raises(InferenceError, match="fell off the bus"):
        pipeline.batch_convert([noise(500, 0)] * 4, voice, source_sample_rates=RATE)
    assert all(engine.requests for engine in engines)
    assert pipeline.stats.failed == 4


def test_conversions_at_the_same_time_are_on_different_devices(toy: Path, voice: np.ndarray) -> None:
    engines = devices(toy, 3)
    meeting = threading.Barrier(3, timeout=60)
    for engine in engines:
        engine.begun = meeting.wait  # each of three conversions waits for the other two
    pipeline = pipeline_over(engines)
    with ThreadPoolExecutor(3) as threads:
        for future in [threads.submit(pipeline.convert, noise(480, 0), voice, None, RATE) for _ in range(3)]:
            future.result()
    assert len({engine.requests for engine in engines}) == 1


def test_single_conversions_and_streams_use_the_first(toy: Path, voice: np.ndarray) -> None:
    engines = devices(toy, 2)
    pipeline = pipeline_over(engines)
    for _ in range(2):
        pipeline.convert(noise(480, 0), voice, None, RATE)
    with pipeline.stream(voice) as first, pipeline.stream(voice) as second:
        first.push(noise(480, 1))
        second.push(noise(480, 1))
    assert engines[0].requests > 0
    assert engines[1].requests == 0


def test_what_the_progress_callback_raises_ends_a_shared_batch(toy: Path, voice: np.ndarray) -> None:
    seen = []

    def stop(progress: Any) -> None:
        seen.append(progress.fraction)
        time.sleep(0.05)  # others end meanwhile, and the rest is not begun
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        pipeline_over(devices(toy, 2)).batch_convert(
            [noise(480, 0)] * 50, voice, source_sample_rates=RATE, progress_callback=stop
        )
    assert len(seen) < 50


def test_time_in_a_model_is_taken_from_the_stage_of_its_own_thread_alone() -> None:
    timer = StageTimer("cpu")
    with timer.stage("mine"), ThreadPoolExecutor(1) as other:
        other.submit(timer.on_step, StepTiming("theirs", 3600.0, "cuda:1")).result()
    with timer.stage("whole"):
        timer.on_step(StepTiming("part", 3600.0, "cuda:0"))
    assert timer.stages["mine"] >= 0.0 > timer.stages["whole"]


def test_progress_of_a_shared_batch_never_goes_back(toy: Path, voice: np.ndarray) -> None:
    fractions: list[float] = []
    pipeline = pipeline_over(devices(toy, 2))
    pipeline.batch_convert(
        [noise(30_000 + 500 * number, number) for number in range(12)],
        voice,
        source_sample_rates=16_000,
        progress_callback=lambda progress: fractions.append(progress.fraction),
    )
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, Device]:
    """Engines of the CPU that are opened as GPUs 0 and 1, by their names; another GPU is not there."""
    made: dict[str, Device] = {}

    def make(repository: ModelRepository, *, device: str, **options: Any) -> Device:
        if device not in ("cuda:0", "cuda:1", "cpu"):
            raise DeviceError(f"{device} is not there")
        made[device] = Device(repository, device="cpu", **options)
        made[device].name = device
        return made[device]

    monkeypatch.setattr(opening, "LocalEngine", make)
    return made


@pytest.mark.parametrize("device", ["cuda:0,cuda:1", ("cuda:0", "cuda:1"), ["cuda:0", "cuda:1"]])
def test_a_device_is_opened_for_each_name(
    toy: Path, voice: np.ndarray, gpus: dict[str, Device], device: Any
) -> None:
    with VoiceConversionPipeline(PipelineConfig(repository=toy, device=device)) as pipeline:
        assert list(gpus) == ["cuda:0", "cuda:1"]
        pipeline.convert(noise(480, 0), voice, None, RATE)
    assert [engine.requests > 0 for engine in gpus.values()] == [True, False]


def test_a_device_that_is_not_there_leaves_the_others(
    toy: Path, gpus: dict[str, Device], caplog: pytest.LogCaptureFixture
) -> None:
    config = PipelineConfig(repository=toy, device="cuda:7,cuda:1")
    assert VoiceConversionPipeline(config).stats.fallbacks == 1
    assert list(gpus) == ["cuda:1"]
    assert "going on without it: cuda:7 is not there" in caplog.text
    VoiceConversionPipeline(PipelineConfig(repository=toy, device="cuda:7,cuda:8"))
    assert list(gpus) == ["cuda:1", "cpu"]
    with pytest.raises(DeviceError, match="cuda:7"):
        VoiceConversionPipeline(PipelineConfig(repository=toy, device="cuda:1,cuda:7", fallback="raise"))


def test_files_of_a_folder_are_shared_by_the_devices(
    toy: Path, voice: np.ndarray, gpus: dict[str, Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `--jobs`: every device waits in its first request until the other has one, too."""
    (tmp_path / "in").mkdir()
    for number in range(6):
        write_audio(tmp_path / "in" / f"{number}.wav", noise(4000, number), 8000)
    np.save(tmp_path / "voice.npy", voice)
    command = ["convert", str(tmp_path / "in"), "--target", str(tmp_path / "voice.npy")]
    command += ["--repository", str(toy), "--json"]
    assert run([*command, "-o", str(tmp_path / "one"), "--device", "cuda:0"]) == 0
    gpus.clear()
    meeting = threading.Barrier(2, timeout=60)
    monkeypatch.setattr(Device, "begun", lambda self: self.requests == 1 and meeting.wait())
    assert run([*command, "-o", str(tmp_path / "two"), "--device", "cuda:0, cuda:1"]) == 0
    assert all(gpus[name].requests for name in ("cuda:0", "cuda:1"))
    for made in (tmp_path / "one").iterdir():
        np.testing.assert_array_equal(read_audio(made)[0], read_audio(tmp_path / "two" / made.name)[0])


@pytest.mark.parametrize(
    "device",
    [
        "cuda:0,cuda:0",
        "cuda:1,cuda:01",
        "cpu,cpu",
        "cpu,cuda:0",
        "cuda,cuda:1",
        "auto,cuda:1",
        "cuda:0,rtx:1",
        "cuda:0,",
        ("cuda:0", 1),
        ("cuda:0", "cuda:0"),
        (),
    ],
)
def test_devices_that_cannot_share_work_are_refused(device: Any) -> None:
    with pytest.raises(ConfigurationError, match="device is"):
        PipelineConfig(device=device)
