"""Bad releases under load are rolled back by the alerts of a real Prometheus, with Envoy and Triton."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from audio_releases import Load, publish_audio
from triton_calls import local_options, until

from autovoice.rollout.service import RolloutService
from autovoice.rollout.state import Event, RolloutFolder, Service
from autovoice.rollout.watching import PrometheusWatcher, open_watcher
from autovoice.server.logs import LogRecord

GOOD, NOT_FINITE, SILENT, CLIPPED = 1, 2, 3, 4
RELEASES = {GOOD: "good", NOT_FINITE: "not finite", SILENT: "silent", CLIPPED: "clipped"}


DASHBOARD = Path(__file__).resolve().parents[3] / "deploy" / "grafana" / "releases.json"
RECORDED = (
    "release:failed_excess:10s",
    "model:failed_excess:60s",
    "model:faulty_excess:60s",
    "model:latency",
)


class Running:
    """A rollout service with a watcher, in this process.

    Attributes:
        folder: the rollout folder.
        service: where it listens.
        watcher: with a Prometheus of its own.
        log: its lines.
    """

    def __init__(self, root: Path, cache: Path) -> None:
        for number, kind in RELEASES.items():
            publish_audio(root / "releases" / "all", number, kind)
        for number in set(RELEASES) - {GOOD}:  # the first start would choose the newest
            (root / "releases" / "all" / str(number)).rename(root / "releases" / str(number))
        self.log: list[LogRecord] = []
        self.folder = RolloutFolder(root / "rollout")
        watcher = open_watcher(self.folder.path, None, self.log.append)
        assert watcher is not None
        self.watcher: PrometheusWatcher = watcher
        ready: list[Service] = []
        options = local_options(root)
        self._service = RolloutService(
            self.folder,
            root / "releases" / "all",
            options,
            on_ready=ready.append,
            on_log=self.log.append,
            watcher=watcher,
            cache=cache,
            drain_limit=1.0,
        )
        self._thread = threading.Thread(target=self._service.run)
        self._thread.start()
        until(lambda: bool(ready) or not self._thread.is_alive())
        (self.service,) = ready
        for number in set(RELEASES) - {GOOD}:
            (root / "releases" / str(number)).rename(root / "releases" / "all" / str(number))
        until(lambda: self.query('up{job="envoy"} == 1 and on () up{role="stable"} == 1') != [])

    def close(self) -> None:
        self._service.terminate()
        self._thread.join()

    def query(self, expression: str) -> list[dict[str, object]]:
        """What Prometheus answers, [] where it does not yet."""
        try:
            answer = urllib3.request(
                "GET", f"{self.watcher.url}/api/v1/query", fields={"query": expression}, retries=False
            ).json()
        except (urllib3.exceptions.HTTPError, ValueError):  # which says so while it starts
            return []
        assert answer["status"] == "success", (expression, answer)
        return answer["data"]["result"]  # type: ignore[no-any-return]

    def try_out(self, number: int, share: int, shadow: int = 0) -> float:
        """Make a release the candidate, with a share as soon as its server is ready; returns since when."""
        self.folder.set_candidate(number, (share or 10, 100), 60.0, shadow)
        until(lambda: number in (servers := self.folder.servers()) and servers[number].ready)
        if share:
            self.folder.set_share(number, share)
        return time.monotonic()

    def rolled_back(self, number: int) -> Event:
        """The event of the rollback of a release, once it has come."""

        def events() -> list[Event]:
            history = self.folder.history()
            return [event for event in history if (event.event, event.release) == ("rolled back", number)]

        until(lambda: bool(events()))
        return events()[-1]


@pytest.fixture(scope="module")
def running(envoy: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus: apt-get install prometheus")
    started = Running(tmp_path_factory.mktemp("rollback"), cache)
    yield started
    started.close()


def test_release_whose_answers_are_not_finite_is_rolled_back(running: Running) -> None:
    pid = running.folder.servers()[GOOD].pid
    with Load(running.service) as load:
        since = running.try_out(NOT_FINITE, 10)
        event = running.rolled_back(NOT_FINITE)
        until(lambda: NOT_FINITE not in running.folder.servers())
        failed, answered = len(load.failures), len(load.answers)
        until(lambda: len(load.answers) > answered + 50)
    assert re.search("% of .* (fail|are not finite)", event.reason)  # whichever alert is first
    assert (event.stable, event.candidate, event.share) == (GOOD, None, 0)
    assert all("not a number" in text and when > since for when, text in load.failures)
    assert failed == len(load.failures) >= 3  # none after its end
    assert running.folder.servers()[GOOD].pid == pid


@pytest.mark.parametrize(("number", "fault"), [(SILENT, "silent"), (CLIPPED, "clipped")])
def test_release_whose_shadowed_answers_are_faulty_is_rolled_back(
    running: Running, number: int, fault: str
) -> None:
    """Nobody hears what it answers."""
    with Load(running.service) as load:
        running.try_out(number, 0, shadow=50)
        event = running.rolled_back(number)
    assert f"are {fault}" in event.reason
    assert load.failures == []
    assert load.answers


def test_every_query_of_the_dashboard_has_an_answer(running: Running) -> None:
    """All that they name exists in what Prometheus scraped, after the tests before."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    values = {"$release": ".+", "$model": ".+", "$__rate_interval": "10m"}
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) > 9
    for query in queries:
        for name, value in values.items():
            query = query.replace(name, value)
        if "ALERTS" in query:  # which there are as long as they fire only
            query = re.sub(r"ALERTS{[^}]*}", r"last_over_time(\g<0>[10m])", query)
        assert "$" not in query
        assert running.query(query) != [], query
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
            assert running.query(f'{metric}{{{label}!=""}}') != []


def test_every_metric_of_the_rules_is_scraped(running: Running) -> None:
    for query in RECORDED:
        assert running.query(f"last_over_time({query}[10m])") != [], query
    rules = (running.folder.path / "prometheus" / "rules.yml").read_text(encoding="utf-8")
    for metric in set(re.findall(r"\b(?:envoy|nv|autovoice)_\w+\b(?!=)", rules)):
        assert running.query(f"last_over_time({metric}[10m])") != [], metric


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_bad_release_is_rolled_back_within_seconds(running: Running, attempt: int) -> None:
    """Within 5 s, with at most 1 % failed of the requests of the minute that a step lasts."""
    until(lambda: NOT_FINITE not in running.folder.servers())
    no_alert = f'absent(ALERTS{{alertstate="firing", release="{NOT_FINITE}"}})'
    until(lambda: running.query(no_alert) != [])  # of the last attempt
    with Load(running.service) as load:
        since = running.try_out(NOT_FINITE, 10)
        until(lambda: running.folder.read().candidate is None)
        seconds = time.monotonic() - since
        time.sleep(max(0.0, since + 60 - time.monotonic()))
    total = len([when for when in load.answers if when > since]) + len(load.failures)
    print(f"\nrolled back after {seconds:.2f} s; {len(load.failures)} of {total} requests failed")
    assert seconds <= 5
    assert len(load.failures) <= 0.01 * total
