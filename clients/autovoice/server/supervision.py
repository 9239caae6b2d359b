"""Starts a server again when it ends by itself, as Triton 2.51 does on some malformed requests."""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from autovoice.server.logs import LogRecord
from autovoice.server.options import ServeOptions
from autovoice.server.server import ServerError, TritonServer

RESTARTS = 5
"""How often a server is started again that serves less than `SERVED_SECONDS` in all in between."""
SERVED_SECONDS = 60.0
_PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    """One server after the other at the same ports, with the models that were loaded, until told to stop.

    The live sequences of a server that ended are lost.

    Args:
        options: what to serve and how. Ports that are 0 are chosen once.
        on_ready: called with the options in use whenever a server is ready.
        on_log: called with every line of the servers' logs, from a thread.
        cache: where the backend directory lies; see `backend_directory`.
    """

    def __init__(
        self,
        options: ServeOptions,
        *,
        on_ready: Callable[[ServeOptions], None],
        on_log: Callable[[LogRecord], None],
        cache: Path | None = None,
    ) -> None:
        self._on_ready = on_ready
        self._on_log = on_log
        self._cache = cache
        self._told = False
        self._was_ready = False
        self._server = TritonServer(options, on_log=on_log, cache=cache)

    def run(self) -> None:
        """Serve until `terminate` is called.

        Raises:
            ServerError: the first server did not start, or too many ended by themselves.
            RepositoryError: see `TritonServer.start`.
            ConfigurationError: likewise.
        """
        # What a server leaves that was killed becomes a child of this process, which then collects it.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        reason = self._serve(first=True)
        served: deque[float] = deque(maxlen=RESTARTS)  # seconds of each server that was started again
        while not self._told:
            if len(served) == RESTARTS and sum(served) < SERVED_SECONDS:
                raise ServerError(
                    f"tritonserver ended by itself again and again and is given up after {RESTARTS} "
                    f"restarts; the last time: {reason}; its log says more (--log-level verbose)"
                )
            text = f"tritonserver ended by itself: {reason}; live sequences are lost; it is started again"
            self._on_log(LogRecord("error", text))
            former = self._server
            self._server = TritonServer(
                former.options, on_log=self._on_log, cache=self._cache, models=former.models
            )
            if self._told:  # which only the former server has heard
                return
            begun = time.monotonic()
            reason = self._serve()
            served.append(time.monotonic() - begun)

    @property
    def options(self) -> ServeOptions:
        """What is served and how, with the ports in use."""
        return self._server.options

    @property
    def is_ready(self) -> bool:
        """Whether a server is there that was ready and has not ended."""
        process = self._server.process
        return self._was_ready and process is not None and process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the server's process, None before the first was started."""
        process = self._server.process
        return None if process is None else process.pid

    def terminate(self) -> None:
        """Tell the server to end, and start no other; see `TritonServer.terminate`."""
        self._told = True
        self._server.terminate()

    def _serve(self, *, first: bool = False) -> str:
        """Run one server to its end; returns how it ended."""
        try:
            with self._server as server:
                self._was_ready = True
                self._on_ready(server.options)
                server.wait()
                return server.ending
        except ServerError as error:
            if first and not self._told:
                raise
            return str(error)
        finally:
            self._was_ready = False
