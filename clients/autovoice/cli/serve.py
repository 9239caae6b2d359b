"""`autovoice serve`: a Triton server in the foreground."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, Literal

from autovoice.errors import ConfigurationError
from autovoice.repository.reader import ModelRepository
from autovoice.server.logs import LogRecord
from autovoice.server.options import ServeOptions
from autovoice.server.server import ServerError, TritonServer

API_KEY_VARIABLE = "AUTOVOICE_API_KEY"
CONTROL_KEY_VARIABLE = "AUTOVOICE_CONTROL_KEY"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def read_key(path: Path | None, variable: str) -> str | None:
    """A secret from a file, else from the environment, else None.

    Raises:
        ConfigurationError: when the file cannot be read.
    """
    if path is None:
        return os.environ.get(variable) or None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"key file {path} cannot be read ({error}); give a text file") from error


def serve(options: ServeOptions, *, log_format: Literal["text", "json"]) -> int:
    """Run a server until it is told to stop; progress and log go to stderr, addresses to stdout.

    Returns:
        0 after SIGINT, SIGTERM or SIGHUP.

    Raises:
        ServerError: when it did not start, or ended by itself.
    """
    models = len(ModelRepository(options.repository).names())
    loaded: set[str] = set()

    def on_log(record: LogRecord) -> None:
        model = record.loaded_model
        if model is not None and model not in loaded:
            loaded.add(model)
            _say(f"loaded {model} ({len(loaded)} of {models})", log_format)
        elif record.shown_at(options.log_level):
            print(record.as_json() if log_format == "json" else record.as_text(), file=sys.stderr, flush=True)

    server = TritonServer(options, on_log=on_log)
    stopping = False

    def stop(number: int, frame: Any) -> None:
        nonlocal stopping
        process = server.process
        if process is not None and process.poll() is None:
            # The first signal lets the server finish its requests, the second does not.
            process.send_signal(signal.SIGKILL if stopping else signal.SIGTERM)
        stopping = True

    previous = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        server.start()
        try:
            server.wait_ready()
        except ServerError:
            server.stop()
            if stopping:
                return 0
            raise
        _announce(server.options)
        code = server.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stopping:
        return 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended by itself with exit code {code}"
    raise ServerError(f"tritonserver {how}; its log says why (--log-level info)")


def _announce(options: ServeOptions) -> None:
    print(f"ready: {options.grpc_url} {options.http_url}", flush=True)
    if options.metrics:
        print(f"metrics: {options.metrics_url}", flush=True)


def _say(text: str, log_format: str) -> None:
    line = LogRecord("info", text).as_json() if log_format == "json" else text
    print(line, file=sys.stderr, flush=True)
