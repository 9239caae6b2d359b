"""The watcher: what it tells Prometheus, what it makes of its alerts, and what it says when there is none."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import urllib3
from triton_calls import until

from autovoice.errors import ConfigurationError
from autovoice.rollout import watching
from autovoice.rollout.state import RolloutState, ServerEntry, Service
from autovoice.rollout.watching import PrometheusWatcher, open_watcher
from autovoice.server.logs import LogRecord

SERVICE = Service(pid=1, host="127.0.0.1", http=8000, grpc=8001, metrics=8002)
SERVERS = {number: ServerEntry(number, 100 + number, 200 + number, 300 + number) for number in (6, 7, 8)}
STATE = RolloutState("releases", stable=7, candidate=8, share=10)


class FakePrometheus:
    """Answers `/api/v1/alerts` with `status` and `body`."""

    def __init__(self) -> None:
        self.status = 200
        self.alerts()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(fake.status if self.path == "/api/v1/alerts" else 404)
                self.send_header("Content-Length", str(len(fake.body)))
                self.end_headers()
                self.wfile.write(fake.body)

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def alerts(self, *alerts: tuple[str, str, str]) -> None:
        """Give alerts: release, state and summary, which may be empty."""
        found = [
            {
                "labels": {"alertname": "SomeAlert", **({"release": release} if release else {})},
                "annotations": {"summary": summary} if summary else {},
                "state": state,
                "activeAt": "2026-01-01T00:00:00Z",
                "value": "1e+00",
            }
            for release, state, summary in alerts
        ]
        self.body = json.dumps({"status": "success", "data": {"alerts": found}}).encode()


@pytest.fixture
def fake() -> Iterator[FakePrometheus]:
    prometheus = FakePrometheus()
    yield prometheus
    prometheus.server.shutdown()
    prometheus.server.server_close()


@pytest.fixture
def log() -> list[LogRecord]:
    return []


@pytest.fixture
def watcher(fake: FakePrometheus, log: list[LogRecord], tmp_path: Path) -> PrometheusWatcher:
    opened = open_watcher(tmp_path, fake.url + "/", log.append)
    assert opened is not None
    return opened


def test_only_firing_alerts_of_the_candidate_are_a_reason(
    fake: FakePrometheus, watcher: PrometheusWatcher
) -> None:
    assert watcher.check(8) is None
    fake.alerts(("7", "firing", "of another"), ("", "firing", "of none"), ("8", "pending", "not yet"))
    assert watcher.check(8) is None
    fake.alerts(("7", "firing", "a"), ("8", "firing", "too slow"), ("8", "firing", "fails"))
    assert watcher.check(8) == "fails; too slow"
    assert watcher.check(7) == "a"
    fake.alerts(("8", "firing", ""))
    assert watcher.check(8) == "SomeAlert"


def test_prometheus_that_cannot_be_asked_is_said_once(
    fake: FakePrometheus, watcher: PrometheusWatcher, log: list[LogRecord]
) -> None:
    good = fake.body
    for times, (status, body) in enumerate(
        [(503, good), (200, b"<html>"), (200, b"[]"), (200, b'{"data": {"alerts": [{"state": "firing"}]}}')]
    ):
        fake.status, fake.body = status, body
        assert [watcher.check(8) for _ in range(3)] == [None] * 3
        assert len(log) == 2 * times + 1
        assert "cannot be asked" in log[-1].text
        assert log[-1].level == "error"
        fake.status, fake.body = 200, good
        assert watcher.check(8) is None
        assert "answers again" in log[-1].text


def test_nobody_at_the_address_is_no_end(log: list[LogRecord], tmp_path: Path) -> None:
    watcher = open_watcher(tmp_path, "http://127.0.0.1:9", log.append)
    assert watcher is not None
    watcher.update(STATE, SERVERS, SERVICE)
    assert [watcher.check(8) for _ in range(3)] == [None] * 3
    assert len(log) == 1
    assert "http://127.0.0.1:9 cannot be asked" in log[0].text
    watcher.close()


@pytest.mark.parametrize("url", ["localhost:9090", "ftp://host", "http://", ""])
def test_what_is_no_address_is_refused(url: str, log: list[LogRecord], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no address; give one as"):
        open_watcher(tmp_path, url, log.append)


def test_without_prometheus_a_warning_says_so(
    log: list[LogRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert open_watcher(tmp_path, None, log.append) is None
    assert [record.level for record in log] == ["warning"]
    assert "automatic rollback is off" in log[0].text


def test_targets_follow_the_rollout(watcher: PrometheusWatcher, tmp_path: Path) -> None:
    def roles() -> dict[str, tuple[str, str]]:
        content = json.loads((tmp_path / "prometheus" / "triton.json").read_text())
        return {item["labels"]["release"]: (item["labels"]["role"], *item["targets"]) for item in content}

    watcher.update(STATE, SERVERS, SERVICE)
    assert roles() == {
        "6": ("former", "127.0.0.1:306"),
        "7": ("stable", "127.0.0.1:307"),
        "8": ("candidate", "127.0.0.1:308"),
    }
    envoy = json.loads((tmp_path / "prometheus" / "envoy.json").read_text())
    assert envoy == [{"targets": ["127.0.0.1:8002"]}]
    watcher.update(RolloutState("releases", stable=8), {8: SERVERS[8]}, SERVICE)
    assert roles() == {"8": ("stable", "127.0.0.1:308")}


def test_own_prometheus_is_started_again_and_ended(
    log: list[LogRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus: apt-get install prometheus")
    monkeypatch.setattr(watching, "_RESTART_SECONDS", 0.5)
    watcher = open_watcher(tmp_path, None, log.append)
    assert watcher is not None

    def processes() -> list[psutil.Process]:
        children = psutil.Process().children()
        return [child for child in children if str(tmp_path) in _folder(child)]

    def has_rules() -> bool:
        watcher.check(8)
        try:
            answer: Any = urllib3.request("GET", f"{watcher.url}/api/v1/rules", retries=False).json()
        except (urllib3.exceptions.HTTPError, ValueError):  # which says so while it starts
            return False
        return len(answer["data"]["groups"]) > 3

    watcher.update(STATE, SERVERS, SERVICE)
    until(has_rules)
    (first,) = processes()
    first.kill()
    until(lambda: first.pid not in [process.pid for process in processes()] or not first.is_running())
    until(has_rules)
    (second,) = processes()
    assert second.pid != first.pid
    watcher.close()
    assert processes() == []
    assert watcher.check(8) is None


def _folder(process: psutil.Process) -> str:
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else process.cwd()
    except psutil.Error:
        return ""
