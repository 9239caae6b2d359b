"""`autovoice serve --rollout` with real servers behind a real Envoy, and `autovoice rollout` on it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import urllib3
from rollout_calls import (
    HEADER,
    Connection,
    Load,
    Refused,
    RolloutProcess,
    flip_byte,
    is_envoy,
    publish_marked,
    under_load,
    write_repository,
)
from triton_calls import until

from autovoice.errors import RolloutError
from autovoice.releases.publishing import publish
from autovoice.rollout.promotion import Plan, promote, roll_back
from autovoice.rollout.proxy import statistics

pytestmark = pytest.mark.server
AT_ONCE = ("--canary", "100", "--hold", "0s")


def go_to(service: RolloutProcess, number: int) -> None:
    """Make a release the stable one, whatever the tests before left."""
    if service.folder.read().candidate is not None:
        roll_back(service.folder)
    promote(service.folder, number, Plan((100,), 0.0))


def is_failed_over(error: Exception) -> bool:
    """Whether a request was refused before it was sent, as by a host that does not listen."""
    if isinstance(error, grpc.RpcError):
        return error.code() is grpc.StatusCode.UNAVAILABLE and "connect" in error.details()
    return isinstance(error, urllib3.exceptions.NewConnectionError)


def require_whole(load: Load, at_least: int) -> None:
    assert [repr(error) for _, error in load.failures] == []
    assert load.mixed() == []
    assert load.requests >= at_least
    assert load.sequences


def test_first_start_takes_the_newest_that_verifies_and_passed(service: RolloutProcess) -> None:
    first = service.folder.history()[0]
    assert (first.event, first.stable) == ("started", 2)
    for number, why in ((5, "is not as it was published: mark/5/model.onnx was changed"), (4, "by its gate")):
        assert f"release {number}" in first.reason
        assert why in first.reason
        (line,) = [line for line in service.log if f"release {number}" in line and "passed over" in line]
        assert why in line


def test_promotion_and_rollback_under_load(service: RolloutProcess) -> None:
    go_to(service, 1)
    with under_load(service.urls, offline=4, live=4) as load:
        done = service.rollout("promote", "2", "--canary", "10,50,100", "--hold", "1s")
        assert done.stdout.splitlines() == [
            "release 2 is ready",
            "release 2 has 10 % of the requests",
            "release 2 has 50 % of the requests",
            "release 2 has 100 % of the requests",
            "release 2 is promoted; release 2 has all requests",
        ]
        done = service.rollout("rollback")
        assert done.stdout == "release 1 is promoted; release 1 has all requests\n"
    require_whole(load, 500)
    releases = Counter(answer.mark for _, answer in load.answers)
    assert releases.keys() == {1, 2}
    last = [answer.mark for _, answer in sorted(load.answers, key=lambda item: item[0])[-4:]]
    assert set(last) <= {1, 2}


def is_answered_by(connection: Connection, release: str) -> bool:
    """Whether a release answers a request for it; False where it is gone, as the error has to say."""
    try:
        return connection.infer("mark", 5.0, {HEADER: release}).is_of(int(release), 5.0)
    except Refused as error:
        status, text = error.args
    except grpc.RpcError as error:
        status, text = error.code(), error.details()
    assert status in (410, grpc.StatusCode.UNAVAILABLE)
    assert "no such release is served here any more" in text
    return False


def test_header_leads_to_a_release_without_a_share_and_says_when_it_is_gone(service: RolloutProcess) -> None:
    go_to(service, 1)
    connections = [Connection(service.urls[protocol]) for protocol in ("http", "grpc")]
    trial = service.begin_rollout("promote", "2", "--canary", "1", "--hold", "1h")
    try:
        until(lambda: service.folder.read().share == 1)
        for connection in connections:
            assert is_answered_by(connection, "2")
            assert is_answered_by(connection, "1")
            for unknown in ("7", "1,2", "x", "-1"):
                assert not is_answered_by(connection, unknown)
        roll_back(service.folder)
        _, error = trial.communicate(timeout=60)
        assert trial.returncode == 2
        assert error == (
            "autovoice: release 2 is not on trial any more: asked for; release 1 has all requests\n"
        )
        for connection in connections:
            assert is_answered_by(connection, "2")  # it drains
        until(lambda: 2 not in service.folder.servers())
        for connection in connections:
            assert not is_answered_by(connection, "2")
            assert is_answered_by(connection, "1")
        until(lambda: service.folder.history()[-1].event == "ended")
    finally:
        trial.kill()
        trial.communicate()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_keys_pass_envoy(service: RolloutProcess, protocol: str) -> None:
    with pytest.raises((Refused, grpc.RpcError)):
        Connection(service.urls[protocol], key="another-0123456789").infer("mark", 1.0)
    assert Connection(service.urls[protocol]).infer("mark", 1.0).value % 1000 == 1.0


def test_shadow_changes_no_answer(service: RolloutProcess) -> None:
    go_to(service, 1)
    with under_load(service.urls, offline=3, live=3, chunks=15) as load:
        trial = service.begin_rollout("promote", "2", "--canary", "100", "--hold", "1h", "--shadow", "100")
        try:
            until(lambda: service.folder.servers().get(2) is not None and service.folder.servers()[2].ready)
            total = r"^cluster\.release_2_(http|grpc)\.upstream_rq_completed$"
            until(lambda: sum(statistics(service.folder.path, total).values()) > 100)
            assert service.folder.read().share == 0
        finally:
            trial.kill()
            trial.communicate()
    require_whole(load, 100)
    assert {answer.mark for _, answer in load.answers} == {1}
    assert {answers[0].mark for answers in load.sequences} == {1}


def test_killed_promotion_leaves_the_truth_and_the_next_goes_on(service: RolloutProcess) -> None:
    go_to(service, 1)
    arguments = ("promote", "2", "--canary", "20,60", "--hold", "1h")
    for share, promoted in ((0, 1), (20, 1), (60, 1)):
        trial = service.begin_rollout(*(arguments if share < 60 else (*arguments[:4], "--hold", "0.1s")))
        if share == 60:
            trial.communicate(timeout=60)
            break

        def is_reached(share: int = share) -> bool:
            state = service.folder.read()
            return state.candidate == 2 and state.share >= share  # it may have gone on

        until(is_reached)
        trial.kill()
        trial.communicate()
        told = service.rollout("status").stdout.splitlines()
        assert told[0] == f"release {promoted} is promoted"
        assert told[1] == f"release 2 is on trial with {service.folder.read().share} % of the requests; " + (
            "no promotion runs"
        )
    assert service.folder.read().stable == 2
    assert service.rollout("promote", "2").stdout == (
        "release 2 is promoted already; release 2 has all requests\n"
    )
    reached = [event for event in service.folder.history() if event.event in ("share", "promoted")]
    assert [event.share for event in reached[-3:]] == [20, 60, 0]


def test_what_is_refused_changes_nothing(service: RolloutProcess) -> None:
    go_to(service, 1)
    before = service.folder.read()
    for number, reason in {
        9: "there is no release 9",
        5: "mark/5/model.onnx was changed",
        4: "was refused by its gate",
        3: "has other tensors than the stable release 1 (mark)",
    }.items():
        with pytest.raises(RolloutError, match=re.escape(reason)):
            promote(service.folder, number, Plan((100,), 0.0))
    with pytest.raises(RolloutError, match="no gate has looked at release 2"):
        promote(service.folder, 2, Plan(), needs_gate=True)
    done = service.rollout("promote", "9")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    after = service.folder.read()
    assert (after.stable, after.candidate, after.share) == (before.stable, before.candidate, before.share)


def test_release_that_does_not_load_is_rolled_back(service: RolloutProcess, tmp_path: Path) -> None:
    """It verifies, and no gate has looked at it; the server of the promoted release keeps its process."""
    go_to(service, 1)
    source = write_repository(tmp_path / "broken", 6)
    (source / "mark" / "1" / "model.onnx").write_bytes(b"no model")
    publish(source, service.folder.read().releases, 6)
    pid = service.folder.servers()[1].pid
    with pytest.raises(RolloutError, match=r"release 6 is not on trial any more: model mark did not load"):
        promote(service.folder, 6, Plan((100,), 0.0))
    last = service.folder.history()[-1]
    assert (last.event, last.release, last.stable) == ("rolled back", 6, 1)
    assert "model mark did not load" in last.reason
    assert service.folder.servers()[1].pid == pid
    assert Connection(service.urls["http"]).infer("mark", 2.0).is_of(1, 2.0)


def test_envoy_that_is_killed_starts_again(service: RolloutProcess) -> None:
    go_to(service, 1)
    former = service.envoy().pid
    os.kill(former, signal.SIGKILL)

    def answers() -> bool:
        try:
            return Connection(service.urls["http"]).infer("mark", 2.0).is_of(1, 2.0)
        except (urllib3.exceptions.HTTPError, Refused):
            return False

    until(lambda: not psutil.pid_exists(former))
    until(answers)
    events = [event for event in service.folder.history() if event.event == "restarted"]
    assert events[-1].reason == "envoy ended by itself: signal 9 (SIGKILL); it is started again"


def test_admin_interface_is_not_open_to_others(service: RolloutProcess) -> None:
    """It is a socket of this user; of it, the statistics alone are at a port of loopback."""
    assert Path(service.folder.path, "envoy", "admin.sock").stat().st_mode & 0o777 == 0o600
    url = service.urls["metrics"]
    assert b'envoy_cluster_name="release_' in urllib3.request("GET", url).data
    for path in ("/", "/quitquitquit", "/stats", "/config_dump", "/stats/prometheus/../../quitquitquit"):
        answer = urllib3.request("POST", url.replace("/stats/prometheus", path), retries=False)
        assert answer.status == 404, path
    listening = {
        connection.laddr.ip
        for connection in service.envoy().net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def stop_under_load(service: RolloutProcess) -> float:
    """SIGTERM while clients ask without end: every request that was taken is answered; seconds it took."""
    with under_load(service.urls, offline=4, live=2, pause=0.002, goes_on=False) as load:
        until(lambda: load.requests > 100)
        begun = time.monotonic()
        service.stop()
        seconds = time.monotonic() - begun
    assert service.process.returncode == 0
    assert [repr(error) for _, error in load.failures if not is_failed_over(error)] == []
    assert load.mixed() == []
    assert load.failures  # each client met the end
    return seconds


def test_end_under_load_and_starts_after_it(environment: dict[str, str], tmp_path: Path) -> None:
    """The promoted release is served again, and when it does not verify any more, the newest other one."""
    releases = tmp_path / "releases"
    for number in (1, 2, 3):
        publish_marked(releases, number)
    shutil.move(releases / "3", tmp_path / "3")
    folder = tmp_path / "rollout"
    service = RolloutProcess(folder, environment, releases=releases)
    try:
        service.wait_ready()
        stop_under_load(service)
        assert service.folder.servers() == {}
        told = service.rollout("status").stdout
        assert "release 2 is promoted" in told
        assert "no service runs" in told
        done = service.rollout("promote", "1", *AT_ONCE)
        assert done.returncode == 2
        assert "no service runs; start it with `autovoice serve --rollout" in done.stderr
        shutil.move(tmp_path / "3", releases / "3")
        flip_byte(releases / "3" / "mark" / "3" / "model.onnx")
        flip_byte(releases / "2" / "count" / "config.pbtxt")
        service = RolloutProcess(folder, environment)
        service.wait_ready()
        assert Connection(service.urls["grpc"]).infer("mark", 4.0).is_of(1, 4.0)
        last = service.folder.history()[-1]
        assert (last.event, last.release) == ("started", 1)
        assert "instead of release 2: release 2 does not verify" in last.reason
        assert "count/config.pbtxt was changed" in last.reason
        assert "release 3 does not verify" in last.reason
        assert last.reason in "".join(service.log)
        other = RolloutProcess(folder, environment)
        assert other.process.wait(60) == 2
        assert "another `autovoice serve --rollout" in "".join(other.stop_log())
        children = psutil.Process(service.process.pid).children(recursive=True)
        service.process.kill()
        _, left = psutil.wait_procs(children, timeout=60)
        assert not [child for child in left if is_envoy(child)]
        assert not service.folder.is_served()
        service = RolloutProcess(folder, environment)
        service.wait_ready()
        assert Connection(service.urls["http"]).infer("mark", 4.0).is_of(1, 4.0)
    finally:
        service.kill()


@pytest.mark.slow
def test_twenty_ends_under_load(environment: dict[str, str], tmp_path: Path) -> None:
    publish_marked(tmp_path / "releases", 1)
    seconds: list[float] = []
    for number in range(20):
        folder = tmp_path / f"rollout-{number}"
        service = RolloutProcess(folder, environment, releases=tmp_path / "releases")
        try:
            service.wait_ready()
            seconds.append(stop_under_load(service))
        finally:
            service.kill()
    print(f"20 ends took {min(seconds):.1f} to {max(seconds):.1f} s")
    assert max(seconds) < 30  # what Kubernetes waits


@pytest.mark.slow
def test_twenty_promotions_and_rollbacks_under_load(environment: dict[str, str], tmp_path: Path) -> None:
    """Streams may be idle for longer than a busy machine keeps a client waiting."""
    for number in (1, 2):
        publish_marked(tmp_path / "releases", number, idle_seconds=3.0)
    service = RolloutProcess(tmp_path / "rollout", environment, releases=tmp_path / "releases")
    try:
        service.wait_ready()
        go_to(service, 1)
        with under_load(service.urls, offline=10, live=6, chunks=100) as load:
            for _ in range(20):
                done = service.rollout("promote", "2", "--canary", "10,50,100", "--hold", "1s")
                assert done.returncode == 0, done.stderr
                done = service.rollout("rollback", "1")
                assert done.returncode == 0, done.stderr
        history = service.folder.history()
    finally:
        service.kill()
    ends = [event for event in history if event.event == "ended"]
    since_boot = time.time() - time.monotonic()
    changes = [
        datetime.fromisoformat(event.time).timestamp() - since_boot
        for event in history
        if event.event in ("share", "promoted", "rolled back")
    ]
    at_changes, others = [], []
    for begun, seconds in load.gaps:
        is_near = any(-0.1 < begun - change < 0.3 for change in changes)
        (at_changes if is_near else others).append(1000 * seconds)
    print(
        f"{len(changes)} changes of routes, {len(ends)} servers ended, {load.requests} requests, "
        f"{len(load.failures)} failed, {len(load.mixed())} mixed, {len(load.sequences)} live sequences; "
        f"chunks (p50, p99, longest; ms) at changes {np.percentile(at_changes, [50, 99, 100]).round(1)}, "
        f"at other times {np.percentile(others, [50, 99, 100]).round(1)}"
    )
    require_whole(load, 5000)
