"""A Triton server as a child process: started, watched until ready, stopped, cleaned up after."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from autovoice.errors import ConfigurationError, InferenceError
from autovoice.repository.plans import plan_arguments
from autovoice.repository.reader import ModelRepository
from autovoice.server.installation import backend_directory, find_installation
from autovoice.server.logs import LogRecord, parse_line
from autovoice.server.mending import Mender
from autovoice.server.options import ServeOptions
from autovoice.server.overrides import write_view

EXIT_SECONDS = 10  # for the requests and the live streams that a stopping server has
_UNLOADING = "All models are stopped, unloading models"
_UNLOAD_SECONDS = 3.0
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
_SHARED_MEMORY = re.compile(r"\btriton_\w+_shm_region_[\w-]+")
_SHELL_SAFE = re.compile(r"[\w@%+=:,./-]+")


class ServerError(InferenceError):
    """The server did not start, or ended by itself."""

    transient = False


class TritonServer:
    """One server process; a context manager that starts it and waits until it is ready.

    Args:
        options: what to serve and how. Ports that are 0 are chosen here.
        on_log: called with every line of the server's log, from a thread.
        cache: where the backend directory lies; see `backend_directory`.

    Attributes:
        options: with the ports in use.
        process: the running server, None before `start`.
    """

    def __init__(
        self,
        options: ServeOptions,
        *,
        on_log: Callable[[LogRecord], None] | None = None,
        cache: Path | None = None,
    ) -> None:
        self.options = options.with_free_ports().closed()
        self.process: subprocess.Popen[str] | None = None
        self._on_log = on_log
        self._cache = cache
        self._reader: threading.Thread | None = None
        self._failures: dict[str, str] = {}
        self._errors: list[str] = []
        self._folder: Path | None = None
        self._mender: Mender | None = None

    def __enter__(self) -> TritonServer:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process; `wait_ready` says when it serves.

        Raises:
            RepositoryError: the repository is missing or empty, or a TensorRT plan of it cannot be served.
            ConfigurationError: there is no server, no place for its backends, or no plugin library.
        """
        repository = ModelRepository(self.options.repository)
        plan_options = plan_arguments(repository, self.options.config_name)
        installation = find_installation()
        backends = backend_directory(installation, self._cache)
        self._folder = Path(tempfile.mkdtemp(prefix="autovoice-serve-"))
        served = self._served_folder(repository)
        if not installation.has_native_backend and not _SHELL_SAFE.fullmatch(str(backends)):
            backends = self._link("backends", backends)
        command = [str(installation.executable), *self.options.arguments(served, backends)]
        command += plan_options
        command.append(f"--exit-timeout-secs={EXIT_SECONDS}")
        self.process = subprocess.Popen(
            command,
            env=installation.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Its own session: a Ctrl-C reaches the server once, through us, and nothing of it outlives it.
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        self._reader = threading.Thread(target=self._read_log, name="tritonserver-log", daemon=True)
        self._reader.start()

    def wait_ready(self) -> None:
        """Wait until every model is loaded.

        Raises:
            ServerError: the server ended, with its own reason, or took too long.
        """
        deadline = time.monotonic() + self.options.startup_seconds
        while not self.is_ready():
            if self._running().poll() is not None:
                raise ServerError(self._reason())
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the server was not ready after {self.options.startup_seconds:g} s; look at its log "
                    "(--log-level info) or give it longer (--startup-timeout)"
                )
            time.sleep(_POLL_SECONDS)
        self._mender = Mender(
            self._running().pid, self.options.http_url, self.options.control_headers(), self._report
        )
        self._mender.start()

    def is_ready(self) -> bool:
        """Whether the server answers and all models are available."""
        try:
            with urllib.request.urlopen(f"{self.options.http_url}/v2/health/ready", timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait(self) -> int:
        """Wait until the server ends, and clean up; returns its exit code, negative for a signal."""
        code = self._running().wait()
        if self._mender is not None:
            self._mender.stop()
        self._clean_up()
        return code

    def stop(self) -> int:
        """End the server: it finishes the requests it has, and is killed when that takes too long."""
        process = self._running()
        if self._mender is not None:
            self._mender.stop()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(EXIT_SECONDS + 15)
            except subprocess.TimeoutExpired:
                process.kill()
        return self.wait()

    def _served_folder(self, repository: ModelRepository) -> Path:
        assert self._folder is not None
        path = repository.path.absolute()
        if self.options.instances is not None or self.options.threads is not None:
            view = self._folder / "repository"
            write_view(repository, view, instances=self.options.instances, threads=self.options.threads)
            return view
        # Triton starts the processes of Python backends through a shell, without quotes.
        return path if _SHELL_SAFE.fullmatch(str(path)) else self._link("repository", path)

    def _link(self, name: str, target: Path) -> Path:
        assert self._folder is not None
        link = self._folder / name
        link.symlink_to(target)
        if not _SHELL_SAFE.fullmatch(str(link)):
            raise ConfigurationError(
                f"Triton cannot use {target} nor the temporary folder {self._folder}; set TMPDIR to a path "
                "without spaces"
            )
        return link

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None:
            raise ServerError("the server was never started; call start() first")
        return self.process

    def _read_log(self) -> None:
        stream = self._running().stdout
        assert stream is not None
        for line in stream:
            record = parse_line(line)
            failed = record.failed_model
            if failed is not None:
                self._failures.setdefault(*failed)
            elif record.level == "error":
                self._errors.append(record.text)
                del self._errors[:-20]
            if line.strip():
                self._report(record)
            if record.text == _UNLOADING and self._mender is not None and self._mender.mended:
                # All requests are answered. Triton would now wait in vain for the process that died.
                threading.Timer(_UNLOAD_SECONDS, self._running().kill).start()

    def _report(self, record: LogRecord) -> None:
        if self._on_log is not None:
            self._on_log(record)

    def _reason(self) -> str:
        if self._reader is not None:
            self._reader.join(5)  # the last lines are the telling ones
        if self._failures:
            return "; ".join(f"model {name} did not load: {why}" for name, why in self._failures.items())
        code = self._running().returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"the server ended with {how}: {self._errors[-1] if self._errors else 'it gave no reason'}"

    def _clean_up(self) -> None:
        # A server that was killed leaves processes of Python backends behind, and their shared memory.
        orphans = _commands_of_group(self._running().pid)
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for command in orphans.values():
            for region in _SHARED_MEMORY.findall(command):
                (Path("/dev/shm") / region).unlink(missing_ok=True)
        if self._reader is not None:
            self._reader.join(5)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _commands_of_group(group: int) -> dict[int, str]:
    """Command lines of the processes of a process group by process id."""
    commands = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        # A process may end while it is looked at.
        with contextlib.suppress(OSError):
            if os.getpgid(int(folder.name)) == group:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                commands[int(folder.name)] = command.decode(errors="replace")
    return commands


def _end_with_parent() -> None:
    """Have the kernel end the server when this process dies without a chance to."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
