"""Keeps secrets of a process's command line from the other users of the machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

# Where a process's arguments lie in its memory: index among the fields of /proc/PID/stat after the name.
_ARGUMENTS_START = 45


def hide(pid: int, secrets: Iterable[str]) -> None:
    """Overwrite secrets in the command line of a child process that has read it.

    `/proc/PID/cmdline` shows every user the memory in which a process keeps its arguments.

    Args:
        pid: of the process, which has copied what it needs.
        secrets: texts that are replaced by as many asterisks.

    Raises:
        OSError: the process ended, or the kernel lets nobody write to its memory.
    """
    folder = Path("/proc", str(pid))
    arguments = (folder / "cmdline").read_bytes()
    start = int((folder / "stat").read_text().rpartition(")")[2].split()[_ARGUMENTS_START])
    with (folder / "mem").open("r+b", buffering=0) as memory:
        for secret in secrets:
            for found in re.finditer(re.escape(secret.encode()), arguments):
                memory.seek(start + found.start())
                memory.write(b"*" * len(secret))
