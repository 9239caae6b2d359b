"""The service asks a watcher about a candidate, and does what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from autovoice.rollout import service as service_module
from autovoice.rollout.service import RolloutService
from autovoice.rollout.state import RolloutFolder, RolloutState, ServerEntry, Service
from autovoice.server.logs import LogRecord
from autovoice.server.options import ServeOptions

SERVERS = {1: ServerEntry(1, 2, 3, 4, ready=True), 2: ServerEntry(5, 6, 7, 8, ready=True)}
SERVICE = Service(1, "127.0.0.1", 2, 3, 4)


class Alarm:
    """Says what it was given."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.asked: list[int] = []
        self.told: list[RolloutState] = []

    def update(self, state: RolloutState, servers: dict[int, ServerEntry], service: Service) -> None:
        self.told.append(state)

    def check(self, candidate: int) -> str | None:
        self.asked.append(candidate)
        return self.reason

    def close(self) -> None:
        pass


def test_candidate_goes_when_the_watcher_says_so(
    envoy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(service_module.time, "monotonic", lambda: now[0])
    folder = RolloutFolder(tmp_path)
    folder.begin(tmp_path)
    folder.start_with(1, "first start")
    alarm, log = Alarm(), list[LogRecord]()
    service = RolloutService(
        folder, None, ServeOptions(tmp_path), on_ready=lambda made: None, on_log=log.append, watcher=alarm
    )

    def look() -> None:
        service._watch(folder.read(), SERVERS, SERVICE)
        now[0] += 1.1

    look()
    assert alarm.asked == []
    folder.set_candidate(2, (10, 100), 60.0, 0)
    folder.set_share(2, 10)
    look()
    look()
    assert (alarm.asked, len(alarm.told)) == ([2, 2], 2)
    assert folder.read().share == 10
    alarm.reason = "p99 is 900 ms, that of release 1 is 90 ms"
    look()
    state = folder.read()
    assert (state.stable, state.candidate, state.share) == (1, None, 0)
    assert folder.history()[-1].reason == alarm.reason
    assert [record.text for record in log] == [f"release 2 is rolled back: {alarm.reason}"]
    look()
    assert alarm.asked == [2, 2, 2]
    assert alarm.told[-1] == state
