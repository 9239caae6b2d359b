"""`autovoice serve --rollout`: the servers of the releases that are wanted, and Envoy in front of them."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from autovoice.errors import ConfigurationError, RolloutError, UnavailableError, VoiceConversionError
from autovoice.releases.release import release_numbers
from autovoice.rollout import proxy
from autovoice.rollout.admission import admit, idle_seconds
from autovoice.rollout.envoy import FOLDER, cluster_name, render
from autovoice.rollout.in_place_server import InPlaceServer
from autovoice.rollout.state import Mode, RolloutFolder, RolloutState, ServerEntry, Service, write_json
from autovoice.rollout.watching import SERVER_OPTIONS
from autovoice.server.logs import Level, LogRecord
from autovoice.server.options import ServeOptions
from autovoice.server.server import ServerError
from autovoice.server.supervision import RESTARTS, SERVED_SECONDS, Supervisor

DRAIN_LIMIT_SECONDS = 600.0
"""How long a release that has no share any more is served to those that ask for it."""
FINISH_SECONDS = 8.0
"""How long requests may take after the service was told to stop, before the servers are told too."""
_TICK_SECONDS = 0.1
_WATCH_SECONDS = 1.0
_ALERT_SECONDS = 0.25
_VIEW = "view"  # of the server in in-place mode
_QUIET_SECONDS = 1.0  # for requests on their way over connections that are open
_ACTIVE = r"^http\.(http|grpc)\.downstream_(rq|cx)_active$"


class Watcher(Protocol):
    """Watches a candidate, and says when it has to go."""

    def update(self, state: RolloutState, servers: dict[int, ServerEntry], service: Service) -> None:
        """Take in what is wanted and what runs; called at the start and whenever one of them has changed."""

    def check(self, candidate: int) -> str | None:
        """Why the candidate has to be rolled back, None where it may go on; called four times a second."""

    def close(self) -> None:
        """Watch no more; called once at the end."""


class RolloutService:
    """Serves what a rollout folder wants, until told to stop.

    Args:
        folder: the rollout folder, made where it is missing.
        releases: folder of the releases; None for the one that the rollout folder names.
        public_key: PEM file of the key that must have signed each release; None for the one that the rollout
            folder names, if any.
        options: where Envoy listens, and how each server is started; its repository counts for nothing.
        on_ready: called once, when requests are answered.
        on_log: called with every line for the log, from any thread.
        watcher: of candidates, None for none.
        drain_limit: seconds; see `DRAIN_LIMIT_SECONDS`.
        mode: one server process for each release, or both releases in one.
        cache: where the backend directory lies; see `backend_directory`.
    """

    def __init__(
        self,
        folder: RolloutFolder,
        releases: Path | None,
        options: ServeOptions,
        *,
        public_key: Path | None = None,
        on_ready: Callable[[Service], None],
        on_log: Callable[[LogRecord], None],
        watcher: Watcher | None = None,
        drain_limit: float = DRAIN_LIMIT_SECONDS,
        mode: Mode = "processes",
        cache: Path | None = None,
    ) -> None:
        self._folder = folder
        self._releases = releases
        self._public_key = public_key
        self._options = options
        self._on_ready = on_ready
        self._on_log = on_log
        self._watcher = watcher
        self._drain_limit = drain_limit
        self._mode: Mode = mode
        self._cache = cache
        self._envoy = proxy.Envoy(folder.path)
        self._envoy_starts: deque[float] = deque(maxlen=RESTARTS + 1)
        self._servers: dict[int, _ReleaseServer] = {}
        self._in_place: InPlaceServer | None = None
        self._failed: set[int] = set()
        self._written: dict[str, Any] = {}
        self._watched: object = None
        self._next_watch = 0.0
        self._is_announced = False
        self._told = 0

    def run(self) -> None:
        """Serve until `terminate` is called.

        Raises:
            RolloutError: another service runs here, or no release can be served.
            ConfigurationError: a port is taken, or the host is not this machine.
            ServerError: Envoy ended again and again.
        """
        with self._folder.serving():
            outer = self._options.with_free_ports()
            service = Service(
                os.getpid(), _address(outer.host), outer.http_port, outer.grpc_port, outer.metrics_port
            )
            self._begin(self._folder.begin(self._releases, self._public_key, self._mode))
            self._folder.write_service(service)
            try:
                while not self._told:
                    self._tick(service)
                    time.sleep(_TICK_SECONDS)
            finally:
                self._end(service)

    def terminate(self) -> None:
        """Finish the requests that are there, and end; a second call ends at once.

        Signal handlers may call this at any time.
        """
        self._told += 1

    def _begin(self, state: RolloutState) -> None:
        """Make sure that the promoted release can be served, or choose another."""
        if state.stable is None:
            self._choose(state, "first start: the newest release that can be served")
            return
        try:
            admit(state, state.stable)
        except RolloutError as error:
            self._replace_stable(state, str(error))

    def _replace_stable(self, state: RolloutState, reason: str) -> None:
        assert state.stable is not None
        self._failed.add(state.stable)
        self._report("error", reason)
        self._choose(state, f"instead of release {state.stable}: {reason}")

    def _choose(self, state: RolloutState, reason: str) -> None:
        """Make the newest release that can be served the stable one; former failures come last.

        Raises:
            RolloutError: there is none.
        """
        releases = Path(state.releases)
        failures = {event.release for event in self._folder.history() if event.event == "rolled back"}
        doubtful = failures | {state.candidate}
        numbers = set(release_numbers(releases)) - self._failed
        for number in sorted(numbers, key=lambda number: (number in doubtful, -number)):
            try:
                admit(state, number)
            except RolloutError as error:
                self._report("error", f"{error}; it is passed over")
                reason += f"; {error}"
                continue
            self._folder.start_with(number, reason)
            level: Level = "info" if state.stable is None else "warning"
            self._report(level, f"release {number} is served; {reason}")
            return
        raise RolloutError(f"no release of {releases} can be served ({reason}); publish one")

    def _tick(self, service: Service) -> None:
        """Bring what runs nearer to what is wanted."""
        if self._mode == "in-place":
            state, servers = self._tick_in_place()
        else:
            state, servers = self._tick_processes()
        self._write(state, servers, service)
        self._keep_envoy(state, servers, service)
        self._watch(state, servers, service)

    def _tick_processes(self) -> tuple[RolloutState, dict[int, ServerEntry]]:
        self._start_and_collect(self._folder.read())
        state = self._folder.read()  # which a server that ended may have changed
        for number, server in self._servers.items():
            server.drain(number not in state.wanted, self._folder.path, self._drain_limit)
        servers = {
            number: entry for number, server in self._servers.items() if (entry := server.entry) is not None
        }
        return state, servers

    def _tick_in_place(self) -> tuple[RolloutState, dict[int, ServerEntry]]:
        state = self._folder.read()
        if self._in_place is not None and not self._in_place.is_alive:
            self._replace_stable(state, self._in_place.failure)
            self._in_place = None
            state = self._folder.read()
        if self._in_place is None:
            options = _behind(self._options, self._folder.path / _VIEW)
            self._in_place = InPlaceServer(self._folder, state, options, self._on_log, self._cache)
        self._in_place.go_on(state)
        return state, self._in_place.entries(state)

    def _start_and_collect(self, state: RolloutState) -> None:
        for number in state.wanted - set(self._servers):
            self._servers[number] = _ReleaseServer(state, number, self._options, self._on_log, self._cache)
        for number, server in list(self._servers.items()):
            if server.is_alive:
                continue
            del self._servers[number]
            if server.why_ended:
                self._folder.record("ended", number, server.why_ended)
            elif number == state.candidate:
                self._report("error", f"release {number} is rolled back: {server.failure}")
                self._folder.roll_back(server.failure, candidate=number)
            elif number == state.stable:
                self._replace_stable(state, server.failure)

    def _write(self, state: RolloutState, servers: dict[int, ServerEntry], service: Service) -> None:
        if self._written.get("servers") != servers:
            self._folder.write_servers(servers)
            self._written["servers"] = servers
        folder = self._folder.path / FOLDER
        folder.mkdir(exist_ok=True)
        for name, content in render(state, servers, service).items():
            if self._written.get(name) != content:
                write_json(folder / name, content)
                self._written[name] = content

    def _keep_envoy(self, state: RolloutState, servers: dict[int, ServerEntry], service: Service) -> None:
        """Start Envoy with the first server that is ready, and again when it ended."""
        if (ending := self._envoy.ending) is not None:
            starts = self._envoy_starts
            if len(starts) > RESTARTS and time.monotonic() - starts[0] < SERVED_SECONDS:
                raise ServerError(
                    f"envoy ended by itself again and again and is given up after {RESTARTS} restarts; the "
                    f"last time: {ending}; {self._folder.path / proxy.LOG} says more"
                )
            reason = f"envoy ended by itself: {ending}; it is started again"
            self._report("error", reason)
            self._folder.record("restarted", None, reason)
        elif self._envoy.is_running or not any(entry.ready for entry in servers.values()):
            if not self._is_announced and self._envoy.is_running:
                self._announce(service)
            return
        self._envoy_starts.append(time.monotonic())
        self._envoy.start()

    def _announce(self, service: Service) -> None:
        try:
            proxy.applied(self._folder.path)
        except UnavailableError as error:
            if time.monotonic() - self._envoy_starts[0] > proxy.APPLY_SECONDS:
                raise ServerError(str(error)) from error
            return
        self._is_announced = True
        self._on_ready(service)

    def _watch(self, state: RolloutState, servers: dict[int, ServerEntry], service: Service) -> None:
        if self._watcher is None:
            return
        if self._watched != (state, servers):
            self._watched = (state, servers)
            self._watcher.update(state, servers, service)
        if state.candidate is None or time.monotonic() < self._next_watch:
            return
        self._next_watch = time.monotonic() + _ALERT_SECONDS
        reason = self._watcher.check(state.candidate)
        if reason is not None and self._folder.roll_back(reason, candidate=state.candidate):
            self._report("error", f"release {state.candidate} is rolled back: {reason}")

    def _end(self, service: Service) -> None:
        """Finish the requests that are there, end the servers, and Envoy last."""
        self._told = max(self._told, 1)
        if self._watcher is not None:
            self._watcher.close()
        with suppress(UnavailableError):
            self._envoy.finish(service)
            if self._has_finished():
                self._envoy.kill()  # servers wait for connections that stay open
        servers: list[_ReleaseServer | InPlaceServer] = [*self._servers.values()]
        if self._in_place is not None:
            servers.append(self._in_place)
        for server in servers:
            server.terminate()
        killed = False
        while any(server.is_alive for server in servers):
            if self._told > 1 and not killed:
                killed = True
                for server in servers:
                    server.terminate()
            time.sleep(_TICK_SECONDS)
        self._envoy.kill()
        self._folder.write_servers({})

    def _has_finished(self) -> bool:
        """Wait until no request is in flight; whether that is so in the end."""
        now = quiet_since = time.monotonic()
        deadline = now + FINISH_SECONDS
        while now < deadline and self._told < 2:
            active = proxy.statistics(self._folder.path, _ACTIVE)
            if not any(active.values()):
                return True
            if any(number for name, number in active.items() if name.endswith("rq_active")):
                quiet_since = now
            elif now - quiet_since > _QUIET_SECONDS:  # connections that nobody uses
                return True
            time.sleep(_TICK_SECONDS / 2)
            now = time.monotonic()
        return False

    def _report(self, level: Level, text: str) -> None:
        self._on_log(LogRecord(level, text))


class _ReleaseServer:
    """A thread with the `Supervisor` of one release's server, from the check of its files on.

    Attributes:
        failure: why the thread ended by itself.
        why_ended: why it was told to end, empty before.
    """

    def __init__(
        self,
        state: RolloutState,
        number: int,
        options: ServeOptions,
        on_log: Callable[[LogRecord], None],
        cache: Path | None,
    ) -> None:
        self._path = Path(state.releases, str(number))
        self._state = state
        self._number = number
        self._options = _behind(options, self._path)
        self._on_log = on_log
        self._cache = cache
        self._supervisor: Supervisor | None = None
        self._idle_seconds = 0.0
        self._draining_since: float | None = None
        self._requests: dict[str, int] = {}
        self._last_request = self._next_look = 0.0
        self._leaving = 0  # 1: no routes lead to it, 2: Envoy has no connections to it, 3: told to end
        self._told = False
        self.failure = ""
        self.why_ended = ""
        self._thread = threading.Thread(target=self._run, name=f"release-{number}", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the server runs, starts, or is started again."""
        return self._thread.is_alive()

    @property
    def entry(self) -> ServerEntry | None:
        """The server as others see it, None before it has ports and when it is about to end."""
        supervisor = self._supervisor
        if supervisor is None or self._leaving > 1:
            return None
        options = supervisor.options
        return ServerEntry(
            supervisor.pid,
            options.http_port,
            options.grpc_port,
            options.metrics_port,
            ready=supervisor.is_ready and not self._leaving,
            draining=self._draining_since is not None,
        )

    def drain(self, is_unwanted: bool, folder: Path, limit: float) -> None:
        """Go on with the end of a server that is not wanted any more; called again and again.

        It answers those that ask for its release until none did for as long as its sequences live, or the
        limit has passed. Then first the routes to it go, then the connections, then the server.
        """
        now = time.monotonic()
        if self._leaving:
            self._leaving += 1
            if self._leaving == 3:
                self.terminate()
        elif not is_unwanted:
            self._draining_since = None
        elif self._supervisor is None or not self._supervisor.is_ready:
            self._leave("it was not ready")
        elif self._draining_since is None:
            self._draining_since = self._last_request = now
        elif now - self._draining_since > limit:
            self._leave(f"its drain took longer than {limit:g} s")
        elif now > self._next_look:
            self._next_look = now + _WATCH_SECONDS
            names = "|".join(cluster_name(self._number, protocol) for protocol in ("http", "grpc"))
            with suppress(UnavailableError):
                requests = proxy.statistics(folder, rf"^cluster\.({names})\.upstream_rq_(total|active)$")
                if requests != self._requests or any(
                    requests[name] for name in requests if name.endswith("active")
                ):
                    self._requests, self._last_request = requests, now
                elif now - self._last_request > self._idle_seconds:
                    self._leave(f"no request asked for it for {self._idle_seconds:g} s")

    def terminate(self) -> None:
        """Tell the server to end; a second call kills it."""
        self._told = True
        if self._supervisor is not None:
            self._supervisor.terminate()

    def _leave(self, reason: str) -> None:
        self._leaving, self.why_ended = 1, reason

    def _run(self) -> None:
        try:
            admit(self._state, self._number)
            self._idle_seconds = idle_seconds(self._path)
            supervisor = Supervisor(
                self._options, on_ready=lambda options: None, on_log=self._log, cache=self._cache
            )
            self._supervisor = supervisor
            if not self._told:  # before there was one to tell
                supervisor.run()
        except VoiceConversionError as error:
            self.failure = str(error)
        except Exception as error:  # a defect of ours, which must not pass for a server that still starts
            self.failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.failure = self.failure or "its server ended"

    def _log(self, record: LogRecord) -> None:
        self._on_log(replace(record, text=f"release {self._number}: {record.text}"))


def _behind(options: ServeOptions, repository: Path) -> ServeOptions:
    """Options of a server behind Envoy."""
    return replace(
        options,
        repository=repository,
        host="127.0.0.1",
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        extra=(*SERVER_OPTIONS, *options.extra),
    )


def _address(host: str) -> str:
    """The first address of a host, as Envoy takes it.

    Raises:
        ConfigurationError: there is none.
    """
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"host {host!r} has no address; give one of this machine") from error
