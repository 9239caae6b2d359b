"""The one server of in-place mode: it loads what is on trial, switches to it, and says so in the state."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from autovoice.errors import UnavailableError, VoiceConversionError
from autovoice.rollout.admission import admit
from autovoice.rollout.in_place import InPlace
from autovoice.rollout.promotion import wait_applied
from autovoice.rollout.state import RolloutFolder, RolloutState, ServerEntry
from autovoice.server.logs import LogRecord
from autovoice.server.options import ServeOptions
from autovoice.server.server import ServerError
from autovoice.server.supervision import Supervisor


class InPlaceServer:
    """A thread with the `Supervisor` of a server that begins with the promoted release alone.

    Args:
        folder: the rollout folder.
        state: what it wants.
        options: of the server; its repository is the view, which is written anew.
        on_log: called with every line for the log, from any thread.
        cache: where the backend directory lies; see `backend_directory`.

    Attributes:
        failure: why the thread ended by itself.
    """

    def __init__(
        self,
        folder: RolloutFolder,
        state: RolloutState,
        options: ServeOptions,
        on_log: Callable[[LogRecord], None],
        cache: Path | None,
    ) -> None:
        self._folder = folder
        self._options = options
        self._on_log = on_log
        self._cache = cache
        self._models = InPlace(
            Path(state.releases),
            options.repository,
            config_name=options.config_name,
            headers=options.control_headers(),
        )
        self._supervisor: Supervisor | None = None
        self._changing = threading.Lock()
        self._promotion: threading.Thread | None = None
        self._loaded: frozenset[int] = frozenset()  # empty until a server that was started answers as wanted
        self._told = False
        self.failure = ""
        self._thread = threading.Thread(target=self._run, args=(state,), name="in-place", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the server runs, starts, or is started again."""
        return self._thread.is_alive()

    def entries(self, state: RolloutState) -> dict[int, ServerEntry]:
        """The server under the number of each release that it holds, empty before it has ports.

        The candidate is ready when it is loaded: its answers, and so its header, come with the switch. The
        former release stays there until another is loaded, so that Envoy keeps its connections.
        """
        supervisor = self._supervisor
        if supervisor is None or state.stable is None:
            return {}
        options = supervisor.options
        loaded = self._loaded if supervisor.is_ready else frozenset()
        entry = ServerEntry(supervisor.pid, options.http_port, options.grpc_port, options.metrics_port)
        return {
            number: replace(entry, ready=number in loaded and number in state.wanted)
            for number in sorted(state.wanted | self._loaded)
        }

    def go_on(self, state: RolloutState) -> None:
        """Begin to promote the candidate where there is one; called again and again."""
        is_busy = self._promotion is not None and self._promotion.is_alive()
        if state.candidate is not None and self._loaded and not is_busy and not self._told:
            self._promotion = threading.Thread(
                target=self._promote, args=(state, state.candidate), name="promotion", daemon=True
            )
            self._promotion.start()

    def terminate(self) -> None:
        """Tell the server to end; a second call kills it."""
        self._told = True
        if self._supervisor is not None:
            self._supervisor.terminate()

    def _run(self, state: RolloutState) -> None:
        assert state.stable is not None
        try:
            admit(state, state.stable)
            self._models.start(state.stable)
            self._supervisor = Supervisor(
                self._options, on_ready=self._take_over, on_log=self._on_log, cache=self._cache
            )
            if not self._told:  # before there was one to tell
                self._supervisor.run()
        except VoiceConversionError as error:
            self.failure = str(error)
        except Exception as error:  # a defect of ours, which must not pass for a server that still starts
            self.failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.failure = self.failure or "its server ended"

    def _take_over(self, options: ServeOptions) -> None:
        """Make sure that a server that was started answers with the promoted release.

        Raises:
            ServerError: it does not.
        """
        with self._changing:
            self._loaded = frozenset()
            try:
                self._restore()
            except VoiceConversionError as error:
                raise ServerError(f"the promoted release cannot be loaded: {error}") from error

    def _restore(self) -> None:
        stable = self._folder.read().stable
        assert stable is not None
        if set(self._models.serving(self._url).values()) != {stable}:
            self._models.add(stable, self._url)
            self._models.switch(stable, self._url)
        self._loaded = frozenset(self._models.resident)

    def _promote(self, state: RolloutState, number: int) -> None:
        with self._changing:
            try:
                admit(state, number)
                self._models.add(number, self._url)
                self._loaded = frozenset(self._models.resident)
                # Envoy has to know the release before clients can name it.
                wait_applied(self._folder, self._folder.set_share(number, 100).serial, number)
                seconds = self._models.switch(number, self._url)
                self._folder.promote(number)
                text = f"release {number} answers after a switch of {1000 * seconds:.0f} ms"
                self._on_log(LogRecord("info", text))
            except VoiceConversionError as error:
                if self._told:  # the next start goes on
                    return
                if self._folder.roll_back(str(error), candidate=number):
                    self._on_log(LogRecord("error", f"release {number} is rolled back: {error}"))
                with suppress(UnavailableError):  # of a server that ended; the next one is restored
                    self._restore()

    @property
    def _url(self) -> str:
        assert self._supervisor is not None
        return self._supervisor.options.http_url
