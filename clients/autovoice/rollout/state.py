"""The files of a rollout folder: which releases are wanted, which servers run, and what happened."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar

from autovoice.atomic import atomic_path
from autovoice.errors import RolloutError

STATE_FILENAME = "rollout.json"
SERVERS_FILENAME = "servers.json"
HISTORY_FILENAME = "history.jsonl"
SERVICE_FILENAME = "service.json"
LOCK_FILENAME = "lock"
SERVING_FILENAME = "serving.lock"
PROMOTING_FILENAME = "promoting.lock"
STEPS = (1, 10, 50, 100)
HOLD_SECONDS = 60.0
_POLL_SECONDS = 0.05

Mode = Literal["processes", "in-place"]
Kind = Literal[
    "started", "candidate", "share", "promoted", "rolling back", "rolled back", "ended", "restarted"
]


@dataclass(frozen=True)
class Event:
    """One line of the history: what happened, and what was wanted from then on.

    Attributes:
        time: UTC, ISO 8601.
        event: what happened.
        release: that it happened to, None where it was the proxy.
        stable: the promoted release.
        candidate: the release on trial.
        share: percent of the requests that go to the candidate.
        reason: why, in words.
    """

    time: str
    event: Kind
    release: int | None
    stable: int | None
    candidate: int | None
    share: int
    reason: str


@dataclass(frozen=True)
class RolloutState:
    """What is wanted; nonsense is refused when it is made.

    Attributes:
        releases: folder of the releases.
        public_key: PEM file of the key that must have signed each release, None where none must.
        stable: the promoted release, None before the first.
        candidate: the release on trial, None where there is none.
        share: percent of the requests that go to the candidate.
        shadow: percent of the requests that the candidate gets a copy of, as long as its share is 0.
        steps: shares that the candidate is to have one after the other; none where it is a former release on
            its way back, which takes all requests at once.
        hold_seconds: how long each step lasts.
        mode: one server process for each release, or both releases in one.
        serial: number of changes so far.
        last: the last of them.
    """

    releases: str
    public_key: str | None = None
    stable: int | None = None
    candidate: int | None = None
    share: int = 0
    shadow: int = 0
    steps: tuple[int, ...] = STEPS
    hold_seconds: float = HOLD_SECONDS
    mode: Mode = "processes"
    serial: int = 0
    last: Event | None = None

    def __post_init__(self) -> None:
        for name in ("share", "shadow"):
            if not 0 <= getattr(self, name) <= 100:
                raise RolloutError(f"{name} is {getattr(self, name)}; give a percentage from 0 to 100")
        if any(later <= step for step, later in zip(self.steps, self.steps[1:], strict=False)) or any(
            not 1 <= step <= 100 for step in self.steps
        ):
            raise RolloutError(
                f"steps {','.join(map(str, self.steps))} do not grow; give percentages as 1,10,50,100"
            )
        if not self.hold_seconds >= 0:
            raise RolloutError(f"hold is {self.hold_seconds} s; give a time such as 60s or 5m")
        if self.candidate is None and self.share:
            raise RolloutError(f"share is {self.share}, and there is no candidate")
        if self.candidate is not None and self.candidate == self.stable:
            raise RolloutError(f"release {self.stable} cannot be stable and the candidate")

    @property
    def wanted(self) -> set[int]:
        """The releases that are to be served."""
        return {number for number in (self.stable, self.candidate) if number is not None}


@dataclass(frozen=True)
class ServerEntry:
    """The server of one release.

    Attributes:
        pid: of its process, None while it starts.
        http: its port on loopback.
        grpc: likewise.
        metrics: likewise.
        ready: whether it answers.
        draining: whether it gets no new requests but those that ask for this release.
    """

    pid: int | None
    http: int
    grpc: int
    metrics: int
    ready: bool = False
    draining: bool = False


@dataclass(frozen=True)
class Service:
    """Where `autovoice serve --rollout` listens.

    Attributes:
        pid: of its process.
        host: address that Envoy binds to for requests.
        http: port of requests over HTTP.
        grpc: port of requests over gRPC.
        metrics: port, on loopback, of Envoy's statistics at `/stats/prometheus`.
    """

    pid: int
    host: str
    http: int
    grpc: int
    metrics: int


class RolloutFolder:
    """A rollout folder.

    The state is changed under a lock and by renaming a new file over it, so that it is whole at any time.
    Each change carries its own line of the history, which is appended after it: a process that is killed in
    between leaves that to the next one.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def read(self) -> RolloutState:
        """The wanted state.

        Raises:
            RolloutError: there is none, or it cannot be read.
        """
        state = self._read()
        if state is None:
            raise RolloutError(
                f"{self.path} is no rollout folder; `autovoice serve --rollout {self.path}` makes one"
            )
        return state

    def begin(
        self,
        releases: str | os.PathLike[str] | None,
        public_key: str | os.PathLike[str] | None = None,
        mode: Mode = "processes",
    ) -> RolloutState:
        """The state, which is made where there is none.

        Args:
            releases: folder of the releases; None for the one that the state names.
            public_key: of the signatures; likewise.
            mode: of the folder, from its first start on.

        Raises:
            RolloutError: neither names a folder of releases, or the folder is of the other mode.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            state = self._read()
            if state is None:
                if releases is None:
                    raise RolloutError(f"{self.path} is new; name the folder of the releases with --releases")
                state = RolloutState(os.path.abspath(releases), mode=mode)
            if state.mode != mode:
                was, remedy = ("with", "give it") if state.mode == "in-place" else ("without", "leave it out")
                raise RolloutError(
                    f"{self.path} was begun {was} --in-place; {remedy} here too, or name another folder"
                )
            if releases is not None:
                state = replace(state, releases=os.path.abspath(releases))
            if public_key is not None:
                state = replace(state, public_key=os.path.abspath(public_key))
            self._write(STATE_FILENAME, asdict(state))
            return state

    def start_with(self, number: int, reason: str) -> RolloutState:
        """Make a release the stable one because the service starts or can serve no other."""
        return self._change("started", number, reason, stable=number, candidate=None, share=0, shadow=0)

    def set_candidate(self, number: int, steps: tuple[int, ...], hold_seconds: float, shadow: int) -> None:
        """Put a release on trial, with no requests yet.

        Raises:
            RolloutError: another one is on trial, or it is the stable one.
        """
        with self._locked():
            state = self.read()
            if state.candidate not in (None, number):
                raise RolloutError(
                    f"release {state.candidate} is on trial with {state.share} %; promote that one, or end "
                    "its trial with `autovoice rollout rollback`"
                )
            share = state.share if state.candidate == number else 0
            kept = {"candidate": number, "share": share, "shadow": shadow}
            self._apply(
                state,
                "candidate" if steps else "rolling back",
                number,
                f"to have {', '.join(map(str, steps))} % of the requests" if steps else "asked for",
                **kept,
                steps=steps,
                hold_seconds=hold_seconds,
            )

    def require_candidate(self, number: int) -> RolloutState:
        """The state, as long as this release is on trial.

        Raises:
            RolloutError: it is not any more; the message says why.
        """
        with self._locked():
            return self._read_with(number)

    def set_share(self, number: int, share: int) -> RolloutState:
        """Give a candidate another share of the requests.

        Raises:
            RolloutError: it is not the candidate any more.
        """
        with self._locked():
            state = self._read_with(number)
            return self._apply(state, "share", number, f"{share} % of the requests", share=share)

    def promote(self, number: int) -> RolloutState:
        """Make the candidate the stable release.

        Raises:
            RolloutError: it is not the candidate any more.
        """
        with self._locked():
            state = self._read_with(number)
            back = not state.steps
            return self._apply(
                state,
                "rolled back" if back else "promoted",
                number,
                f"from release {state.stable}" if back else f"after release {state.stable}",
                stable=number,
                candidate=None,
                share=0,
                shadow=0,
            )

    def roll_back(self, reason: str, candidate: int | None = None) -> bool:
        """End the trial of the candidate: all requests go to the stable release.

        Args:
            reason: why, for the history.
            candidate: the release that is meant; None for whichever is on trial.

        Returns:
            Whether that release was on trial.
        """
        with self._locked():
            state = self.read()
            number = state.candidate
            if number is None or candidate not in (None, number):
                return False
            self._apply(state, "rolled back", number, reason, candidate=None, share=0, shadow=0)
            return True

    def record(self, event: Kind, release: int | None, reason: str) -> RolloutState:
        """Write into the history what changes nothing that is wanted."""
        return self._change(event, release, reason)

    def history(self) -> list[Event]:
        """What happened, the oldest first."""
        with self._locked():
            return self._history()

    def servers(self) -> dict[int, ServerEntry]:
        """The servers that run, as `autovoice serve --rollout` last wrote them; see `is_served`."""
        content = self._load(SERVERS_FILENAME) or {}
        return {int(number): _made(ServerEntry, entry, SERVERS_FILENAME) for number, entry in content.items()}

    def write_servers(self, servers: Mapping[int, ServerEntry]) -> None:
        """Write the servers that run; for `autovoice serve --rollout` alone."""
        self._write(SERVERS_FILENAME, {str(number): asdict(entry) for number, entry in servers.items()})

    def service(self) -> Service:
        """Where the service listens.

        Raises:
            RolloutError: none was ever started.
        """
        content = self._load(SERVICE_FILENAME)
        if content is None:
            raise RolloutError(f"no `autovoice serve --rollout {self.path}` was started yet; start it")
        return _made(Service, content, SERVICE_FILENAME)

    def write_service(self, service: Service) -> None:
        """Write where the service listens; for `autovoice serve --rollout` alone."""
        self._write(SERVICE_FILENAME, asdict(service))

    def is_served(self) -> bool:
        """Whether an `autovoice serve --rollout` of this folder runs."""
        return self._is_held(SERVING_FILENAME)

    def is_promoted_to(self) -> bool:
        """Whether an `autovoice rollout promote` or `rollback` runs."""
        return self._is_held(PROMOTING_FILENAME)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Be the one service of this folder.

        Raises:
            RolloutError: there is another.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._alone(SERVING_FILENAME, f"another `autovoice serve --rollout {self.path}` runs; stop it"):
            yield

    @contextlib.contextmanager
    def promoting(self) -> Iterator[None]:
        """Be the one promotion of this folder.

        Raises:
            RolloutError: there is another.
        """
        self.read()
        text = f"another promotion or rollback runs in {self.path}; wait for it, or stop it"
        with self._alone(PROMOTING_FILENAME, text):
            yield

    def _read_with(self, candidate: int) -> RolloutState:
        """Read the state, which has to have this candidate; under the lock."""
        state = self.read()
        if state.candidate != candidate:
            ends = [event for event in self._history() if event.release == candidate]
            why = f": {ends[-1].reason}" if ends and ends[-1].event == "rolled back" else ""
            raise RolloutError(f"release {candidate} is not on trial any more{why}; {served(state)}")
        return state

    def _change(self, event: Kind, release: int | None, reason: str, **changes: Any) -> RolloutState:
        with self._locked():
            return self._apply(self.read(), event, release, reason, **changes)

    def _apply(
        self, state: RolloutState, event: Kind, release: int | None, reason: str, **changes: Any
    ) -> RolloutState:
        """Change the state, and write why; under the lock."""
        self._history()  # of a process that was killed
        state = replace(state, **changes, serial=state.serial + 1)
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        last = Event(
            now, event, release, state.stable, state.candidate, state.share, " ".join(reason.split())
        )
        state = replace(state, last=last)
        self._write(STATE_FILENAME, asdict(state))
        self._append(last)
        return state

    def _history(self) -> list[Event]:
        """Read the history, and complete it; under the lock."""
        path = self.path / HISTORY_FILENAME
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:  # a line that was not written to its end
            os.truncate(path, len(whole))
        events = [_made(Event, json.loads(line), HISTORY_FILENAME) for line in whole.splitlines()]
        state = self._read()
        if state is not None and state.last is not None and state.last not in events[-1:]:
            self._append(state.last)
            events.append(state.last)
        return events

    def _append(self, event: Event) -> None:
        with (self.path / HISTORY_FILENAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(event)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> RolloutState | None:
        content = self._load(STATE_FILENAME)
        if content is None:
            return None
        last = content.get("last")
        content["steps"] = tuple(content.get("steps", STEPS))
        content["last"] = None if last is None else _made(Event, last, STATE_FILENAME)
        return _made(RolloutState, content, STATE_FILENAME)

    def _load(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise RolloutError(
                f"{path} cannot be read ({error}); nothing but AutoVoice may write it"
            ) from error
        if not isinstance(content, dict):
            raise RolloutError(f"{path} holds no object; nothing but AutoVoice may write it")
        return content

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        write_json(self.path / name, content)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if not self.path.is_dir():
            raise RolloutError(
                f"{self.path} is no rollout folder; `autovoice serve --rollout {self.path}` makes one"
            )
        with (self.path / LOCK_FILENAME).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _alone(self, name: str, otherwise: str) -> Iterator[None]:
        with (self.path / name).open("a") as file:
            for attempt in range(10):  # who only asks whether the lock is held holds it for a moment
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if attempt == 9:
                        raise RolloutError(otherwise) from None
                    time.sleep(_POLL_SECONDS)
            yield

    def _is_held(self, name: str) -> bool:
        path = self.path / name
        if not path.exists():
            return False
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def served(state: RolloutState) -> str:
    """Which release has the requests, in words."""
    if state.stable is None:
        return "no release is promoted"
    if state.candidate is None or not state.share:
        return f"release {state.stable} has all requests"
    return f"release {state.stable} has {100 - state.share} % of the requests, {state.candidate} the others"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


_T = TypeVar("_T")


def _made(kind: type[_T], content: Mapping[str, Any], name: str) -> _T:
    try:
        return kind(**content)
    except TypeError as error:
        raise RolloutError(f"{name} is of another version of AutoVoice ({error})") from error
