"""What every command shares: its error line, its tables, and loading the engine so that Ctrl-C can end it."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.table import Table

    from autovoice.results import GpuUse

NATIVE_LIBRARIES = ("av", "onnxruntime", "soundfile", "soxr")
INTERRUPTED = 130  # exit code: 128 + SIGINT, as shells have it
_UNLIMITED = 1_000_000  # columns


def load_engine() -> None:
    """Import the native libraries, with an interrupt held back until they are there.

    A KeyboardInterrupt raised while one of them initialises itself crosses C++ frames: the process aborts and
    leaves what it was writing, or the interrupt is lost. To be called from the main thread.
    """
    pending = False

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal pending
        pending = True

    previous = signal.signal(signal.SIGINT, hold)
    try:
        for name in NATIVE_LIBRARIES:
            importlib.import_module(name)
    finally:
        signal.signal(signal.SIGINT, previous)
    if pending:
        raise KeyboardInterrupt


def shown(text: object) -> str:
    """`text` for a terminal: what cannot be shown there, such as control characters in a name, is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(text)
    )


def report_error(error: BaseException | str) -> None:
    """Write one line on stderr, whatever the length of the message."""
    print("autovoice: " + shown(" ".join(str(error).split())), file=sys.stderr)


def report_warning(warning: object) -> None:
    """Write one line on stderr about something that did not keep the command from its work."""
    report_error(f"warning: {warning}")


def make_table(*headers: str, right: Iterable[str] = ()) -> Table:
    """An empty table whose cells are folded where they do not fit, never cut.

    Args:
        headers: of the columns.
        right: those of numbers, which are aligned on the right.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", overflow="fold")
    return table


def print_table(table: Table, file: TextIO | None = None) -> None:
    """Write a table on stdout, or another file: as wide as the terminal, and one line for each row where
    there is none."""
    from rich.console import Console

    file = sys.stdout if file is None else file
    width = None if file.isatty() else _UNLIMITED
    console = Console(file=file, width=width, markup=False, emoji=False, highlight=False)
    with console.capture() as lines:
        console.print(table)
    print("\n".join(line.rstrip() for line in lines.get().splitlines()), file=file)


def describe_gpu(gpu: GpuUse) -> str:
    """A GPU in one line."""
    from rich.filesize import decimal

    memory = f"{decimal(gpu.memory_used_bytes)} of {decimal(gpu.memory_total_bytes)} in use"
    busy = "" if gpu.use_percent is None else f", {gpu.use_percent} % busy"
    return f"GPU {gpu.number}: {shown(gpu.name)}, {memory}{busy}"
