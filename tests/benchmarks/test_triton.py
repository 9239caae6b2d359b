"""What the benchmark of the server derives: files for perf_analyzer, figures, tables, paced streams."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_streams import LiveLoad, chunk_requests, play
from perf_analyzer import Load, PerfAnalyzerError, read_figures, write_requests, write_sequences
from served import foreign_seconds, group_seconds, stage_rows
from triton_live import live_row, streams_held
from tritonclient.grpc import service_pb2, service_pb2_grpc

FIGURES = """Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency,p95 latency,p99 latency
4,198.452,8,9576,14336,15767,18695
"""


def test_figures_are_those_of_the_table() -> None:
    made = read_figures(FIGURES)
    assert (made.requests_per_s, made.p50_ms, made.p95_ms, made.p99_ms) == (198.452, 9.576, 15.767, 18.695)


@pytest.mark.parametrize(
    "text",
    ["", FIGURES + "8,1,1,1,1,1,1\n", FIGURES.replace("p99", "p98"), FIGURES.replace("18695", "")],
)
def test_other_tables_are_refused(text: str) -> None:
    with pytest.raises(PerfAnalyzerError):
        read_figures(text)


def test_loads_as_options() -> None:
    assert Load("concurrency", 8).arguments() == ["--concurrency-range", "8"]
    assert "poisson" in Load("rate", 12.5).arguments()
    paced = Load("rate", 400, 8).arguments()
    assert {"--serial-sequences", "constant", "400", "8"} <= set(paced)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_input_files_hold_the_audio(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    file = tmp_path_factory.mktemp("perf") / "inputs.json"
    requests = [
        {"A": np.arange(length, dtype=np.float32) / 7, "B": np.ones(1, np.float32)} for length in lengths
    ]
    write_requests(file, requests)
    single = json.loads(file.read_text())["data"]
    write_sequences(file, [requests, requests[:1]])
    first, second = json.loads(file.read_text())["data"]
    assert (first, second) == (single, single[:1])
    for written, request in zip(single, requests, strict=True):
        for name, value in request.items():
            content = np.frombuffer(base64.b64decode(written[name]["content"]["b64"]), "<f4")
            np.testing.assert_array_equal(content, value)
            assert written[name]["shape"] == [value.size]


def entry(requests: int, milliseconds: float, executions: int) -> dict[str, Any]:
    spent = {"count": requests, "ns": round(requests * milliseconds * 1e6)}
    parts = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    return {
        "inference_count": requests,
        "execution_count": executions,
        "inference_stats": {**dict.fromkeys(parts, spent), "fail": {"count": 0, "ns": 0}},
    }


def test_stages_are_what_happened_in_between() -> None:
    before = {"all": entry(10, 9.0, 10), "first": entry(10, 5.0, 10), "idle": entry(3, 1.0, 3)}
    after = {"all": entry(30, 5.0, 30), "first": entry(30, 3.0, 20), "idle": entry(3, 1.0, 3)}
    whole, first = stage_rows(before, after, ["all", "first", "idle"])
    assert (whole["model"], whole["requests"], whole["total_ms"]) == ("all", 20, 3.0)
    assert whole["batch"] is None
    assert whole["queue_ms"] is None
    assert (first["batch"], first["queue_ms"], first["compute_infer_ms"]) == (2.0, 2.0, 2.0)


def test_a_count_holds_while_its_p99_is_below_the_chunk() -> None:
    stages = [{"total_ms": 5.0, "batch": None}, {"total_ms": 5.0, "batch": 1.5}]

    def row(streams: int, late: int, failures: int = 0) -> dict[str, Any]:
        latencies = np.full(1000, 0.010)
        latencies[:late] = 0.050
        return live_row(streams, latencies, np.zeros(1000), failures, stages)

    assert (row(4, 5)["p50_ms"], row(4, 5)["late_percent"], row(4, 5)["batch"]) == (10.0, 0.5, 1.5)
    assert [row(4, 5)["holds"], row(4, 20)["holds"], row(4, 0, failures=1)["holds"]] == [True, False, False]
    assert streams_held([row(4, 5), row(8, 20), row(12, 5), row(16, 20)]) == 12
    assert streams_held([row(1, 50)]) == 0


def test_a_sequence_is_all_of_its_audio_in_order() -> None:
    audio = np.arange(1000, dtype=np.float32)
    requests = chunk_requests(audio, 300, {"PITCH_SHIFT": np.zeros((1, 1), np.float32)}, 7)
    sent = np.concatenate([np.frombuffer(request.raw_input_contents[0], "<f4") for request in requests])
    np.testing.assert_array_equal(sent, audio[:900])
    flags = [
        (r.parameters["sequence_start"].bool_param, r.parameters["sequence_end"].bool_param) for r in requests
    ]
    assert flags == [(True, False), (False, False), (False, True)]
    assert {request.parameters["sequence_id"].int64_param for request in requests} == {7}


class Answering(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers chunks at once but for one, which takes a while; refuses a stream that it is told to."""

    def __init__(self, slow_chunk: int, seconds: float, refused: int | None = None) -> None:
        self.slow_chunk, self.seconds, self.refused = slow_chunk, seconds, refused
        self.chunks: dict[int, int] = {}

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        stream = request.parameters["sequence_id"].int64_param
        position = self.chunks[stream] = self.chunks.get(stream, -1) + 1
        if len(self.chunks) == self.refused:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not this one")
        if position == self.slow_chunk:
            await asyncio.sleep(self.seconds)
        return service_pb2.ModelInferResponse()


