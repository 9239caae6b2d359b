"""Traces and metrics: what the server tells an OpenTelemetry collector and Prometheus."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from triton_calls import Connect, grpc_client, http_client, hum, local_options, voice

from autovoice.repository.reader import ModelRepository
from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server

FEEDS = {"SOURCE_AUDIO": hum(2400), **voice(0)}
# Seconds for one request's spans, never waited for when all is well. The server's exporter drops what it
# cannot deliver in time on a busy machine: another request is then to be traced.
PATIENCE, ATTEMPTS = 20.0, 3


class Collector:
    """Receives OTLP over HTTP, as an OpenTelemetry collector does.

    Attributes:
        spans: all spans so far, as JSON has them.
        paths: where they were sent to.
    """

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.paths: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.paths.add(self.path)
                for resource in json.loads(body)["resourceSpans"]:
                    for scope in resource["scopeSpans"]:
                        collector.spans += scope["spans"]
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def until(
        self, true: Callable[[list[dict[str, Any]]], bool], request: Callable[[], object]
    ) -> list[dict[str, Any]]:
        """The spans, once they are as wanted after a request."""
        for _ in range(ATTEMPTS):
            request()
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                if true(self.spans):
                    return list(self.spans)
                time.sleep(0.05)
        raise AssertionError(f"not among the spans: {[span['name'] for span in self.spans]}")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    receiving = Collector()
    yield receiving
    receiving.close()


@pytest.fixture(scope="module")
def traced(installed: None, repository: Path, cache: Path, collector: Collector) -> Iterator[TritonServer]:
    """Sends the traces of all requests."""
    with TritonServer(local_options(repository, trace_url=collector.url), cache=cache) as running:
        yield running


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: next(iter(item["value"].values())) for item in span.get("attributes", ())}


@pytest.mark.parametrize("connect", [grpc_client, http_client], ids=["grpc", "http"])
def test_a_request_is_one_trace_with_all_its_stages(
    traced: TritonServer, collector: Collector, repository: Path, connect: Connect
) -> None:
    """It continues the caller's own trace, and every stage of the ensemble has its span in it."""
    trace, caller = ("ab" if connect is grpc_client else "cd") * 16, "12" * 8
    headers = {"traceparent": f"00-{trace}-{caller}-01"}
    models = ModelRepository(repository)
    stages = {step.model for step in models.steps_in_order(models.spec("voice_conversion"))}

    def served(spans: list[dict[str, Any]]) -> set[str]:
        return {
            str(attributes(span).get("triton.model_name"))
            for span in spans
            if span["traceId"].lower() == trace and "triton.model_name" in attributes(span)
        }

    with connect(traced.options) as client:
        spans = collector.until(
            lambda spans: served(spans) >= {"voice_conversion", *stages},
            lambda: client.infer("voice_conversion", FEEDS, headers=headers, request_id="mine"),
        )
    mine = [span for span in spans if span["traceId"].lower() == trace]
    assert any(span.get("parentSpanId", "").lower() == caller for span in mine)
    assert any(attributes(span).get("triton.request_id") == "mine" for span in mine)
    assert any(span["name"] == "compute" for span in mine)
    assert collector.paths == {"/v1/traces"}


def test_metrics_count_requests_by_model(server: TritonServer) -> None:
    def counted() -> dict[str, float]:
        with urllib.request.urlopen(server.options.metrics_url, timeout=10) as response:
            lines = response.read().decode().splitlines()
        found = [
            re.match(r'nv_inference_request_success\{model="(\w+)".*\} ([\d.e+]+)$', line) for line in lines
        ]
        return {match[1]: float(match[2]) for match in found if match}

    before = counted()
    with grpc_client(server.options) as client:
        for _ in range(3):
            client.infer("voice_conversion", FEEDS)
    models = ("voice_conversion", "synthesizer")
    expected = {model: before.get(model, 0.0) + 3 for model in models}
    deadline = time.monotonic() + 10
    # The server counts a request after it has answered it.
    while (after := counted()) and any(after[model] < expected[model] for model in models):
        assert time.monotonic() < deadline, (after, expected)
        time.sleep(0.05)
    assert {model: after[model] for model in models} == expected
