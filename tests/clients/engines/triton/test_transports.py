"""What clients make of answers that no well-behaved server gives, and the mapping to tensors itself."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
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
from autovoice.engines.resilient import CircuitBreaker, ResilientEngine
from autovoice.engines.triton.engine import TritonEngine
from autovoice.engines.triton.wire import WireRequest, WireResponse, decode, encode
from autovoice.errors import (
    ConfigurationError,
    InferenceTimeoutError,
    RequestError,
    SequenceError,
    StreamClosedError,
    UnavailableError,
)
from autovoice.results import StatsCounter

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
def http_server(
    respond: Callable[[BaseHTTPRequestHandler], None],
    *,
    host: str = "127.0.0.1",
    context: ssl.SSLContext | None = None,
    **options: Any,
) -> Iterator[TritonEngine]:
    """An engine over a server that reads requests and answers them with `respond`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.body = self.rfile.read(int(self.headers["Content-Length"]))
            respond(self)

        def log_message(self, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        request_queue_size = 128  # of five, a hundred connections at once reset some

    server = Server((host, 0), Handler)
    scheme = "http"
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    authority = f"[{host}]" if ":" in host else host
    engine = connect(PipelineConfig(backend=f"{scheme}://{authority}:{server.server_port}", **options))
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


def test_a_refused_connection_says_so() -> None:
    """Port 9 has no listener. urllib3 counts that among its time-outs; here it is none."""
    engine = connect(PipelineConfig(backend="http://127.0.0.1:9"))
    with pytest.raises(
        UnavailableError, match=r"model, request \w+: \[Errno \d+\] Connection refused; check"
    ):
        engine.infer("model", INPUTS, timeout=60.0)


def drip(handler: BaseHTTPRequestHandler, head: bytes, drop: bytes, left: threading.Event) -> None:
    """Send `head`, then `drop` after `drop`, each in time, for ten seconds or until the client leaves."""
    handler.close_connection = True
    try:
        handler.wfile.write(head)
        for _ in range(500):
            handler.wfile.write(drop)
            time.sleep(0.02)
    except OSError:
        left.set()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\nX-Header: ", b"a"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"{"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"{"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n"),
    ],
    ids=["silence", "headers", "body", "body without length", "chunks"],
)
def test_the_deadline_is_that_of_the_whole_answer(
    head: bytes, drop: bytes, tls: bool, certificate: Path
) -> None:
    """Every byte comes in time, the answer as a whole does not: the client leaves in its middle."""
    left, gone = threading.Event(), threading.Event()

    def respond(handler: BaseHTTPRequestHandler) -> None:
        if drop:
            drip(handler, head, drop, left)
        else:
            gone.wait(10)
            left.set()

    options = tls_options(certificate) if tls else {}
    with http_server(respond, **options) as engine:
        with pytest.raises(InferenceTimeoutError, match="no answer in time; raise timeout_seconds"):
            engine.infer("model", INPUTS, timeout=0.3)
        gone.set()
        assert left.wait(10)


def test_the_deadline_holds_while_the_request_is_sent() -> None:
    """The listener takes the connection and never reads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        engine = connect(PipelineConfig(backend=f"http://127.0.0.1:{listener.getsockname()[1]}"))
        with pytest.raises(InferenceTimeoutError, match="no answer in time"):
            engine.infer("model", {"AUDIO": np.zeros((1, 20_000_000), np.float32)}, timeout=0.3)
        engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="relies on how Linux fills a backlog")
def test_the_deadline_holds_while_the_connection_is_made() -> None:
    """The backlog is full: the kernel answers no further attempt."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as waiting:
        for _ in range(3):
            other = waiting.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        engine = connect(PipelineConfig(backend=f"http://127.0.0.1:{listener.getsockname()[1]}"))
        with pytest.raises(InferenceTimeoutError, match="no answer in time"):
            engine.infer("model", INPUTS, timeout=0.3)
        engine.close()


