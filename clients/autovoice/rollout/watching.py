"""Watches candidates by the alerts of Prometheus, which scrapes Envoy and the servers of all releases."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import urllib3

from autovoice.atomic import atomic_path
from autovoice.errors import ConfigurationError
from autovoice.rollout.state import RolloutState, ServerEntry, Service
from autovoice.server.children import end_with_parent
from autovoice.server.logs import LogRecord
from autovoice.server.options import free_ports

FOLDER = "prometheus"
CONFIG, RULES = "prometheus.yml", "rules.yml"
ENVOY_TARGETS, TRITON_TARGETS = "envoy.json", "triton.json"
LOG = "log/prometheus.log"
SERVER_OPTIONS = ("--metrics-config=summary_latencies=true",)
"""What servers of releases are started with, so that they tell the quantiles which the rules compare."""

_RETENTION = "6h"
_ASK_SECONDS = 0.5
_RESTART_SECONDS = 5.0


def targets(state: RolloutState, servers: Mapping[int, ServerEntry], service: Service) -> dict[str, Any]:
    """What Prometheus is to scrape, by the names of its target files.

    Args:
        state: which release is stable and which a candidate.
        servers: that run, by their release.
        service: where Envoy's statistics are.
    """
    roles = {state.stable: "stable", state.candidate: "candidate"}
    return {
        ENVOY_TARGETS: [{"targets": [f"127.0.0.1:{service.metrics}"]}],
        TRITON_TARGETS: [
            {
                "targets": [f"127.0.0.1:{entry.metrics}"],
                "labels": {"release": str(number), "role": roles.get(number, "former")},
            }
            for number, entry in sorted(servers.items())
        ],
    }


def open_watcher(
    folder: Path, url: str | None, on_log: Callable[[LogRecord], None]
) -> PrometheusWatcher | None:
    """The watcher of a rollout folder, None with a warning where there is no Prometheus.

    Args:
        folder: the rollout folder.
        url: of a Prometheus that has the configuration in the folder; None to start the one on PATH.
        on_log: called with lines for the log.

    Raises:
        ConfigurationError: the address is none of HTTP.
    """
    if url is not None:
        parsed = urllib3.util.parse_url(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigurationError(f"--prometheus {url!r} is no address; give one as http://localhost:9090")
        return PrometheusWatcher(folder, on_log, url=url)
    program = shutil.which("prometheus")
    if program is None:
        text = (
            "automatic rollback is off: no prometheus on PATH; install it, or name one with --prometheus URL"
        )
        on_log(LogRecord("warning", text))
        return None
    return PrometheusWatcher(folder, on_log, program=program)


class PrometheusWatcher:
    """Asks a Prometheus for the alerts of a candidate, and tells it what to scrape.

    A Prometheus that cannot be asked is said once in the log and ends no service.

    Args:
        folder: the rollout folder; configuration, targets and measurements lie in its folder `prometheus`.
        on_log: called with lines for the log.
        url: of a Prometheus that runs.
        program: the `prometheus` to start where `url` is None.

    Attributes:
        url: of the Prometheus.
    """

    def __init__(
        self,
        folder: Path,
        on_log: Callable[[LogRecord], None],
        *,
        url: str | None = None,
        program: str | None = None,
    ) -> None:
        self._folder = folder
        self._on_log = on_log
        self._program = program if url is None else None
        self.url = url or f"http://127.0.0.1:{free_ports('127.0.0.1', 1)[0]}"
        self._http = urllib3.PoolManager(timeout=_ASK_SECONDS, retries=False)
        self._process: subprocess.Popen[bytes] | None = None
        self._start_again = 0.0
        self._was_reached = False
        self._is_missing = False

    def update(self, state: RolloutState, servers: Mapping[int, ServerEntry], service: Service) -> None:
        """Tell Prometheus what to scrape; it follows the files by itself."""
        folder = self._folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, RULES):
            text = resources.files(__package__).joinpath(f"{FOLDER}/{name}").read_text(encoding="utf-8")
            _write(folder / name, text)
        for name, content in targets(state, servers, service).items():
            _write(folder / name, json.dumps(content, indent=1) + "\n")
        self._keep_running()

    def check(self, candidate: int) -> str | None:
        """Why a candidate has to be rolled back: what its alerts say, None where none fires."""
        self._keep_running()
        try:
            answer = self._http.request("GET", f"{self.url.rstrip('/')}/api/v1/alerts")
            if answer.status != 200:
                raise urllib3.exceptions.HTTPError(f"HTTP status {answer.status}")
            alerts = answer.json()["data"]["alerts"]
            firing = [
                alert["annotations"].get("summary") or alert["labels"]["alertname"]
                for alert in alerts
                if alert["state"] == "firing" and alert["labels"].get("release") == str(candidate)
            ]
        except (urllib3.exceptions.HTTPError, ValueError, LookupError, TypeError) as error:
            self._report_missing(error)
            return None
        if self._is_missing:
            self._is_missing = False
            self._report("warning", f"Prometheus at {self.url} answers again; candidates are watched")
        self._was_reached = True
        return "; ".join(sorted(set(firing))) or None

    def close(self) -> None:
        """End the Prometheus that was started here."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_RESTART_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._program = None

    def _report_missing(self, error: Exception) -> None:
        starting = (
            self._program is not None and not self._was_reached and time.monotonic() < self._start_again
        )
        if not self._is_missing and not starting:
            self._is_missing = True
            reason = " ".join(str(error).split())
            text = (
                f"Prometheus at {self.url} cannot be asked ({reason}); no candidate is rolled back by itself"
            )
            self._report("error", text)

    def _keep_running(self) -> None:
        """Start the program, and start it again when it ended, though not at once."""
        if self._program is None or (self._process is not None and self._process.poll() is None):
            return
        now = time.monotonic()
        if now < self._start_again:
            return
        self._start_again = now + _RESTART_SECONDS
        path = self._folder / LOG
        path.parent.mkdir(exist_ok=True)
        command = [
            self._program,
            f"--config.file={FOLDER}/{CONFIG}",
            f"--storage.tsdb.path={FOLDER}/data",
            f"--storage.tsdb.retention.time={_RETENTION}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            "--log.level=warn",
        ]
        try:
            with path.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=end_with_parent(),
                )
        except OSError as error:
            self._program = None
            self._report("error", f"{command[0]} cannot be run ({error.strerror}); automatic rollback is off")

    def _report(self, level: Any, text: str) -> None:
        self._on_log(LogRecord(level, text))


def _write(path: Path, text: str) -> None:
    """Write a file whole, unless it says so already."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
