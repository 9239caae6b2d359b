"""Clients of a service whose server is ended by a request and started again."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import urllib3
from remote_calls import RATE, assert_same, hum, speaker
from serve_processes import end, serve
from tritonclient.utils import InferenceServerException

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.errors import SequenceError, UnavailableError

pytestmark = pytest.mark.server
SOURCE = hum(0.4)
CALLERS = 4
TENSOR = {"name": "REFERENCE_AUDIO", "datatype": "FP32", "shape": [1, 2**62], "data": [0.0]}
DEADLY = json.dumps({"inputs": [TENSOR]}).encode()


class Service:
    """A running `autovoice serve`."""

    def __init__(self, repository: Path, environment: dict[str, str]) -> None:
        self.process = serve(repository, environment)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait for the next line that says so."""
        assert self.process.stdout is not None
        _, self.grpc, self.http = next(line for line in self.process.stdout if "ready:" in line).split()

    def url(self, protocol: str) -> str:
        return self.grpc if protocol == "grpc" else self.http

    def crash(self) -> None:
        """Send a request that ends the server."""
        path = f"{self.http}/v2/models/speaker_encoder/infer"
        with pytest.raises(urllib3.exceptions.ProtocolError):
            urllib3.request("POST", path, body=DEADLY, retries=False, timeout=30)


@pytest.fixture
def service(cache: Path, repository: Path) -> Iterator[Service]:
    running = Service(repository, {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"})
    yield running
    with suppress(subprocess.TimeoutExpired):
        end(running.process)
    running.process.kill()


@pytest.fixture
def open_pipeline(service: Service, repository: Path) -> Callable[..., VoiceConversionPipeline]:
    def connect(protocol: str, **options: object) -> VoiceConversionPipeline:
        settings = {"backend": service.url(protocol), "repository": repository, "fallback": "raise"}
        return VoiceConversionPipeline(PipelineConfig(**(settings | options)))  # type: ignore[arg-type]

    return connect


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_clients_with_retries_are_served_after_the_restart(
    service: Service,
    open_pipeline: Callable[..., VoiceConversionPipeline],
    embedded: VoiceConversionPipeline,
    protocol: str,
) -> None:
    """Requests in flight, and those that come while nobody listens."""
    expected = [embedded.convert(SOURCE, speaker(number), None, RATE) for number in range(CALLERS)]
    outcomes: list[tuple[int, object]] = []
    restarted = threading.Event()
    with open_pipeline(protocol, retries=50, retry_delay_seconds=0.2) as pipeline:

        def call(number: int) -> None:
            calls_after = 0
            while calls_after < 2:
                calls_after += restarted.is_set()
                try:
                    outcomes.append((number, pipeline.convert(SOURCE, speaker(number), None, RATE)))
                except Exception as error:  # which none should be
                    outcomes.append((number, error))

        callers = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(CALLERS)]
        for caller in callers:
            caller.start()
        while len(outcomes) < CALLERS:
            restarted.wait(0.01)
        service.crash()
        service.wait_ready()
        restarted.set()
        for caller in callers:
            caller.join(60)
        assert not any(caller.is_alive() for caller in callers), "a caller hangs"
        assert pipeline.stats.retries >= CALLERS
    for number, made in outcomes:
        assert isinstance(made, np.ndarray), made
        assert_same(made, expected[number])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_client_without_retries_is_told_to_send_it_again(
    service: Service, open_pipeline: Callable[..., VoiceConversionPipeline], protocol: str
) -> None:
    with open_pipeline(protocol, retries=0) as pipeline:
        before = pipeline.convert(SOURCE, speaker(0), None, RATE)
        service.crash()
        with pytest.raises(UnavailableError, match="send the request again in a moment") as failure:
            pipeline.convert(SOURCE, speaker(0), None, RATE)
        assert failure.value.transient
        assert service.url(protocol) in str(failure.value)
        service.wait_ready()
        retrying = open_pipeline(protocol, retries=20)
        assert_same(retrying.convert(SOURCE, speaker(0), None, RATE), before)
        retrying.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_stream_is_told_that_it_is_lost(
    service: Service, open_pipeline: Callable[..., VoiceConversionPipeline], protocol: str
) -> None:
    """Also one that sends nothing until the next server is ready."""
    with open_pipeline(protocol, replay_seconds=0.0, retries=0) as pipeline:
        stream, idle = (pipeline.stream(speaker(0)) for _ in range(2))
        for each in (stream, idle):
            each.push(SOURCE[:4800])
        service.crash()
        with pytest.raises(SequenceError, match=r"sequence \d+ is lost, start it again: "):
            stream.push(SOURCE[:4800])
        service.wait_ready()
        with pytest.raises(SequenceError, match=r"sequence \d+ is lost, start it again: "):
            idle.push(SOURCE[:4800])


def test_sequence_of_another_client_is_told_to_start(service: Service) -> None:
    def send(**position: object) -> None:
        feeds = {
            "SOURCE_AUDIO": SOURCE[None, :480],
            "TARGET_EMBEDDING": speaker(0)[None],
            "PITCH_SHIFT": np.zeros((1, 1), np.float32),
        }
        inputs = []
        for name, value in feeds.items():
            inputs.append(tritonclient.grpc.InferInput(name, value.shape, "FP32"))
            inputs[-1].set_data_from_numpy(value)
        client.infer("voice_conversion_stream", inputs, sequence_id=4711, **position)

    with tritonclient.grpc.InferenceServerClient(service.grpc.partition("://")[2]) as client:
        send(sequence_start=True)
        service.crash()
        service.wait_ready()
        for _ in range(50):
            with pytest.raises(InferenceServerException) as failure:
                send()
            if failure.value.status() != "StatusCode.UNAVAILABLE":  # until the connection is made anew
                break
        assert "must specify the START flag" in str(failure.value)
