"""What only a process of its own shows: cold start, peak memory, a stream at the pace of real time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from report import Aim, Section, significant
from workload import Bench, Workload

from autovoice import write_audio

CHILD = Path(__file__).resolve().parent / "fresh_process.py"

MAX_COLD_START_S = 2.0
MAX_MEMORY_MB = 500
MAX_MEMORY_GROWTH = 1.05


def measure_cold_start(bench: Bench[Workload]) -> None:
    """From starting a process to one converted second, through the API and through the command line."""
    source = bench.source_file(1)
    output = bench.folder / "cold.wav"
    voice, models = str(bench.embedding_file), str(bench.repository)
    api = [sys.executable, str(CHILD), "cold", models, str(source), voice]
    command = [sys.executable, "-m", "autovoice", "convert", str(source), "--target", voice]
    command += ["--output", str(output), "--overwrite", "--device", "cpu", "--repository", models]
    totals: dict[str, list[float]] = {"api": [], "cli": []}
    steps: list[dict[str, float]] = []
    for _ in range(bench.workload.cold_starts):
        started = time.perf_counter()
        with subprocess.Popen(api, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            totals["api"].append(time.perf_counter() - started)
        steps.append(json.loads(line))
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        totals["cli"].append(time.perf_counter() - started)
    medians = {name: float(np.median([step[name] for step in steps])) for name in steps[0]}
    rows = [
        {
            "through": name,
            "median_s": significant(float(np.median(values))),
            "worst_s": significant(max(values)),
            **({key: significant(value) for key, value in medians.items()} if name == "api" else {}),
        }
        for name, values in totals.items()
    ]
    bench.report.add(
        "cold_start",
        Section(
            "cold start: process start to one converted second",
            rows,
            f"{bench.workload.cold_starts} processes in turns, default threads, files in the page cache, "
            "voice from a .npy file. The command line is timed to its exit, with the result on disk.",
        ),
    )
    worst = max(row["median_s"] for row in rows)
    bench.report.aims.append(
        Aim(
            "cold start, the slower of the two",
            f"< {MAX_COLD_START_S:g} s",
            f"{worst:.2f} s",
            worst < MAX_COLD_START_S,
        )
    )


def measure_memory(bench: Bench[Workload]) -> None:
    """Peak memory of converting files, each in its own process."""
    rows = []
    for seconds in bench.workload.memory_lengths_s:
        file = bench.source_file(seconds)
        with bench.report.console.status(f"converting a file of {seconds:g} s"):
            command = [sys.executable, str(CHILD), "memory", str(bench.repository), str(file)]
            done = subprocess.run(
                [*command, str(bench.embedding_file)], check=True, capture_output=True, text=True
            )
        file.unlink()
        measured = json.loads(done.stdout)
        rows.append(
            {
                "file_s": seconds,
                "peak_mb": round(measured["peak"] / 1e6, 1),
                "before_conversion_mb": round(measured["before"] / 1e6, 1),
                "rtf": significant(measured["rtf"]),
            }
        )
    bench.report.add(
        "memory",
        Section(
            "peak memory of convert_file, 1 thread",
            rows,
            "The process's own peak resident memory (VmHWM), libraries included. 16-bit WAV in and out.",
        ),
    )
    first, last = rows[0], rows[-1]
    growth = last["peak_mb"] / first["peak_mb"]
    name = f"peak memory, {last['file_s']:g} s file"
    bench.report.aims += [
        Aim(name, f"< {MAX_MEMORY_MB} MB", f"{last['peak_mb']:.0f} MB", last["peak_mb"] < MAX_MEMORY_MB),
        Aim(
            f"{name} against {first['file_s']:g} s",
            f"the same (<= {MAX_MEMORY_GROWTH:g} x)",
            f"{growth:.3f} x",
            growth <= MAX_MEMORY_GROWTH,
        ),
    ]


def measure_stream(bench: Bench[Workload]) -> None:
    """Latency of live chunks, played at the pace of real time by the command line's simulation."""
    source = bench.folder / "stream.wav"
    write_audio(source, bench.source(bench.workload.stream_s), bench.sample_rate)
    rows = []
    for chunk_ms in bench.workload.chunks_ms:
        with bench.report.console.status(
            f"streaming {bench.workload.stream_s:g} s in chunks of {chunk_ms:g} ms"
        ):
            command = [sys.executable, "-m", "autovoice", "stream", "--simulate", str(source)]
            command += ["--target", str(bench.embedding_file), "--chunk-ms", str(chunk_ms), "--json"]
            command += ["--threads", "1", "--device", "cpu", "--repository", str(bench.repository)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        measured = json.loads(done.stdout)
        latency, end_to_end = measured["latency_ms"], measured["end_to_end_ms"]
        rows.append(
            {
                "chunk_ms": chunk_ms,
                "chunks": measured["chunks"],
                **{f"compute_{name}_ms": round(latency[name], 2) for name in ("p50", "p95", "p99", "max")},
                "algorithmic_ms": round(measured["algorithmic_ms"], 2),
                **{f"end_to_end_{name}_ms": round(end_to_end[name], 2) for name in ("p50", "p99")},
                "underruns": measured["underruns"],
                "rtf": significant(measured["rtf"]),
            }
        )
    bench.report.add(
        "stream",
        Section(
            "streaming latency, 1 thread, paced as in real time",
            rows,
            "compute: from a chunk being complete to its output being ready. end to end: from a sample being "
            "heard to its conversion being ready, sound card left out.",
        ),
    )
