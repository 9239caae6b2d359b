"""A Triton server to measure, and what it says of itself: where the time of its requests went."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import urllib3

from autovoice.server.options import ServeOptions
from autovoice.server.server import TritonServer

PARTS = ("queue", "compute_input", "compute_infer", "compute_output")

Statistics = Mapping[str, Mapping[str, Any]]


def statistics(http_url: str) -> Statistics:
    """Triton's statistics since it loaded its models, by model."""
    response = urllib3.request("GET", f"{http_url}/v2/models/stats", timeout=10.0, retries=False)
    return {entry["name"]: entry for entry in response.json()["model_stats"]}


@contextmanager
def serving(repository: Path) -> Iterator[TritonServer]:
    """A server on free ports of this machine, as `autovoice serve` starts it."""
    with TritonServer(ServeOptions(repository, http_port=0, grpc_port=0, metrics=False)) as server:
        yield server


def stage_rows(before: Statistics, after: Statistics, models: Sequence[str]) -> list[dict[str, Any]]:
    """Milliseconds of a request in each model that answered between two looks at the statistics.

    Args:
        before: the first look.
        after: the second.
        models: an ensemble, then its stages in their order. The ensemble's total is what its requests took in
            the server; it computes nothing itself, so its parts are left to the rows of its stages.
    """
    ensemble = models[0]
    rows = []
    for model in models:
        earlier, entry = before[model], after[model]
        requests = _grown(earlier, entry, "success", "count")
        if not requests:
            continue
        executions = entry["execution_count"] - earlier["execution_count"]
        batch = (entry["inference_count"] - earlier["inference_count"]) / executions if executions else 0.0
        is_ensemble = model == ensemble
        row: dict[str, Any] = {
            "model": model,
            "requests": requests,
            "failed": _grown(earlier, entry, "fail", "count"),
            "batch": None if is_ensemble else round(batch, 2),
            "total_ms": round(_grown(earlier, entry, "success", "ns") / requests / 1e6, 3),
        }
        for part in PARTS:
            spent = _grown(earlier, entry, part, "ns") / requests / 1e6
            row[f"{part}_ms"] = None if is_ensemble else round(spent, 3)
        rows.append(row)
    return rows


@dataclass
class Occupation:
    """How busy a machine was.

    Attributes:
        others: share of all its processor time that went to neither this process nor the server, 0 to 1.
        server_s: processor time of the server, seconds.
    """

    others: float = 0.0
    server_s: float = 0.0


@contextmanager
def occupied(server: TritonServer) -> Iterator[Occupation]:
    """Gives a record that says, after the block, what the server and others did to the machine inside it."""
    measured = Occupation()
    assert server.process is not None
    group = server.process.pid
    begun, before, served = time.perf_counter(), foreign_seconds(group), group_seconds(group)
    yield measured
    spent = (time.perf_counter() - begun) * (psutil.cpu_count() or 1)
    measured.others = max(foreign_seconds(group) - before, 0.0) / spent
    measured.server_s = group_seconds(group) - served


def foreign_seconds(group: int) -> float:
    """Processor time that went to anything but this process and the process group of a server."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Linux counts the time of guests in that of the user as well.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return sum(times) - idle - guests - group_seconds(group) - time.process_time()


def group_seconds(group: int) -> float:
    """Processor time of the living processes of a group."""
    seconds = 0.0
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it ended while it was looked at
            if os.getpgid(process.pid) == group:
                times = process.cpu_times()
                seconds += times.user + times.system
    return seconds


def _grown(before: Mapping[str, Any], after: Mapping[str, Any], what: str, unit: str) -> int:
    return int(after["inference_stats"][what][unit]) - int(before["inference_stats"][what][unit])


@contextmanager
def observed(http_url: str, models: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Gives a list that holds, after the block, the `stage_rows` of what the server did inside it."""
    rows: list[dict[str, Any]] = []
    before = statistics(http_url)
    yield rows
    rows += stage_rows(before, statistics(http_url), models)
