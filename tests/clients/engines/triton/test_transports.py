"""What clients make of answers that no well-behaved server gives, and the mapping to tensors itself."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from autovoice import InferenceError
from autovoice.address import parse_address
from autovoice.config import PipelineConfig
from autovoice.engines.engine import Sequence
from autovoice.engines.opening import connect
from autovoice.engines.resilient import CircuitBreaker
from autovoice.engines.triton.engine import TritonEngine
from autovoice.engines.triton.wire import WireRequest, WireResponse, decode, encode
from autovoice.errors import InferenceTimeoutError, RequestError, SequenceError, UnavailableError

INPUTS = {"AUDIO": np.zeros((1, 240), np.float32)}
DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", ">f4", ">i8"]


@given(
    arrays.arrays(
        st.sampled_from(DTYPES).map(np.dtype),
        arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
    ),
    st.booleans(),
)
def test_tensors_survive_the_wire(values: np.ndarray, transposed: bool) -> None:
    """Any type, byte order, shape and layout; what arrives is its receiver's own."""
    sent = values.T if transposed else values
    request = encode("model", "7", {"X": sent}, None)
    tensors = tuple(type(t)(t.name, t.datatype, t.shape, bytes(t.data)) for t in request.tensors)
    received = decode(request, WireResponse("7", tensors))["X"]
    np.testing.assert_array_equal(received, sent)
    assert received.dtype == sent.dtype.newbyteorder("=")
    assert received.flags.writeable


class Answering:
    """A transport that answers everything with what it is told."""

    def __init__(self, answer: Callable[[WireRequest], WireResponse]) -> None:
        self._answer = answer

    def infer(self, request: WireRequest, timeout: float | None) -> WireResponse:
        return self._answer(request)

    def model_config(self, model: str, timeout: float | None) -> Any:
        raise NotImplementedError

    def close(self) -> None: ...


def test_the_answer_to_another_request_is_no_answer() -> None:
    transport = Answering(lambda request: WireResponse("someone else's", request.tensors))
    engine = TritonEngine(parse_address("grpc://here"), transport)
    with pytest.raises(InferenceError, match="came back for"):
        engine.infer("model", INPUTS)
    with pytest.raises(SequenceError, match="start it again"):
        engine.infer("model", INPUTS, sequence=Sequence(5))


def test_an_answer_cut_short_is_no_answer() -> None:
    def cut(request: WireRequest) -> WireResponse:
        (tensor,) = request.tensors
        return WireResponse(request.id, (type(tensor)("Y", "FP32", (1, 241), tensor.data),))

    engine = TritonEngine(parse_address("grpc://here"), Answering(cut))
    with pytest.raises(InferenceError, match=r"output Y is 960 bytes of FP32 \[1, 241\]"):
        engine.infer("model", INPUTS)


@contextmanager
def http_server(respond: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[TritonEngine]:
    """An engine over a server that reads requests and answers them with `respond`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            respond(self)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    engine = connect(PipelineConfig(backend=f"http://127.0.0.1:{server.server_port}"))
    try:
        yield engine
    finally:
        engine.close()
        server.shutdown()
        server.server_close()


def send(status: int, body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return respond


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@pytest.mark.parametrize(
    ("respond", "error", "transient"),
    [
        (send(400, b'{"error": "unexpected shape"}'), RequestError, False),
        (send(503, b'{"error": "not ready"}'), UnavailableError, True),
        (send(500, b"<html>"), InferenceError, True),
        (send(200, b"not JSON"), InferenceError, True),
        (send(200, b'{"outputs": [{}]}'), InferenceError, True),
        (hang_up, UnavailableError, True),
    ],
)
def test_failures_are_typed(
    respond: Callable[[BaseHTTPRequestHandler], None], error: type[InferenceError], transient: bool
) -> None:
    with http_server(respond) as engine, pytest.raises(error) as failure:
        engine.infer("model", INPUTS, timeout=0.3)
    assert type(failure.value) is error
    assert failure.value.transient is transient
    assert "http://127.0.0.1" in str(failure.value)


def test_the_deadline_is_that_of_the_whole_answer() -> None:
    """Every byte comes in time, the answer as a whole does not: the client leaves in its middle."""
    left = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "200")
        handler.end_headers()
        try:
            for _ in range(200):
                handler.wfile.write(b"{")
                time.sleep(0.02)
        except OSError:
            left.set()

    with http_server(drip) as engine, pytest.raises(InferenceTimeoutError, match="timeout_seconds"):
        engine.infer("model", INPUTS, timeout=0.3)
    assert left.wait(10)


def test_a_breaker_lets_one_caller_try_after_each_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    breaker = CircuitBreaker(threshold=2, rest_seconds=5.0)
    breaker.failed()
    assert breaker.admit()
    breaker.succeeded()
    breaker.failed()
    assert breaker.admit()  # it takes two in a row
    breaker.failed()
    assert breaker.is_open
    assert not breaker.admit()
    now += 5.0
    assert [breaker.admit() for _ in range(3)] == [True, False, False]
    breaker.failed()
    now += 4.9
    assert not breaker.admit()
    now += 0.1
    assert breaker.admit()
    breaker.succeeded()
    assert [breaker.admit() for _ in range(3)] == [True, True, True]


def test_the_embedded_runtime_does_not_load_a_client() -> None:
    """gRPC and gevent would double the time to the first conversion."""
    code = (
        "import sys, autovoice, autovoice.engines.opening; "
        "print([m for m in ('grpc', 'gevent', 'asyncio', 'http.client') if m in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"
