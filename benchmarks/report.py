"""What every benchmark prints and writes: hardware, versions, settings, tables, aims; JSON beside them."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pynvml
from rich.console import Console
from rich.table import Table

from autovoice.atomic import atomic_path

FORMAT = 1
ROOT = Path(__file__).resolve().parents[1]
DEFAULT_RESULTS = Path(__file__).resolve().parent / "results"
INSTRUCTION_SETS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Environment:
    """The machine and the software that the figures of a report belong to.

    Attributes:
        cpu: model name, with family, model and stepping where the system gives them (a virtual machine may
            hide the name).
        cores: cores of the machine.
        usable_cores: cores this process may run on.
        instruction_sets: vector extensions of the CPU.
        memory_gb: of the machine, 1e9 bytes.
        gpus: one name for each.
        system: operating system and kernel.
        load: runnable processes per core before the benchmark began, one-minute average; near 0 on an idle
            machine.
        python: version.
        packages: versions of the packages asked for; None where one is not installed.
        commit: of the checkout, with "+" when it holds uncommitted changes; None outside of one.
    """

    cpu: str
    cores: int
    usable_cores: int
    instruction_sets: tuple[str, ...]
    memory_gb: float
    gpus: tuple[str, ...]
    system: str
    load: float
    python: str
    packages: Mapping[str, str | None]
    commit: str | None

    @classmethod
    def here(cls, packages: Sequence[str]) -> Environment:
        """Describes this machine; call it before anything is measured.

        Args:
            packages: distributions whose versions matter to the figures.
        """
        processor = _processor()
        numbers = [
            f"{key} {processor[key]}" for key in ("cpu family", "model", "stepping") if key in processor
        ]
        name = processor.get("model name", platform.processor() or platform.machine())
        flags = set(processor.get("flags", processor.get("Features", "")).split())
        cores = psutil.cpu_count() or 1
        return cls(
            cpu=f"{name} ({', '.join(numbers)})" if numbers else name,
            cores=cores,
            usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
            instruction_sets=tuple(flag for flag in INSTRUCTION_SETS if flag in flags),
            memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
            gpus=_gpus(),
            system=f"{_distribution()}, {platform.system()} {platform.release()}",
            load=round(psutil.getloadavg()[0] / cores, 2),
            python=platform.python_version(),
            packages={name: _version(name) for name in packages},
            commit=_commit(),
        )


@dataclass(frozen=True)
class Aim:
    """A figure that is wanted, beside what was measured.

    Attributes:
        name: what it is about.
        wanted: the limit, in words.
        measured: the figure, in words.
        met: whether it holds.
    """

    name: str
    wanted: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        title: above it.
        rows: one mapping from column to value each; columns are those of all rows in order of appearance.
        note: below it: how the figures came about.
    """

    title: str
    rows: Sequence[Row]
    note: str = ""


