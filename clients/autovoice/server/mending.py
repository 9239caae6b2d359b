"""Brings back the models whose backend process died.

Triton 2.51 answers for a model with a dead Python process "Stub process is not healthy" for ever and still
calls the server ready. Loading the model anew mends it: a new process starts, the old instance is let go.
"""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

from autovoice.server.logs import LogRecord

_POLL_SECONDS = 0.5
_LOAD_SECONDS = 120.0
_STUB = "triton_python_backend_stub"


class Mender:
    """A thread that watches the processes below a server.

    Args:
        pid: of the server.
        url: of its HTTP service.
        headers: that model control asks for.
        report: told what happens.

    Attributes:
        mended: how many models were loaded again.
    """

    def __init__(
        self, pid: int, url: str, headers: dict[str, str], report: Callable[[LogRecord], None]
    ) -> None:
        self._pid = pid
        self._url = url
        self._headers = headers
        self._report = report
        self._models: dict[int, str] = {}
        self.mended = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="autovoice-mender", daemon=True)

    def start(self) -> None:
        """Begin to watch; the processes that are there now are known from here on."""
        self._dead_processes()
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()
        self._thread.join(_LOAD_SECONDS)

    def _run(self) -> None:
        suspects: set[int] = set()
        while not self._stopped.wait(_POLL_SECONDS):
            dead = self._dead_processes()
            # Triton collects the processes of models that it unloads itself at once: only who is still a
            # zombie at a second look has died on its own.
            broken = sorted({self._models.pop(pid) for pid in dead & suspects if pid in self._models})
            suspects = dead
            for model in broken:
                self._mend(model)

    def _dead_processes(self) -> set[int]:
        """Zombies among the server's children; remembers which living child serves which model."""
        dead = set()
        for pid in _children(self._pid):
            # A process may end while it is looked at.
            with contextlib.suppress(OSError):
                folder = Path("/proc") / str(pid)
                if (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    dead.add(pid)
                    continue
                arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if arguments[0].endswith(_STUB) and len(arguments) > 1:
                    self._models[pid] = Path(arguments[1]).parents[1].name  # <model>/<version>/<file>
        return dead

    def _mend(self, model: str) -> None:
        self._report(LogRecord("warning", f"a process of model {model} died; the model is loaded again"))
        try:
            # Triton does not load a model whose files are unchanged, unless it is given a config to use.
            with urllib.request.urlopen(f"{self._url}/v2/models/{model}/config", timeout=10) as response:
                config = response.read().decode()
            request = urllib.request.Request(
                f"{self._url}/v2/repository/models/{model}/load",
                data=json.dumps({"parameters": {"config": config}}).encode(),
                headers={"Content-Type": "application/json", **self._headers},
            )
            with urllib.request.urlopen(request, timeout=_LOAD_SECONDS):
                self.mended += 1
        except OSError as error:
            self._report(LogRecord("error", f"model {model} could not be loaded again: {error}"))


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    for file in Path("/proc", str(pid), "task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(map(int, file.read_text().split()))
    return found
