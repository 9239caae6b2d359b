"""`autovoice serve` as processes, and what belongs to them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from triton_calls import PATIENCE

ANY_PORT = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


def autovoice(*arguments: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "autovoice", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def serve(repository: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return autovoice("serve", "--repository", str(repository), *ANY_PORT, *arguments, environment=environment)


def end(process: subprocess.Popen[str]) -> str:
    """End a `serve` that has nothing to finish; returns its log."""
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    return process.communicate(timeout=PATIENCE)[1]


def servers() -> set[int]:
    """Living processes of servers and their backends on this machine."""
    found = set()
    for process in psutil.process_iter(["name", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and process.info["name"].startswith("triton"):
            found.add(process.pid)
    return found


def ended(pids: set[int]) -> bool:
    return not pids & servers()


def family(pid: int) -> set[int]:
    return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