def tls_options(certificate: Path) -> dict[str, Any]:
    """A server with a certificate, and a client that trusts it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return {"context": context, "tls_root_certificates": certificate}


ANSWER = b'{"id": "%s", "outputs": [{"name": "Y", "datatype": "FP32", "shape": [1], "parameters": %s}]}'


def answer(handler: BaseHTTPRequestHandler) -> None:
    """Answer any request as Triton would: one value, 0.5."""
    size = int(handler.headers["Inference-Header-Content-Length"])
    text = ANSWER % (
        json.loads(handler.body[:size])["id"].encode(),  # type: ignore[attr-defined]
        b'{"binary_data_size": 4}',
    )
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(text) + 4))
    handler.send_header("Inference-Header-Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text + np.float32(0.5).tobytes())


def test_https_wants_a_trusted_certificate(certificate: Path) -> None:
    options = tls_options(certificate)
    with http_server(answer, **options) as engine:
        for _ in range(3):
            assert engine.infer("model", INPUTS, timeout=10.0)["Y"] == 0.5
    del options["tls_root_certificates"]
    with (
        http_server(answer, **options) as engine,
        pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY"),
    ):
        engine.infer("model", INPUTS, timeout=10.0)


def test_https_servers_may_ask_clients_for_a_certificate(certificate: Path) -> None:
    options = tls_options(certificate)
    options["context"].load_verify_locations(certificate)
    options["context"].verify_mode = ssl.CERT_REQUIRED
    own = {"tls_client_certificate": certificate, "tls_client_key": certificate.with_name("key.pem")}
    with http_server(answer, **options, **own) as engine:
        assert engine.infer("model", INPUTS, timeout=10.0)["Y"] == 0.5
    with http_server(answer, **options) as engine, pytest.raises(UnavailableError):
        engine.infer("model", INPUTS, timeout=10.0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_proxies_of_the_environment_are_not_asked(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("no IPv6")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with http_server(answer, host=host) as engine:
        assert engine.infer("model", INPUTS, timeout=10.0)["Y"] == 0.5


def test_connections_are_kept_and_replaced_when_the_server_closed_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A hundred threads at once, then one after another; nobody loses a request to a closed connection."""
    clients: list[int] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        clients.append(handler.client_address[1])
        answer(handler)

    def note_and_close(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True  # without a word in the headers
        note(handler)

    with http_server(note) as engine:
        with ThreadPoolExecutor(100) as pool:
            made = pool.map(lambda _: engine.infer("model", INPUTS, timeout=60.0)["Y"], range(500))
            assert all(value == 0.5 for value in made)
        assert len(set(clients)) <= 100
        assert not caplog.records
    with http_server(note_and_close) as engine:
        for _ in range(5):
            engine.infer("model", INPUTS, timeout=10.0)
            time.sleep(0.05)  # the end of the connection arrives


def test_a_timeout_in_the_middle_of_a_sequence_loses_the_sequence() -> None:
    """The server may have moved its states on. The limit holds for every request of a sequence."""
    over = threading.Event()
    stats = StatsCounter()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        over.wait(10)
        hang_up(handler)

    with http_server(hang) as engine:
        resilient = ResilientEngine(
            engine,
            None,
            breaker=None,
            sequences_move=False,
            retries=0,
            retry_delay_seconds=0.0,
            timeout=0.3,
            stats=stats,
        )
        for caller in (
            partial(engine.infer, timeout=0.3),
            resilient.infer,
            partial(resilient.infer, timeout=0.2),
        ):
            with pytest.raises(InferenceTimeoutError):
                caller("model", INPUTS, sequence=Sequence(5, start=True))
            with pytest.raises(
                SequenceError, match=r"sequence 5 is lost, start it again: .* no answer in time"
            ):
                caller("model", INPUTS, sequence=Sequence(5))
        over.set()
    assert stats.snapshot().lost_sequences == 2


def test_a_sequence_that_is_given_up_is_ended_at_the_server() -> None:
    requests: list[dict[str, Any]] = []

    def note_and_fail(handler: BaseHTTPRequestHandler) -> None:
        size = int(handler.headers["Inference-Header-Content-Length"])
        requests.append(json.loads(handler.body[:size])["parameters"])  # type: ignore[attr-defined]
        send(500, b"")(handler)

    with http_server(note_and_fail) as engine:
        engine.end_sequence("model", INPUTS, 7)
        engine.close()
        engine.end_sequence("model", INPUTS, 8)
    (only,) = requests
    assert only == {
        "sequence_id": 7,
        "sequence_start": False,
        "sequence_end": True,
        "binary_data_output": True,
    }


def test_a_closed_engine_refuses_every_call() -> None:
    with http_server(answer) as engine:
        engine.close()
        for call in (partial(engine.infer, "model", INPUTS), partial(engine.spec, "model"), engine.names):
            with pytest.raises(StreamClosedError, match="has been closed; make another"):
                call()


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


def test_without_grpc_the_other_protocol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "autovoice.engines.triton.grpc", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(ConfigurationError, match=r"grpc://localhost:8001 needs .*autovoice\[grpc\].*http://"):
        connect(PipelineConfig(backend="grpc://localhost:8001"))
    assert connect(PipelineConfig(backend="http://localhost:8000")).device


def test_the_embedded_runtime_does_not_load_a_client() -> None:
    """gRPC and gevent would double the time to the first conversion."""
    code = (
        "import sys, autovoice, autovoice.engines.opening; "
        "print([m for m in ('grpc', 'gevent', 'asyncio', 'http.client') if m in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"
