"""A Triton server to measure, and what it says of itself: where the time of its requests went."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autovoice.server.options import ServeOptions
from autovoice.server.server import TritonServer

PARTS = ("queue", "compute_input", "compute_infer", "compute_output")

Statistics = Mapping[str, Mapping[str, Any]]


def statistics(http_url: str) -> Statistics:
    """Triton's statistics since it loaded its models, by model."""
    with urllib.request.urlopen(f"{http_url}/v2/models/stats", timeout=10) as response:
        return {entry["name"]: entry for entry in json.load(response)["model_stats"]}


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
        others: share of all its processor time that went to neither this process nor the server, 0 to 1; None
            where the system does not tell.
        server_s: processor time of the server, seconds; likewise.
    """

    others: float | None = None
    server_s: float | None = None


@contextmanager
def occupied(server: TritonServer) -> Iterator[Occupation]:
    """Gives a record that says, after the block, what the server and others did to the machine inside it."""
    measured = Occupation()
    assert server.process is not None
    group = server.process.pid
    begun, before = time.perf_counter(), foreign_seconds(group)
    served = 0.0 if before is None else group_seconds(group)
    yield measured
    after = foreign_seconds(group)
    if before is not None and after is not None:
        spent = (time.perf_counter() - begun) * (os.cpu_count() or 1)
        measured.others = max(after - before, 0.0) / spent
        measured.server_s = group_seconds(group) - served


def foreign_seconds(group: int) -> float | None:
    """Processor time that went to anything but this process and the process group of a server."""
    try:
        user, nice, system, _, _, interrupts, soft, stolen = map(
            int, Path("/proc/stat").read_text().split()[1:9]
        )
    except (OSError, ValueError):
        return None
    total = (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
    return total - group_seconds(group) - time.process_time()


def group_seconds(group: int) -> float:
    """Processor time of the living processes of a group, on Linux."""
    ticks = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):  # it ended while it was looked at
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group:
                    ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _grown(before: Mapping[str, Any], after: Mapping[str, Any], what: str, unit: str) -> int:
    return int(after["inference_stats"][what][unit]) - int(before["inference_stats"][what][unit])


@contextmanager
def observed(http_url: str, models: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Gives a list that holds, after the block, the `stage_rows` of what the server did inside it."""
    rows: list[dict[str, Any]] = []
    before = statistics(http_url)
    yield rows
    rows += stage_rows(before, statistics(http_url), models)
