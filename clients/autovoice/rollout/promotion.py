"""`autovoice rollout`: changes what is wanted, step by step, and waits until the service has done it.

Each step is one change of the state: a promotion that is killed leaves what it had reached, and the next
one goes on from there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autovoice.errors import RolloutError, UnavailableError
from autovoice.releases.release import read_release
from autovoice.rollout import proxy
from autovoice.rollout.admission import admit, gate_passed, require_same_contract
from autovoice.rollout.state import HOLD_SECONDS, STEPS, Event, RolloutFolder, RolloutState, served

_POLL_SECONDS = 0.1
_DURATION = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>[smh]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Plan:
    """How a release gets its requests.

    Attributes:
        steps: percent of the requests, ascending; all of them come last in any case.
        hold_seconds: how long each step lasts.
        shadow: percent of the requests that it gets a copy of beforehand, for as long as a step.
    """

    steps: tuple[int, ...] = STEPS
    hold_seconds: float = HOLD_SECONDS
    shadow: int = 0


def promote(
    folder: RolloutFolder,
    number: int,
    plan: Plan | None = None,
    *,
    needs_gate: bool | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Give a release more and more of the requests, and in the end make it the stable one.

    A trial of this release that was interrupted goes on at the share that it has. In place, the service gives
    it all of them at once.

    Args:
        folder: the rollout folder.
        number: of the release.
        plan: its steps; None for those of `Plan()`, and in place, where there are none.
        needs_gate: refuse a release that no gate let pass; False: ask for no gate; None: where the stable
            release passed one, and in any case refuse one that its gate refused.
        report: called with a line for each step.

    Raises:
        RolloutError: the release is not admitted, another one is on trial, it was rolled back meanwhile, no
            service runs, or there is a plan in place.
    """
    with folder.promoting():
        state = folder.read()
        if state.mode == "in-place" and plan is not None:
            raise RolloutError(
                f"{folder.path} is served in place, where a release has all requests at once; leave out "
                "--canary, --hold and --shadow"
            )
        _require_service(folder)
        if state.stable == number:
            report(f"release {number} is promoted already; {served(state)}")
            return
        if needs_gate is False:
            release = admit(state, number, needs_gate=None)
        else:
            release = admit(state, number, needs_gate=needs_gate or _stable_passed(state))
        if state.stable is not None:
            require_same_contract(release, read_release(Path(state.releases, str(state.stable))))
        if state.mode == "in-place":
            folder.set_candidate(number, (100,), 0.0, 0)
            _finish(folder, number, report)
            return
        plan = plan or Plan()
        folder.set_candidate(number, plan.steps, plan.hold_seconds, plan.shadow)
        _wait_ready(folder, number)
        begun = folder.require_candidate(number).share
        if begun:
            report(f"release {number} goes on at {begun} %")
        else:
            report(f"release {number} is ready")
            if plan.shadow:
                report(f"release {number} gets a copy of {plan.shadow} % of the requests")
                _hold(folder, number, plan.hold_seconds)
        for step in plan.steps:
            if step > begun:
                _wait_ready(folder, number)
                state = folder.set_share(number, step)
                wait_applied(folder, state.serial, number)
                report(f"release {number} has {step} % of the requests")
                _hold(folder, number, plan.hold_seconds)
        _finish(folder, number, report)


def roll_back(
    folder: RolloutFolder, number: int | None = None, report: Callable[[str], None] = lambda line: None
) -> None:
    """End a trial, or go back to a release that was promoted before.

    Args:
        folder: the rollout folder.
        number: of the release that is to have all requests. None: the stable one where another is on trial,
            else the one that was promoted before it.
        report: called with a line for each step.

    Raises:
        RolloutError: there is no such release, it does not verify or does not start, or no service runs.
    """
    state = folder.read()
    is_going_back = state.candidate is not None and not state.steps
    if state.candidate is not None and (not is_going_back or number not in (None, state.candidate)):
        if folder.roll_back("asked for", candidate=state.candidate):
            report(f"release {state.candidate} is not on trial any more; {served(folder.read())}")
        if number in (None, state.stable):
            return
    with folder.promoting():
        state = folder.read()
        if number is None:
            number = state.candidate if is_going_back else former(folder.history())
        if number is None:
            raise RolloutError(
                f"no release was promoted before release {state.stable}; name the one to go back to"
            )
        if number == state.stable:
            report(served(state))
            return
        _require_service(folder)
        admit(state, number, needs_gate=None)
        folder.set_candidate(number, (), 0.0, 0)
        _finish(folder, number, report)


