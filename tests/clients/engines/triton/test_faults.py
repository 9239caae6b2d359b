"""Servers that die, hang and come back, and what their clients get."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import urllib3
from remote_calls import RATE, assert_same, hum, speaker, url

from autovoice import InferenceError, PassthroughWarning, PipelineConfig, VoiceConversionPipeline
from autovoice.errors import InferenceTimeoutError, SequenceError, UnavailableError
from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server

PATIENCE = 60.0  # never waited for when all is well
SOURCE = hum(0.4)


class Ward:
    """A server that tests kill and start again at the same address."""

    def __init__(self, start: Callable[..., TritonServer]) -> None:
        self._start = start
        self.server = start()
        self.revive()

    @property
    def pid(self) -> int:
        assert self.server.process is not None
        return self.server.process.pid

    @property
    def is_alive(self) -> bool:
        return self.server.process is not None and self.server.process.poll() is None

    def kill(self) -> None:
        if self.is_alive:
            os.kill(self.pid, signal.SIGKILL)
            self.server.wait()

    def kill_backend(self, model: str) -> None:
        """End the process that serves a model."""
        children = psutil.Process(self.pid).children(recursive=True)
        living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        (victim,) = [child for child in living if any(f"/{model}/" in part for part in child.cmdline())]
        victim.kill()

    def revive(self) -> None:
        if self.is_alive:
            return
        options = self.server.options
        self.server = self._start(http_port=options.http_port, grpc_port=options.grpc_port)
        self.server.start()
        self.server.wait_ready()


@pytest.fixture(scope="module")
def _ward(start: Callable[..., TritonServer]) -> Iterator[Ward]:
    ward = Ward(start)
    yield ward
    ward.kill()


@pytest.fixture
def ward(_ward: Ward) -> Ward:
    """Running, whatever the test before did to it."""
    _ward.revive()
    return _ward


def pipeline_over(ward: Ward, repository: Path, protocol: str, **options: object) -> VoiceConversionPipeline:
    backend = url(ward.server, protocol)
    return VoiceConversionPipeline(
        PipelineConfig(backend=backend, repository=repository, threads=1, **options)  # type: ignore[arg-type]
    )


@contextmanager
def hanging(ward: Ward) -> Iterator[None]:
    """The server stands still; its port still takes connections."""
    os.kill(ward.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(ward.pid, signal.SIGCONT)


def under_load(pipeline: VoiceConversionPipeline, strike: Callable[[], None]) -> list[tuple[int, object]]:
    """Convert from six threads, each its own voice, and `strike`; every result or error by voice."""
    outcomes: list[tuple[int, object]] = []
    struck = threading.Event()

    def call(number: int) -> None:
        calls_after = 0
        while calls_after < 2:
            calls_after += struck.is_set()
            try:
                outcomes.append((number, pipeline.convert(SOURCE, speaker(number), None, RATE)))
            except Exception as error:  # which one is what the tests look at
                outcomes.append((number, error))

    threads = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    while len(outcomes) < 12 and time.monotonic() < deadline:
        time.sleep(0.01)
    strike()
    struck.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a caller hangs"
    return outcomes


def test_killed_under_load_the_embedded_runtime_takes_over(
    ward: Ward, repository: Path, embedded: VoiceConversionPipeline
) -> None:
    with pipeline_over(ward, repository, "grpc", retries=1, retry_delay_seconds=0.01) as pipeline:
        outcomes = under_load(pipeline, ward.kill)
        stats = pipeline.stats
    expected = [embedded.convert(SOURCE, speaker(number), None, RATE) for number in range(6)]
    for number, made in outcomes:
        assert isinstance(made, np.ndarray), made
        assert_same(made, expected[number])
    assert stats.failed == 0
    assert stats.fallbacks >= 6
    assert stats.device_use.keys() == {"cpu", ward.server.options.grpc_url}


def test_killed_under_load_without_fallback_everyone_gets_one_typed_error(
    ward: Ward, repository: Path, embedded: VoiceConversionPipeline
) -> None:
    options = {"fallback": "raise", "retries": 1, "retry_delay_seconds": 0.01}
    with pipeline_over(ward, repository, "http", **options) as pipeline:
        outcomes = under_load(pipeline, ward.kill)
        assert pipeline.stats.fallbacks == 0
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1"):
            pipeline.convert(SOURCE, speaker(0), None, RATE)
    expected = [embedded.convert(SOURCE, speaker(number), None, RATE) for number in range(6)]
    for number, made in outcomes:
        if isinstance(made, np.ndarray):
            assert_same(made, expected[number])
        else:
            assert isinstance(made, UnavailableError), repr(made)
    assert sum(isinstance(made, UnavailableError) for _, made in outcomes) >= 6


@pytest.mark.parametrize(("protocol", "fallback"), [("grpc", "raise"), ("http", "cpu")])
def test_a_backend_process_killed_under_load_costs_no_one_a_right_answer(
    ward: Ward, repository: Path, embedded: VoiceConversionPipeline, protocol: str, fallback: str
) -> None:
    """The server stays and mends itself: everyone has his own audio, from here or there, or a typed error."""
    ward.kill()
    ward.revive()  # a server that nothing has befallen yet
    with pipeline_over(
        ward, repository, protocol, fallback=fallback, retries=1, timeout_seconds=30.0
    ) as pipeline:
        outcomes = under_load(pipeline, lambda: ward.kill_backend("synthesizer"))
        expected = [embedded.convert(SOURCE, speaker(number), None, RATE) for number in range(6)]
        failures = [made for _, made in outcomes if not isinstance(made, np.ndarray)]
        for number, made in outcomes:
            if isinstance(made, np.ndarray):
                assert_same(made, expected[number])
        assert all(isinstance(made, InferenceError) for made in failures), failures
        assert fallback == "raise" or not failures
        felt = pipeline.stats.retries + pipeline.stats.fallbacks + len(failures)
        assert felt > 0
        # Without a fallback, until the model is back.
        deadline = time.monotonic() + PATIENCE
        with pipeline_over(ward, repository, protocol, fallback="raise", retries=0) as alone:
            while True:
                try:
                    made = alone.convert(SOURCE, speaker(1), None, RATE)
                    break
                except InferenceError:
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
        assert_same(made, expected[1])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_stream_outlives_a_restart_of_its_server(
    ward: Ward, repository: Path, embedded: VoiceConversionPipeline, protocol: str
) -> None:
    """Its input so far fits `replay_seconds`, so not a sample differs from the stream that nothing befell."""
    source = hum(1.2)
    with pipeline_over(ward, repository, protocol, fallback="raise") as pipeline:
        stream = pipeline.stream(speaker(3))
        parts = [stream.push(piece) for piece in np.split(source[:14_400], 6)]
        ward.kill()
        ward.revive()
        parts += [stream.push(piece) for piece in np.split(source[14_400:], 6)]
        assert_same(
            np.concatenate([*parts, stream.flush()]),
            embedded.convert(source, speaker(3), None, RATE, input_gain_db=0.0),
        )
        assert pipeline.stats.lost_sequences == 1
        assert pipeline.stats.fallbacks == 0


def test_without_its_server_a_stream_goes_on_embedded(
    ward: Ward, repository: Path, embedded: VoiceConversionPipeline
) -> None:
    """So does the second half of a long conversion, from its start: whatever its length, it is exact."""
    source = hum(1.2)
    with pipeline_over(
        ward, repository, "grpc", block_seconds=0.3, retries=0, replay_seconds=0.3
    ) as pipeline:
        first_block = threading.Event()

        def kill_once(progress: object) -> None:
            if not first_block.is_set() and getattr(progress, "stage", "") == "voice_conversion_stream":
                first_block.set()
                ward.kill()

        with pipeline.stream(speaker(3)) as stream:
            parts = [stream.push(source[:4800])]  # less than `replay_seconds`
            made = pipeline.convert(source, speaker(2), None, RATE, progress_callback=kill_once)
            parts += [stream.push(source[4800:]), stream.flush()]
        assert first_block.is_set()
        assert_same(made, embedded.convert(source, speaker(2), None, RATE))
        assert_same(
            np.concatenate(parts), embedded.convert(source, speaker(3), None, RATE, input_gain_db=0.0)
        )
        assert pipeline.stats.fallbacks > 4
        assert "cpu" in pipeline.stats.device_use


def test_long_streams_go_on_in_voice_and_time(
    ward: Ward, repository: Path, embedded: VoiceConversionPipeline
) -> None:
    """Replaying a part restores what is heard but not the phase of the pulses: levels agree, samples not."""
    source = hum(3.0)
    expected = embedded.convert(source, speaker(3), None, RATE, input_gain_db=0.0)
    with pipeline_over(ward, repository, "grpc", retries=0, replay_seconds=1.0) as pipeline:
        stream = pipeline.stream(speaker(3))
        parts = [stream.push(piece) for piece in np.split(source[:48_000], 10)]
        ward.kill()
        made = np.concatenate([*parts, stream.push(source[48_000:]), stream.flush()])
    assert made.size == expected.size
    assert_same(made[:47_400], expected[:47_400])
    levels = [
        10 * np.log10(np.square(audio[47_400:].reshape(-1, 2460)).mean(axis=1)) for audio in (made, expected)
    ]
    np.testing.assert_allclose(levels[0], levels[1], atol=1.0)


def test_without_replay_a_lost_stream_is_one_clear_error(ward: Ward, repository: Path) -> None:
    with pipeline_over(ward, repository, "grpc", fallback="raise", replay_seconds=0.0) as pipeline:
        stream = pipeline.stream(speaker(0))
        stream.push(SOURCE)
        ward.kill()
        with pytest.raises(SequenceError, match=r"sequence \d+ is lost, start it again: grpc://"):
            stream.push(SOURCE)
        assert pipeline.stats.failed == 1


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_hangs_is_given_up_at_the_deadline(
    ward: Ward, repository: Path, embedded: VoiceConversionPipeline, protocol: str
) -> None:
    options = {"timeout_seconds": 3.0, "retries": 5}
    with (
        pipeline_over(ward, repository, protocol, fallback="raise", **options) as alone,
        pipeline_over(ward, repository, protocol, **options) as backed,
    ):
        with hanging(ward):
            with pytest.raises(InferenceTimeoutError, match="timeout_seconds"):
                alone.convert(SOURCE, speaker(0), None, RATE)
            made = backed.convert(SOURCE, speaker(0), None, RATE)
        assert_same(made, embedded.convert(SOURCE, speaker(0), None, RATE))
        assert backed.stats.fallbacks == 1
        # What was given up is not taken for the answer to what comes next.
        for number in range(1, 4):
            made = alone.convert(SOURCE, speaker(number), None, RATE)
            assert_same(made, embedded.convert(SOURCE, speaker(number), None, RATE))


def test_pass_through_is_flagged_in_place_of_a_server(ward: Ward, repository: Path) -> None:
    options = {"fallback": "passthrough", "timeout_seconds": 1.0}
    with (
        pipeline_over(ward, repository, "http", **options) as pipeline,
        hanging(ward),
        pytest.warns(PassthroughWarning, match="NOT converted"),
    ):
        assert pipeline.convert_detailed(SOURCE, speaker(0), None, RATE).passthrough


def test_nobody_there(tmp_path: Path, repository: Path, embedded: VoiceConversionPipeline) -> None:
    """Port 9 has no listener: without a fallback that is an error, with one the pipeline works."""
    config = {"backend": "grpc://127.0.0.1:9", "retries": 0}
    with pytest.raises(UnavailableError, match=r"grpc://127\.0\.0\.1:9, voice_conversion: .*; check that"):
        VoiceConversionPipeline(PipelineConfig(fallback="raise", **config))  # type: ignore[arg-type]
    with pytest.raises(InferenceError, match="and there is no fallback"):
        VoiceConversionPipeline(PipelineConfig(repository=tmp_path, **config))  # type: ignore[arg-type]
    with VoiceConversionPipeline(PipelineConfig(repository=repository, **config)) as pipeline:  # type: ignore[arg-type]
        made = pipeline.convert(SOURCE, speaker(0), None, RATE)
        assert_same(made, embedded.convert(SOURCE, speaker(0), None, RATE))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_model_that_was_unloaded_is_a_server_that_is_not_ready(
    ward: Ward, repository: Path, embedded: VoiceConversionPipeline, protocol: str
) -> None:
    """As models are while a server ends: clients without a fallback may try again, the others go on here."""
    voice = speaker(7)
    expected = embedded.convert(SOURCE, voice, source_sample_rate=RATE)

    def control(verb: str) -> None:
        address = f"{ward.server.options.http_url}/v2/repository/models/voice_conversion/{verb}"
        assert urllib3.request("POST", address, body=b"{}").status == 200

    with (
        pipeline_over(ward, repository, protocol, fallback="raise", retries=0) as strict,
        pipeline_over(ward, repository, protocol, retries=0) as falling_back,
    ):
        for pipeline in (strict, falling_back):
            assert_same(pipeline.convert(SOURCE, voice, source_sample_rate=RATE), expected)
        control("unload")
        try:
            with pytest.raises(UnavailableError, match="no available versions"):
                strict.convert(SOURCE, voice, source_sample_rate=RATE)
            assert_same(falling_back.convert(SOURCE, voice, source_sample_rate=RATE), expected)
            assert falling_back.stats.fallbacks == 1
        finally:
            control("load")
        assert_same(strict.convert(SOURCE, voice, source_sample_rate=RATE), expected)