@contextmanager
def answering(servicer: Answering) -> Iterator[str]:
    """A server of our own in a thread; gives its address."""
    ready, port = threading.Event(), 0
    loop = asyncio.new_event_loop()
    done: asyncio.Event = asyncio.Event()

    async def serve() -> None:
        nonlocal port
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ready.set()
        await done.wait()
        await server.stop(None)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait(30)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(30)
        loop.close()


SOURCE = np.zeros(24_000, np.float32)
VOICE = {"PITCH_SHIFT": np.zeros((1, 1), np.float32)}


def test_a_chunk_that_waits_for_the_one_before_is_late() -> None:
    """Ten chunks were heard while the server held one: each is later than its own request took."""
    load = LiveLoad(streams=1, chunk_s=0.02, seconds=1.0, warmup_s=0.0)
    with answering(Answering(slow_chunk=20, seconds=0.2)) as address:
        result = play(address, load, SOURCE, 24_000, VOICE)
    assert result.latencies_s.size == 50
    assert result.latencies_s[20] >= 0.2
    for waited in range(1, 9):
        assert result.lateness_s[20 + waited] >= 0.2 - 0.02 * waited - 1e-3
        assert result.latencies_s[20 + waited] > result.lateness_s[20 + waited]
    assert result.failures == 0


def test_no_chunk_is_sent_before_it_was_heard_and_warm_up_is_not_counted() -> None:
    load = LiveLoad(streams=3, chunk_s=0.02, seconds=0.4, warmup_s=0.2)
    with answering(Answering(slow_chunk=-1, seconds=0.0)) as address:
        result = play(address, load, SOURCE, 24_000, VOICE)
    assert result.latencies_s.size == 30
    assert (result.lateness_s >= 0).all()


def test_a_stream_that_fails_is_counted_and_the_others_go_on() -> None:
    load = LiveLoad(streams=3, chunk_s=0.02, seconds=0.2, warmup_s=0.0)
    servicer = Answering(slow_chunk=-1, seconds=0.0, refused=3)
    with answering(servicer) as address:
        result = play(address, load, SOURCE, 24_000, VOICE)
    assert result.failures >= 1
    assert "not this one" in result.error


def test_the_servers_own_work_is_not_that_of_others() -> None:
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ntime.sleep(60)"
    command = [sys.executable, "-c", burn]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        without_it = foreign_seconds(child.pid)
        with_it = foreign_seconds(-1)
        its_own = group_seconds(child.pid)
        child.kill()
    assert with_it - without_it >= 0.45
    assert 0.45 <= its_own < 5.0
