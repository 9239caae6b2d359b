"""A Triton server as a child process: started, watched until ready, stopped, cleaned up after."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType

import psutil

from autovoice.errors import ConfigurationError, InferenceError, UnavailableError, VoiceConversionError
from autovoice.repository.model_config import ENSEMBLE
from autovoice.repository.plans import plan_arguments
from autovoice.repository.reader import ModelRepository
from autovoice.server import command_line, control
from autovoice.server.children import end_with_parent
from autovoice.server.installation import Installation, backend_directory, find_installation
from autovoice.server.listening import refuse_connections
from autovoice.server.logs import LogRecord, parse_line
from autovoice.server.mending import Mender
from autovoice.server.options import ServeOptions
from autovoice.server.overrides import write_view

logger = logging.getLogger(__name__)

EXIT_SECONDS = 10  # for the requests and the live streams that a stopping server has
KILL_SECONDS = 20.0  # a server that was told to stop is killed after this time
_GIVING_UP = "Exit timeout expired"  # after these words Triton 2.51 exits, crashes, or hangs for ever
_GIVING_UP_SECONDS = 1.0
_UNLOADING = "All models are stopped, unloading models"
_UNLOADING_SECONDS = 3.0
_CRASHES = {signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV}
_POLL_SECONDS = 0.1
_DEATH_SECONDS = 5.0  # how long the kernel may take to end a process that is killed
_SHARED_MEMORY = re.compile(r"\btriton_\w+_shm_region_[\w-]+")
_SHELL_SAFE = re.compile(r"[\w@%+=:,./-]+")


class ServerError(InferenceError):
    """The server did not start, or ended by itself."""

    transient = False


class TritonServer:
    """One server process; a context manager that starts it and waits until it is ready.

    The process ends when this one ends, however that happens.

    Args:
        options: what to serve and how. Ports that are 0 are chosen here.
        on_log: called with every line of the server's log, from a thread.
        cache: where the backend directory lies; see `backend_directory`.
        models: names of those to load, as an earlier server had them: what does not load of them is left out.
            None for all of the repository, each of which has to load.

    Attributes:
        options: with the ports in use.
        process: the running server, None before `start`.
        models: names of the models that are loaded, as far as `wait` has seen; empty before `start`.

    Raises:
        RepositoryError: the repository is missing or empty.
        ConfigurationError: a port is taken, or the host is not this machine.
    """

    def __init__(
        self,
        options: ServeOptions,
        *,
        on_log: Callable[[LogRecord], None] | None = None,
        cache: Path | None = None,
        models: Collection[str] | None = None,
    ) -> None:
        self.options = options.with_free_ports().closed()
        self.process: subprocess.Popen[str] | None = None
        self.models: tuple[str, ...] = () if models is None else tuple(models)
        self._may_leave_out = models is not None
        self._repository = ModelRepository(options.repository)
        self._models_changed = threading.Event()
        self._on_log = on_log
        self._cache = cache
        self._keeper: threading.Thread | None = None
        self._failures: dict[str, str] = {}
        self._errors: list[str] = []
        self._exception = ""
        self._crash: int | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._regions: set[str] = set()
        self._mender: Mender | None = None
        self._ending = False
        self._deadline: float | None = None
        self._refusing = contextlib.ExitStack()

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
            RepositoryError: a TensorRT plan of the repository cannot be served.
            ConfigurationError: there is no server, no place for its backends, or no plugin library.
            ServerError: `terminate` was called before.
        """
        started: Future[subprocess.Popen[str]] = Future()
        try:
            command, environment = self._prepare()
            if self._ending:
                raise ServerError("the server was told to stop before it started")
            self._keeper = threading.Thread(
                target=self._run, args=(command, environment, started), name="tritonserver", daemon=True
            )
            self._keeper.start()
            process = started.result()
        except BaseException:
            if not started.cancel() and started.exception() is None:
                started.result().kill()
                self.wait()
            self._remove_folder()
            raise
        if self._ending:  # `terminate` was called in the meantime and may have seen no process
            self._end(process)

    def wait_ready(self) -> None:
        """Wait until the models are loaded.

        Raises:
            ServerError: the server ended, with its own reason, or took too long.
        """
        deadline = time.monotonic() + self.options.startup_seconds
        while not self.is_ready():
            if self._ending:
                break
            if self._running().poll() is not None:
                raise ServerError(self._reason())
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the server was not ready after {self.options.startup_seconds:g} s; look at its log "
                    "(--log-level info) or give it longer (--startup-timeout)"
                )
            if self._may_leave_out and control.is_ready(self.options.http_url, ()):
                self._leave_out_failed()
            time.sleep(_POLL_SECONDS)
        if self._ending:
            raise ServerError("the server was told to stop while it started")
        self._models_changed.clear()
        self._note_regions(self._processes())
        self._mender = Mender(
            self._running().pid, self.options.http_url, self.options.control_headers(), self._report
        )
        self._mender.start()

    def is_ready(self) -> bool:
        """Whether the server answers and its ensembles are available, or all models where there are none."""
        return control.is_ready(self.options.http_url, self._voices())

    @property
    def ending(self) -> str:
        """How the server ended."""
        code = self._running().returncode
        number = self._crash if self._crash is not None else -code
        if number <= 0:
            return f"exit code {code}"
        name = signal.Signals(number).name
        hint = " perhaps for want of memory" if number == signal.SIGKILL else self._exception
        return f"signal {number} ({', '.join(filter(None, (name, hint.strip())))})"

    def terminate(self) -> None:
        """Tell the server to end, without waiting for it; signal handlers may call this at any time.

        It finishes the requests it has, and `wait` kills it when that takes longer than `KILL_SECONDS`. A
        second call kills it at once. A server that has not started yet will not.
        """
        again, self._ending = self._ending, True
        if self._mender is not None:
            self._mender.paused = True
        process = self.process
        if process is None or process.poll() is not None:
            return
        if again:
            process.kill()
        else:
            self._end(process)

    def _end(self, process: subprocess.Popen[str]) -> None:
        self._deadline = time.monotonic() + KILL_SECONDS
        try:
            self._refusing = refuse_connections(process.pid, self.options.http_port)
        except OSError as error:  # containers may forbid it: new connections are then reset, as Triton does
            logger.info("new connections over HTTP are reset, not refused (%s)", error.strerror or error)
        process.terminate()

    def wait(self) -> int:
        """Wait until the server ends, and clean up; returns its exit code, negative for a signal."""
        process = self._running()
        while (code := process.poll()) is None:
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._deadline = None
                self._report(LogRecord("warning", "the server did not end in time and is killed"))
                process.kill()
            if self._models_changed.is_set() and not self._ending:
                self._note_models()
            time.sleep(_POLL_SECONDS)
        self._clean_up()
        if self._mender is not None:  # the backend processes hold the connection of its last request
            self._mender.stop()
        return code

    def stop(self) -> int:
        """End the server and clean up; returns its exit code. It is killed when it takes too long."""
        if not self._ending:
            self.terminate()
        return self.wait()

    def _prepare(self) -> tuple[list[str], dict[str, str]]:
        """Command line and environment of the server, with everything that they name in place."""
        repository = self._repository
        names = repository.names()
        folders = {entry.name for entry in repository.path.iterdir() if os.path.isdir(entry)}
        if strays := sorted(folders - set(names)):
            text = f"folders without a readable config.pbtxt are ignored: {', '.join(strays)}"
            self._report(LogRecord("warning", text))
        plan_options = plan_arguments(repository, self.options.config_name)
        installation = find_installation()
        try:
            served = self._served_folder(repository)
            backends = self._backends(installation)
        except OSError as error:
            raise ConfigurationError(
                f"the server's temporary folder cannot be made ({error}); free some space or set TMPDIR to "
                "a folder that can be written"
            ) from error
        if not self._may_leave_out:
            self.models = tuple(names)
        arguments = self.options.arguments(
            served, backends, self.models, exit_on_error=not self._may_leave_out
        )
        command = [str(installation.executable), *arguments, *plan_options]
        return [*command, f"--exit-timeout-secs={EXIT_SECONDS}"], installation.environment()

    def _served_folder(self, repository: ModelRepository) -> Path:
        path = repository.path.absolute()
        changes = {name: getattr(self.options, name) for name in ("instances", "threads", "gpus")}
        if any(change is not None for change in changes.values()):
            view = self._temporary("repository")
            write_view(repository, view, **changes)
            return view
        # Triton starts the processes of Python backends through a shell, without quotes.
        return path if _SHELL_SAFE.fullmatch(str(path)) else self._link("repository", path)

    def _backends(self, installation: Installation) -> Path:
        backends = backend_directory(installation, self._cache)
        if installation.has_native_backend or _SHELL_SAFE.fullmatch(str(backends)):
            return backends
        return self._link("backends", backends)

    def _link(self, name: str, target: Path) -> Path:
        link = self._temporary(name)
        link.symlink_to(target)
        return link

    def _temporary(self, name: str) -> Path:
        """A path in a folder that lives as long as the server."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="autovoice-serve-", ignore_cleanup_errors=True)
        path = Path(self._folder.name, name)
        if not _SHELL_SAFE.fullmatch(str(path)):
            raise ConfigurationError(
                f"Triton cannot use the temporary folder {path.parent}; set TMPDIR to a path without spaces"
            )
        return path

    def _run(
        self, command: list[str], environment: Mapping[str, str], started: Future[subprocess.Popen[str]]
    ) -> None:
        """Start the server and read its log until it ends.

        One thread does both: the kernel sends the parent-death signal when the thread ends that started the
        process, so that has to be one which lives as long as the server.
        """
        if not started.set_running_or_notify_cancel():
            return
        try:
            process = self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # Its own session: Ctrl-C reaches it once, through this process, and all of it can be found.
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )
        except OSError as error:
            started.set_exception(
                ConfigurationError(f"{command[0]} cannot be run ({error.strerror}); install it anew")
            )
            return
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(process)
        assert process.stdout is not None
        keys_shown = True
        for line in process.stdout:
            record = parse_line(line)
            self._take_in(record)
            if keys_shown and record.source:  # by its first log line the server has read its command line
                self._hide_keys(process.pid)
                keys_shown = False
        process.wait()

    def _take_in(self, record: LogRecord) -> None:
        failed = record.failed_model
        if failed is not None:
            self._failures.setdefault(*failed)
        elif record.level == "error":
            self._errors.append(record.text)
            del self._errors[:-20]
        if record.text.strip():
            self._report(record)
        if self._crash is None:
            # Unlike the server's last words, those of a process of Python are followed by more of the log.
            self._exception = "" if record.source else record.exception or self._exception
        if record.changes_models:
            self._models_changed.set()
        if record.caught_signal in _CRASHES:
            # Triton would now spend seconds on the symbols of a backtrace, and may hang in that.
            self._crash = record.caught_signal
            self._running().kill()
        if _GIVING_UP in record.text:
            self._deadline = time.monotonic() + _GIVING_UP_SECONDS
        elif record.text == _UNLOADING and self._mender is not None and self._mender.mended:
            # All requests are answered. Triton would now wait in vain for the process that died.
            self._deadline = time.monotonic() + _UNLOADING_SECONDS

    def _hide_keys(self, pid: int) -> None:
        try:
            command_line.hide(pid, filter(None, (self.options.api_key, self.options.control_key)))
        except OSError as error:
            if self._running().poll() is None:
                text = f"the keys stay readable in the server's command line ({error.strerror})"
                self._report(LogRecord("warning", text))

    def _report(self, record: LogRecord) -> None:
        if self._on_log is None:
            return
        try:
            self._on_log(record)
        except Exception:  # the caller's code; the server needs the thread that reads its log
            logger.exception("on_log failed")

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None:
            raise ServerError("the server was never started; call start() first")
        return self.process

    def _reason(self) -> str:
        if self._keeper is not None:
            self._keeper.join(5)  # the last lines are the telling ones
        if self._failures:
            return self._failed()
        why = self._errors[-1] if self._errors else "it gave no reason"
        return f"the server ended with {self.ending}: {why}"

    def _voices(self) -> list[str]:
        """The models that answer for the others."""
        return [name for name in self.models if self._is_ensemble(name)] or list(self.models)

    def _is_ensemble(self, model: str) -> bool:
        try:
            return self._repository.spec(model).kind == ENSEMBLE
        except VoiceConversionError:  # what is wrong with it, Triton says
            return False

    def _note_models(self) -> None:
        self._models_changed.clear()
        with contextlib.suppress(UnavailableError):  # it may be ending
            url, headers = self.options.http_url, self.options.inference_headers()
            self.models = tuple(control.loaded_models(url, headers))

    def _leave_out_failed(self) -> None:
        """Go on without the models that did not load.

        Raises:
            ServerError: nothing did that would be of use.
        """
        wanted, needed = self.models, self._voices()
        self._note_models()
        if not set(needed) & set(self.models):
            self.models = wanted
            raise ServerError(self._failed() or "no model is loaded")
        if missing := sorted(set(wanted) - set(self.models)):
            text = f"the server goes on without {', '.join(missing)}: {self._failed()}"
            self._report(LogRecord("error", text))

    def _failed(self) -> str:
        return "; ".join(f"model {name} did not load: {why}" for name, why in self._failures.items())

    def _clean_up(self) -> None:
        """Remove what a server leaves that was killed: backend processes, their shared memory, our folder."""
        killed = self._processes()
        self._note_regions(killed)
        for process in killed:
            with contextlib.suppress(psutil.Error):  # it may have ended
                process.kill()
        for region in self._regions:
            Path("/dev/shm", region).unlink(missing_ok=True)
        _wait_for(killed, self._running().pid)
        if self._keeper is not None:
            self._keeper.join(5)
        self._refusing.close()
        self._remove_folder()

    def _processes(self) -> list[psutil.Process]:
        """The server's process and those of its backends."""
        group, found = self._running().pid, []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError):  # it may end while it is looked at
                if os.getpgid(process.pid) == group:
                    found.append(process)
        return found

    def _note_regions(self, processes: Sequence[psutil.Process]) -> None:
        """Note the processes' shared memory: one that has ended no longer tells its own."""
        for process in processes:
            with contextlib.suppress(psutil.Error):
                self._regions.update(_SHARED_MEMORY.findall(" ".join(process.cmdline())))

    def _remove_folder(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def _wait_for(killed: list[psutil.Process], group: int) -> None:
    """Wait until a group's processes are gone, whose ports a next server may need, and collect our own."""
    deadline = time.monotonic() + _DEATH_SECONDS
    while any(map(_lives, killed)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS / 10)
    with contextlib.suppress(ChildProcessError):  # until none is left
        while time.monotonic() < deadline:
            # One may be a zombie whose other threads still end; it is not to be collected before they have.
            if os.waitpid(-group, os.WNOHANG)[0] == 0:
                time.sleep(_POLL_SECONDS / 10)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
