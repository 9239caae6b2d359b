"""Brings back the models whose backend process died.

Triton 2.51 answers for a model with a dead Python process "Stub process is not healthy" for ever and still
calls the server ready. Loading the model again mends it: a new process starts, and the old instance goes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from autovoice.errors import UnavailableError
from autovoice.server.control import LOAD_SECONDS, reload_model
from autovoice.server.logs import LogRecord

_POLL_SECONDS = 0.5
_STUB = "triton_python_backend_stub"


class Mender:
    """A thread that watches the processes below a server.

    Args:
        pid: of the server.
        url: of its HTTP service.
        headers: that model control asks for.
        report: called with a line for the log when a model is loaded again.

    Attributes:
        mended: how many models were loaded again.
        paused: whether dead processes are left alone, as those of a server that ends.
    """

    def __init__(
        self, pid: int, url: str, headers: Mapping[str, str], report: Callable[[LogRecord], None]
    ) -> None:
        self._pid = pid
        self._url = url
        self._headers = headers
        self._report = report
        self._models: dict[int, str] = {}
        self.mended = 0
        self.paused = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="autovoice-mender", daemon=True)

    def start(self) -> None:
        """Begin to watch; the processes that are there now are known from here on."""
        self._dead_processes()
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()
        self._thread.join(LOAD_SECONDS)

    def _run(self) -> None:
        suspects: set[int] = set()
        while not self._stopped.wait(_POLL_SECONDS):
            dead = self._dead_processes()
            # Triton collects the processes of models that it unloads itself at once: only who is still a
            # zombie at a second look has died on its own.
            broken = sorted({self._models.pop(pid) for pid in dead & suspects if pid in self._models})
            suspects = dead
            for model in broken:
                if not self.paused:
                    self._mend(model)

    def _dead_processes(self) -> set[int]:
        """Zombies among the server's children; remembers which living child serves which model."""
        dead: set[int] = set()
        try:
            children = psutil.Process(self._pid).children()
        except psutil.NoSuchProcess:
            return dead
        for child in children:
            try:
                if child.status() == psutil.STATUS_ZOMBIE:
                    dead.add(child.pid)
                    continue
                arguments = child.cmdline()
            except psutil.Error:  # it may end while it is looked at
                continue
            if len(arguments) > 1 and arguments[0].endswith(_STUB):
                self._models[child.pid] = Path(arguments[1]).parents[1].name  # <model>/<version>/<file>
        return dead

    def _mend(self, model: str) -> None:
        self._report(LogRecord("warning", f"a process of model {model} died; the model is loaded again"))
        try:
            reload_model(self._url, model, self._headers)
            self.mended += 1
        except UnavailableError as error:
            self._report(LogRecord("error", f"model {model} could not be loaded again: {error}"))
