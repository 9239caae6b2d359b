"""A rollout folder: what is wanted and what happened stay true, whoever is killed, and whenever."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autovoice.errors import RolloutError
from autovoice.rollout.promotion import Plan, former, parse_duration, parse_steps, promote, roll_back
from autovoice.rollout.state import Event, RolloutFolder, RolloutState, ServerEntry

KILLED = """
import os, signal, sys
from autovoice.rollout import state
folder = state.RolloutFolder(sys.argv[1])
place = sys.argv[2]
def die(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)
def die_after(*arguments):
    whole(*arguments)
    die()
if place == "before the state":
    state.write_json = die
elif place == "after the state":
    state.RolloutFolder._append = die
elif place == "in the history":
    def half(self, event):
        with (self.path / "history.jsonl").open("a") as file:
            file.write('{"time": "20')
        die()
    state.RolloutFolder._append = half
elif place == "after the history":
    whole = state.RolloutFolder._append
    state.RolloutFolder._append = die_after
folder.set_share(2, 10)
"""


@pytest.fixture
def folder(tmp_path: Path) -> RolloutFolder:
    """Release 1 is stable, 2 the candidate."""
    made = RolloutFolder(tmp_path / "rollout")
    made.begin(tmp_path / "releases")
    made.start_with(1, "first start")
    made.set_candidate(2, (10, 100), 60.0, 0)
    return made


@pytest.mark.parametrize(
    ("place", "share"),
    [("before the state", 0), ("after the state", 10), ("in the history", 10), ("after the history", 10)],
)
def test_change_that_is_killed_happened_or_did_not(folder: RolloutFolder, place: str, share: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder.path), place], check=False)
    assert done.returncode == -signal.SIGKILL
    assert folder.read().share == share
    shares = [event.share for event in folder.history() if event.event == "share"]
    assert shares == ([10] if share else [])
    folder.set_share(2, 100)
    assert [event.share for event in folder.history() if event.event == "share"][-1] == 100
    lines = (folder.path / "history.jsonl").read_text().splitlines()
    assert len(lines) == len({json.dumps(json.loads(line)) for line in lines}) == len(folder.history())


def test_changes_at_once_are_all_made(folder: RolloutFolder) -> None:
    threads = [
        threading.Thread(target=folder.record, args=("restarted", None, f"{number}")) for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(event.reason) for event in folder.history()[2:]) == list(range(20))
    assert folder.read().serial == 22


def test_rolling_back_ends_the_trial_and_tells_why(folder: RolloutFolder) -> None:
    folder.set_share(2, 10)
    assert not folder.roll_back("too slow", candidate=3)
    assert folder.roll_back("too slow\n (p99)", candidate=2)
    state = folder.read()
    assert (state.stable, state.candidate, state.share) == (1, None, 0)
    assert folder.history()[-1].reason == "too slow (p99)"
    assert not folder.roll_back("again")
    folder.record("restarted", None, "another event in between")
    for change in (lambda: folder.set_share(2, 50), lambda: folder.promote(2)):
        with pytest.raises(RolloutError, match=r"release 2 is not on trial any more: too slow \(p99\)"):
            change()
    assert folder.read().stable == 1


def test_one_trial_at_a_time(folder: RolloutFolder) -> None:
    folder.set_share(2, 10)
    with pytest.raises(RolloutError, match=r"release 2 is on trial with 10 %"):
        folder.set_candidate(3, (100,), 0.0, 0)
    folder.set_candidate(2, (50,), 0.0, 0)
    assert folder.read().share == 10


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"releases": "x", "unknown": 1}', '{"releases": "x", "share": 300}']
)
def test_unreadable_state_is_one_error(folder: RolloutFolder, content: str) -> None:
    (folder.path / "rollout.json").write_text(content)
    with pytest.raises(RolloutError):
        folder.read()


def test_folder_without_a_rollout_names_the_remedy(tmp_path: Path) -> None:
    for call in (
        RolloutFolder(tmp_path / "none").read,
        RolloutFolder(tmp_path / "none").history,
        RolloutFolder(tmp_path).read,
        lambda: roll_back(RolloutFolder(tmp_path)),
    ):
        with pytest.raises(RolloutError, match=r"autovoice serve --rollout"):
            call()  # type: ignore[operator]
    with pytest.raises(RolloutError, match=r"--releases"):
        RolloutFolder(tmp_path / "new").begin(None)


def test_no_service_is_said_before_anything_changes(folder: RolloutFolder) -> None:
    folder.roll_back("asked for")
    before = folder.read()
    folder.write_servers({1: ServerEntry(1, 2, 3, 4, ready=True)})  # of a service that was killed
    for call in (lambda: promote(folder, 2, Plan()), lambda: roll_back(folder, 3)):
        with pytest.raises(RolloutError, match=r"no service runs; start it"):
            call()
    assert folder.read() == before


def test_locks_of_a_folder_are_held_by_one(folder: RolloutFolder) -> None:
    assert not folder.is_served()
    with folder.serving():
        assert folder.is_served()
        with pytest.raises(RolloutError, match="another `autovoice serve"), folder.serving():
            pass
    assert not folder.is_served()
    with folder.promoting(), pytest.raises(RolloutError, match="another promotion"), folder.promoting():
        pass
    assert not folder.is_promoted_to()


@given(st.lists(st.integers(1, 6), max_size=20))
def test_former_release_is_the_one_promoted_before(wanted: list[int]) -> None:
    """Against a plain stack: promoting pushes, going back pops, and the end of a trial does neither."""
    stack = [1]
    history = [Event("", "started", 1, 1, None, 0, "")]
    for number in wanted:
        if number == stack[-1]:
            history.append(Event("", "rolled back", 9, number, None, 0, "the end of a trial"))
        elif number in stack:
            del stack[stack.index(number) + 1 :]
            history.append(Event("", "rolled back", number, number, None, 0, ""))
        else:
            history.append(Event("", "candidate", number, stack[-1], number, 0, ""))
            stack.append(number)
            history.append(Event("", "promoted", number, number, None, 0, ""))
    assert former(history) == (stack[-2] if len(stack) > 1 else None)


@pytest.mark.parametrize(
    "changes",
    [
        {"share": 101, "candidate": 2},
        {"share": -1, "candidate": 2},
        {"share": 1},
        {"shadow": 200},
        {"steps": (10, 10)},
        {"steps": (0, 100)},
        {"steps": (50, 10)},
        {"steps": (101,)},
        {"hold_seconds": -1.0},
        {"hold_seconds": float("nan")},
        {"stable": 2, "candidate": 2},
    ],
)
def test_nonsense_is_no_state(changes: dict[str, object]) -> None:
    with pytest.raises(RolloutError):
        RolloutState("releases", **changes)  # type: ignore[arg-type]


def test_times_and_steps_are_read() -> None:
    assert [parse_duration(text) for text in ("60s", "5m", "1h", "2", "0.5s")] == [60, 300, 3600, 2, 0.5]
    assert parse_steps("1,10,100") == (1, 10, 100)
    for text in ("", "s", "-1s", "500ms", "1 h", "nan", "1e9s", "9" * 30):
        with pytest.raises(RolloutError, match="is no time"):
            parse_duration(text)
    for text in ("", "1,", "a", "1;2", "1.5", "1000"):
        with pytest.raises(RolloutError, match="no list of percentages"):
            parse_steps(text)
