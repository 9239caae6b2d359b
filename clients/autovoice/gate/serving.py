"""A server over one release alone, in processes of its own."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType

import psutil

from autovoice.config import PipelineConfig
from autovoice.engines.opening import connect
from autovoice.engines.triton.engine import TritonEngine
from autovoice.server.options import ServeOptions
from autovoice.server.server import ServerError, TritonServer

STARTUP_SECONDS = 120.0


class ServedRelease:
    """A server over a release, on free ports of loopback; a context manager that ends it, and at once.

    Args:
        path: the release's folder.
        startup_seconds: how long it may take to load.
        cache: where the backend directory lies; see `autovoice.server.installation.backend_directory`.
    """

    def __init__(
        self, path: Path, *, startup_seconds: float = STARTUP_SECONDS, cache: Path | None = None
    ) -> None:
        self.path = path
        self._startup_seconds = startup_seconds
        self._cache = cache
        self._server: TritonServer | None = None
        self._engine: TritonEngine | None = None

    def __enter__(self) -> ServedRelease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the server and wait until every model is loaded; does nothing where it runs.

        Raises:
            ServerError: it ended, or took too long.
            RepositoryError, ConfigurationError: see `TritonServer`.
        """
        if self._server is not None:
            return
        options = ServeOptions(
            self.path,
            http_port=0,
            grpc_port=0,
            metrics_port=0,
            metrics=False,
            startup_seconds=self._startup_seconds,
        )
        self._server = TritonServer(options, cache=self._cache)
        try:
            self._server.start()
            self._server.wait_ready()
        except BaseException:
            self.close()
            raise
        self._engine = connect(PipelineConfig(backend=self._server.options.http_url))

    @property
    def engine(self) -> TritonEngine:
        """Runs the models, and tries nothing again.

        Raises:
            ServerError: the server was not started.
        """
        if self._engine is None:
            raise ServerError(f"the server of {self.path} was not started; call start() first")
        return self._engine

    @property
    def ending(self) -> str | None:
        """How the server ended by itself; None while it runs."""
        server = self._server
        if server is None or server.process is None or server.process.poll() is None:
            return None
        return server.ending

    def memory_bytes(self) -> int:
        """Resident memory of the server and of the processes below it."""
        assert self._server is not None
        assert self._server.process is not None
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._server.process.pid)
            for process in (parent, *parent.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
        return total

    def close(self) -> None:
        """Kill the server, which has nothing to finish, and remove what it leaves."""
        server, self._server = self._server, None
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
        if server is not None and server.process is not None:
            server.terminate()
            server.terminate()  # the second time it is killed
            server.wait()
