"""How many live streams a server carries, and what it is worth that one model does a chunk's whole work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from live_streams import LiveLoad, play
from report import Aim, Section, significant, skipped
from served import observed, occupied, serving
from timing import cores
from triton_workload import CHUNK_S, STREAM, STREAM_WITH_F0, TritonBench

from autovoice.config import usable_cores
from autovoice.repository.reader import ModelRepository
from autovoice.server.server import TritonServer

MIN_STREAMS = 8
_GIVE_UP_AFTER = 2  # counts in a row that did not hold: one may be another tenant's doing
_NOTE = (
    "One chunk of 20 ms from each stream every 20 ms, streams out of step, each on its own connection. "
    "Latency from when a chunk has been heard to when its conversion is here; the wait before sending "
    "(lateness) is part of it. Counts grow until two in a row have a p99 that is not below the chunk. "
    "others: share of the machine that went to other processes: such a row is worse than it should be. "
    "server cpu: processor time of the server for a chunk, which others hardly change."
)


def measure_live(bench: TritonBench) -> None:
    """Streams at the pace of real time: one model a chunk, three of them, and on a single core."""
    count = usable_cores()
    tables = {
        "live": f"live streams, server and clients together on {count} cores",
        "live_with_f0": "the same with the caller's F0: every chunk goes through three models instead of one",
        "live_one_core": "live streams, the server on one core and the clients on another",
    }
    for name, title in tables.items():
        if name == "live_one_core" and count < 2:
            skipped(bench.report.console, title, "this process may use one core only")
            continue
        rows = _one_core_rows(bench) if name == "live_one_core" else _all_core_rows(bench, name)
        bench.report.add(name, Section(title, rows, _NOTE))
    held = {
        name: streams_held(bench.report.sections[name].rows)
        for name in tables
        if name in bench.report.sections
    }
    rows = [
        {
            "server": tables[name],
            "streams": streams,
            "per_core": streams / (1 if name == "live_one_core" else count),
        }
        for name, streams in held.items()
    ]
    bench.report.add("live_held", Section(f"live streams with p99 below {CHUNK_S * 1e3:g} ms", rows))
    aimed = [row for row in bench.report.sections["live"].rows if row["streams"] == MIN_STREAMS]
    for row in aimed:
        bench.report.aims.append(
            Aim(
                f"p99 of {MIN_STREAMS} live streams on {count} cores",
                f"< {CHUNK_S * 1e3:g} ms",
                f"{row['p99_ms']:.1f} ms",
                bool(row["holds"]),
            )
        )


def _all_core_rows(bench: TritonBench, name: str) -> list[dict[str, Any]]:
    with serving(bench.repository) as server:
        return _rows(bench, server, STREAM_WITH_F0 if name == "live_with_f0" else STREAM)


def _one_core_rows(bench: TritonBench) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        with cores(1):
            server = stack.enter_context(serving(bench.repository))
        with cores(1, first=True):
            return _rows(bench, server)


def _rows(bench: TritonBench, server: TritonServer, model: str = STREAM) -> list[dict[str, Any]]:
    authority = server.options.grpc_url.partition("://")[2]
    voice = {name: value[np.newaxis] for name, value in bench.voice.items()}
    if model == STREAM_WITH_F0:
        frame = ModelRepository(bench.repository).spec(model).integer_parameter("frame_samples")
        voice["SOURCE_F0"] = np.full((1, round(CHUNK_S * bench.sample_rate) // frame), 120.0, np.float32)
    steps = bench.steps(model)
    rows: list[dict[str, Any]] = []
    for streams in bench.workload.live:
        load = LiveLoad(streams, CHUNK_S, bench.workload.live_s, model=model)
        with (
            bench.report.console.status(f"{streams} live streams"),
            observed(server.options.http_url, steps) as stages,
            occupied(server) as occupation,
        ):
            result = play(authority, load, bench.speech, bench.sample_rate, voice)
        row = live_row(streams, result.latencies_s, result.lateness_s, result.failures, stages)
        row["others_percent"] = round(100 * occupation.others, 1)
        if stages:
            row["server_cpu_ms"] = significant(1e3 * occupation.server_s / stages[0]["requests"])
        rows.append(row)
        if not any(row["holds"] for row in rows[-_GIVE_UP_AFTER:]) and len(rows) >= _GIVE_UP_AFTER:
            break
    return rows


def live_row(
    streams: int, latencies_s: Any, lateness_s: Any, failures: int, stages: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The figures of one count of streams.

    Args:
        streams: how many.
        latencies_s: of every chunk.
        lateness_s: of every chunk.
        failures: streams that did not reach their end.
        stages: what the server says, the ensemble first.
    """
    latencies = 1e3 * latencies_s
    p50, p95, p99 = (round(float(value), 2) for value in np.percentile(latencies, (50, 95, 99)))
    return {
        "streams": streams,
        "chunks": latencies.size,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "max_ms": round(float(latencies.max()), 2),
        "late_percent": significant(float(np.mean(latencies >= CHUNK_S * 1e3)) * 100),
        "lateness_p99_ms": round(float(np.percentile(lateness_s, 99)) * 1e3, 2),
        "server_ms": stages[0]["total_ms"],
        "batch": max(stage["batch"] or 0.0 for stage in stages),
        "failed_streams": failures,
        "holds": p99 < CHUNK_S * 1e3 and not failures,
    }


def streams_held(rows: Sequence[Any]) -> int:
    """The highest number of streams that held, 0 for none."""
    return max((int(row["streams"]) for row in rows if row["holds"]), default=0)