def former(history: list[Event]) -> int | None:
    """The release that was promoted before the one that is stable at the end of a history."""
    promoted: list[int] = []
    for event in history:
        stable = event.stable
        if stable is None or promoted[-1:] == [stable]:
            continue
        if event.event == "rolled back" and stable in promoted:
            del promoted[promoted.index(stable) + 1 :]
        else:
            promoted.append(stable)
    return promoted[-2] if len(promoted) > 1 else None


def parse_duration(text: str) -> float:
    """Seconds of `60s`, `5m`, `1h` or a number of seconds.

    Raises:
        RolloutError: it is something else.
    """
    match = _DURATION.fullmatch(text)
    if match is None or len(text) > 20:
        raise RolloutError(f"{text!r} is no time; give one such as 60s, 5m or 1h")
    return float(match["number"]) * _UNITS[match["unit"]]


def parse_steps(text: str) -> tuple[int, ...]:
    """Percentages with commas between them.

    Raises:
        RolloutError: it is something else.
    """
    if not re.fullmatch(r"[0-9]{1,3}(,[0-9]{1,3})*", text):
        raise RolloutError(f"{text!r} is no list of percentages; give growing ones as 1,10,50,100")
    return tuple(map(int, text.split(",")))


def _stable_passed(state: RolloutState) -> bool:
    """Whether the releases here go through a gate: the stable one did."""
    if state.stable is None:
        return False
    return gate_passed(read_release(Path(state.releases, str(state.stable)))) is True


def _finish(folder: RolloutFolder, number: int, report: Callable[[str], None]) -> None:
    if folder.read().mode == "in-place":
        state = _wait_promoted(folder, number)
    else:
        _wait_ready(folder, number)
        state = folder.promote(number)
    wait_applied(folder, state.serial)
    report(f"release {number} is promoted; {served(state)}")


def _require_service(folder: RolloutFolder) -> None:
    if not folder.is_served():
        raise RolloutError(
            f"no service runs; start it with `autovoice serve --rollout {folder.path}`, which keeps what the "
            "rollout has reached"
        )


def _wait_ready(folder: RolloutFolder, number: int) -> None:
    while not ((entry := folder.servers().get(number)) and entry.ready):
        _require_service(folder)
        folder.require_candidate(number)
        time.sleep(_POLL_SECONDS)


def _wait_promoted(folder: RolloutFolder, number: int) -> RolloutState:
    """Wait until the service has made the candidate the stable release."""
    while (state := folder.read()).stable != number:
        _require_service(folder)
        if state.candidate != number:
            folder.require_candidate(number)
        time.sleep(_POLL_SECONDS)
    return state


def wait_applied(folder: RolloutFolder, serial: int, candidate: int | None = None) -> None:
    """Wait until Envoy's routes are those of a change.

    Args:
        folder: the rollout folder.
        serial: of the state after the change.
        candidate: which has to stay on trial meanwhile, None for any.

    Raises:
        RolloutError: it does not take them, no service runs, or the candidate is not on trial any more.
    """
    deadline = time.monotonic() + proxy.APPLY_SECONDS
    while True:
        with suppress(UnavailableError):
            if proxy.applied(folder.path) >= serial:
                return
        _require_service(folder)
        if candidate is not None:
            folder.require_candidate(candidate)
        if time.monotonic() > deadline:
            raise RolloutError(f"Envoy has not taken its routes; {folder.path / proxy.LOG} says why")
        time.sleep(_POLL_SECONDS)


def _hold(folder: RolloutFolder, candidate: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        folder.require_candidate(candidate)
        _require_service(folder)
        time.sleep(min(left, _POLL_SECONDS))