@dataclass
class Report:
    """Collects the tables of one run; prints each as it comes and writes all as JSON at the end.

    Attributes:
        benchmark: its name, and that of the JSON file.
        environment: where it runs.
        settings: what the figures depend on besides: lengths, threads, repeats, material.
        console: where tables go.
    """

    benchmark: str
    environment: Environment
    settings: Mapping[str, Any]
    console: Console = field(default_factory=lambda: make_console())
    sections: dict[str, Section] = field(default_factory=dict)
    aims: list[Aim] = field(default_factory=list)

    def print_head(self) -> None:
        """Prints machine, versions and settings."""
        here = self.environment
        lines = {
            "cpu": here.cpu,
            "cores": f"{here.usable_cores} of {here.cores}; {' '.join(here.instruction_sets)}",
            "memory": f"{here.memory_gb} GB",
            "gpu": ", ".join(here.gpus) or "none",
            "system": f"{here.system}, Python {here.python}",
            "load": f"{here.load:.2f} per core before the start",
            "packages": ", ".join(f"{name} {version or 'none'}" for name, version in here.packages.items()),
            "commit": here.commit or "unknown",
            **{name: _plain(value) for name, value in self.settings.items()},
        }
        table = Table(title=f"benchmark: {self.benchmark}", show_header=False, title_justify="left")
        for name, value in lines.items():
            table.add_row(name.replace("_", " "), value)
        self.console.print(table, highlight=False, markup=False)
        if here.load > 0.25:
            self.console.print(
                "[yellow]the machine is not idle: wall-clock figures will be worse than it can do"
            )

    def add(self, name: str, section: Section) -> None:
        """Prints a table and keeps it for the file under `name`."""
        self.sections[name] = section
        columns = list(dict.fromkeys(column for row in section.rows for column in row))
        table = Table(title=section.title, title_justify="left")
        for column in columns:
            text = all(isinstance(row.get(column, ""), str) for row in section.rows)
            table.add_column(column.replace("_", " "), justify="left" if text else "right")
        for row in section.rows:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        self.console.print(table, highlight=False, markup=False)
        if section.note:
            self.console.print(section.note, style="dim", highlight=False, markup=False)

    def print_aims(self) -> None:
        """Prints the aims beside the figures, if there are any."""
        if not self.aims:
            return
        table = Table(title="aims", title_justify="left")
        for column in ("aim", "wanted", "measured", "met"):
            table.add_column(column)
        for aim in self.aims:
            table.add_row(aim.name, aim.wanted, aim.measured, "[green]yes" if aim.met else "[red]no")
        self.console.print(table, highlight=False)

    def to_dict(self) -> dict[str, Any]:
        """The whole report as plain types."""
        return {
            "format": FORMAT,
            "benchmark": self.benchmark,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "environment": asdict(self.environment),
            "settings": dict(self.settings),
            "results": {
                name: {
                    "title": section.title,
                    "note": section.note,
                    "rows": [dict(row) for row in section.rows],
                }
                for name, section in self.sections.items()
            },
            "aims": [asdict(aim) for aim in self.aims],
        }

    def save(self, folder: Path) -> Path:
        """Writes `<benchmark>.json` (`<benchmark>-quick.json` of a quick run) into `folder`.

        Raises:
            OutputError: the file cannot be written.
            ValueError: a figure is NaN or infinite, which JSON cannot hold.
        """
        folder.mkdir(parents=True, exist_ok=True)
        suffix = "-quick" if self.settings.get("quick") else ""
        file = folder / f"{self.benchmark}{suffix}.json"
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        with atomic_path(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
        self.console.print(f"written to {file}", highlight=False, markup=False, soft_wrap=True)
        return file


def make_console() -> Console:
    """A console for wide tables: as wide as the terminal, and 160 columns where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def skipped(console: Console, what: str, reason: str) -> None:
    """Says that a part of a benchmark is left out, and why."""
    console.print(
        f"left out: {what}: {reason}", style="yellow", highlight=False, markup=False, soft_wrap=True
    )


def significant(value: float, digits: int = 3) -> float:
    """Rounds to significant digits, so that files do not pretend to more than was measured."""
    if value == 0 or not math.isfinite(value):
        return value
    return float(f"{value:.{digits}g}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.5f}"
    return str(value)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    return _cell(value)


def _processor() -> dict[str, str]:
    """What /proc/cpuinfo says of the first core, which psutil does not tell; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.platform(terse=True)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> tuple[str, ...]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        return ()
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        names = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory_gb = pynvml.nvmlDeviceGetMemoryInfo(device).total / 1e9
            names.append(f"{pynvml.nvmlDeviceGetName(device)}, {memory_gb:.0f} GB, driver {driver}")
        return tuple(names)
    finally:
        pynvml.nvmlShutdown()


def _commit() -> str | None:
    head = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    return head[0] + ("+" if _output("git", "-C", str(ROOT), "status", "--porcelain", "-uno") else "")


def _output(*command: str) -> list[str]:
    """Lines a command prints; none when it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def fail(message: str) -> int:
    """Prints one line to standard error and returns the exit code of a user's mistake."""
    print(message, file=sys.stderr)
    return 2
