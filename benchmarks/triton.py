"""The real server under load: `python benchmarks/triton.py`.

Starts Triton with the repository, as `autovoice serve` does, and asks: what does it cost over calling the
models in process? How much audio does it convert a second, and how long do requests wait? How many live
streams does it carry? `perf_analyzer` sends requests, `live_streams.py` streams at the pace of real time.
"""

from __future__ import annotations

if __name__ != "__main__":
    # Where this folder is on the path, PyTorch looks here for the compiler of that name.
    raise ImportError("benchmarks/triton.py is a script and not the compiler; run it with python")

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import typer
from options import Quick, Repository, Results, Speech
from perf_analyzer import (
    Load,
    PerfAnalyzer,
    PerfAnalyzerError,
    find_perf_analyzer,
    write_requests,
    write_sequences,
)
from pipeline import weights_of
from report import DEFAULT_RESULTS, Aim, Environment, Report, Section, fail, significant, skipped
from served import observed, serving
from shared_regions import both_ways
from speech import SpeechError
from timing import time_together
from triton_live import MIN_STREAMS, measure_live
from triton_plots import save_plots
from triton_workload import CHUNK_S, OFFLINE, QUICK, STREAM, TritonBench, TritonWorkload
from workload import load_material

from autovoice import PipelineConfig, VoiceConversionError, VoiceConversionPipeline
from autovoice.server.server import TritonServer

PACKAGES = ("autovoice", "nvidia-pytriton", "onnxruntime", "numpy", "grpcio", "tritonclient")
MAX_RATIO, RATIO_LENGTH_S = 1.25, 5.0


def measure_ratio(bench: TritonBench, server: TritonServer) -> None:
    """What a conversion takes over the server, beside the same one in this process."""
    backends = {"in_process": "embedded", "grpc": server.options.grpc_url, "http": server.options.http_url}
    rows = []
    pipelines = {
        name: VoiceConversionPipeline(
            PipelineConfig(
                backend=backend, repository=bench.repository, device="cpu", threads=1, fallback="raise"
            )
        )
        for name, backend in backends.items()
    }
    for seconds in bench.workload.ratio_lengths_s:
        source = bench.source(seconds)

        def convert(pipeline: VoiceConversionPipeline, source: Any = source) -> Callable[[], object]:
            return lambda: pipeline.convert(source, bench.embedding, source_sample_rate=bench.sample_rate)

        times = time_together(
            {name: convert(pipeline) for name, pipeline in pipelines.items()}, bench.workload.ratio_repeats
        )
        row: dict[str, Any] = {"audio_s": seconds}
        row |= {f"{name}_ms": significant(timing.median * 1e3) for name, timing in times.items()}
        for name in ("grpc", "http"):
            row[f"{name}_ratio"] = significant(times[name].median / times["in_process"].median)
        rows.append(row)
    for pipeline in pipelines.values():
        pipeline.close()
    bench.report.add(
        "ratio",
        Section(
            "a conversion over the server beside the same one in process",
            rows,
            "Median of the runs, in turns, through the same pipeline class. One ONNX Runtime thread here and "
            "one for each model of the server; sources beyond 10 s go in blocks through the stream ensemble.",
        ),
    )
    aimed = [row for row in rows if row["audio_s"] == RATIO_LENGTH_S]
    for row in aimed:
        bench.report.aims.append(
            Aim(
                f"gRPC over in process, {RATIO_LENGTH_S:g} s of audio",
                f"<= {MAX_RATIO:g}",
                f"{row['grpc_ratio']:.3f}",
                row["grpc_ratio"] <= MAX_RATIO,
            )
        )


def measure_shared_memory(bench: TritonBench, server: TritonServer) -> None:
    """What a request would gain if its audio went through shared memory."""
    rows = []
    for protocol, url in (("grpc", server.options.grpc_url), ("http", server.options.http_url)):
        for seconds in bench.workload.shared_lengths_s:
            inputs = {"SOURCE_AUDIO": bench.source(seconds), **bench.voice}
            batch = {name: value[np.newaxis] for name, value in inputs.items()}
            with both_ways(protocol, url.partition("://")[2], batch) as (plain, shared):
                np.testing.assert_allclose(shared(), plain(), atol=1e-5)
                times = time_together({"plain": plain, "shared": shared}, bench.workload.ratio_repeats)
            gain = times["plain"].median - times["shared"].median
            rows.append(
                {
                    "protocol": protocol,
                    "audio_s": seconds,
                    "plain_ms": significant(times["plain"].median * 1e3),
                    "shared_ms": significant(times["shared"].median * 1e3),
                    "gain_ms": significant(gain * 1e3, 2),
                    "gain_percent": significant(100 * gain / times["plain"].median, 2),
                }
            )
    bench.report.add(
        "shared_memory",
        Section(
            "system shared memory beside plain messages: one ensemble request",
            rows,
            "tritonclient both times, in turns, median of the runs. Source and result lie in regions that "
            "were made and registered before; writing the source and copying the result out are counted.",
        ),
    )


def measure_load(bench: TritonBench, server: TritonServer, analyzer: PerfAnalyzer) -> None:
    """Throughput and latency of whole utterances, closed loop and open loop."""
    inputs = bench.folder / "requests.json"
    requests = bench.requests()
    write_requests(inputs, requests)
    mean_s = float(np.mean([request["SOURCE_AUDIO"].size for request in requests])) / bench.sample_rate
    rows, stages = [], []

    def measure(load: Load) -> dict[str, Any]:
        row, parts = _measured(bench, server, analyzer, OFFLINE, inputs, load)
        row["audio_s_per_s"] = significant(row["requests_per_s"] * mean_s)
        rows.append(row)
        stages.extend(parts)
        return row

    best = max(measure(Load("concurrency", count))["requests_per_s"] for count in bench.workload.concurrency)
    for share in bench.workload.rates:
        measure(Load("rate", significant(share * best, 2)))
    lengths = sorted(request["SOURCE_AUDIO"].size / bench.sample_rate for request in requests)
    bench.report.add(
        "load",
        Section(
            f"whole utterances over gRPC: {len(lengths)} of {lengths[0]:.1f} to {lengths[-1]:.1f} s, "
            f"{mean_s:.2f} s on average",
            rows,
            "perf_analyzer. concurrency: so many requests under way at any time; rate: so many sent a "
            "second, at random times (Poisson), whatever becomes of them. audio s per s: seconds of audio "
            "converted a second.",
        ),
    )
    _add_stages(bench, "load_stages", "where these requests spent their time", stages)


def measure_sequences(bench: TritonBench, server: TritonServer, analyzer: PerfAnalyzer) -> None:
    """Streams as fast as the server takes them, and in perf_analyzer's own time."""
    inputs = bench.folder / "sequences.json"
    write_sequences(inputs, bench.sequences(2 * max(bench.workload.sequences)))
    rows, stages = [], []
    loads = [Load("concurrency", count) for count in bench.workload.sequences]
    loads.append(Load("rate", MIN_STREAMS / CHUNK_S, MIN_STREAMS))
    for load in loads:
        row, parts = _measured(bench, server, analyzer, STREAM, inputs, load)
        row["streams"] = load.sequences or int(load.value)
        row["audio_s_per_s"] = significant(row["requests_per_s"] * CHUNK_S)
        rows.append(row)
        stages.extend(parts)
    bench.report.add(
        "sequences",
        Section(
            f"streams in chunks of {CHUNK_S * 1e3:g} ms over gRPC",
            rows,
            "perf_analyzer. concurrency: so many streams, each sending a chunk when it has the last one's "
            f"answer; rate: {MIN_STREAMS} streams in turns, {1 / CHUNK_S:g} chunks a second each. Latency "
            "begins when a chunk is sent: those held back look quicker than they were; see the live streams.",
        ),
    )
    _add_stages(bench, "sequence_stages", "where these chunks spent their time", stages)


def _measured(
    bench: TritonBench, server: TritonServer, analyzer: PerfAnalyzer, model: str, inputs: Path, load: Load
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    label = f"{load.kind} {load.value:g}"
    options = server.options
    steps = bench.steps(model)
    with bench.report.console.status(f"{model}: {label}"), observed(options.http_url, steps) as stages:
        made = analyzer.measure(model, options.grpc_url, inputs, load, window_s=bench.workload.window_s)
    row = {
        "load": load.kind,
        "value": load.value,
        "requests_per_s": significant(made.requests_per_s),
        **{f"{name}_ms": significant(getattr(made, f"{name}_ms")) for name in ("p50", "p95", "p99")},
        "failed": stages[0]["failed"] if stages else 0,
    }
    return row, [{"load": label, **stage} for stage in stages]


def _add_stages(bench: TritonBench, name: str, title: str, rows: list[dict[str, Any]]) -> None:
    note = (
        "Triton's own statistics, milliseconds of a request on average; batch: requests that ran together. "
        "Stages of an ensemble take turns; what its total has beyond them went by between them."
    )
    bench.report.add(name, Section(title, rows, note))


def main(
    quick: Quick = False,
    repository: Repository = None,
    speech: Speech = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Measures the server: overhead, throughput, latency under load, live streams."""
    environment = Environment.here(PACKAGES)
    workload = QUICK if quick else TritonWorkload()
    try:
        material = load_material(repository, speech)
    except (VoiceConversionError, SpeechError) as error:
        raise typer.Exit(fail(f"benchmark: {error}")) from error
    analyzer: PerfAnalyzer | None = None
    missing = ""
    try:
        analyzer = find_perf_analyzer()
    except PerfAnalyzerError as error:
        missing = str(error)
    settings = {
        "quick": quick,
        "family": material.family,
        "weights": weights_of(material.repository),
        "speech": material.origin,
        "perf_analyzer": None if analyzer is None else analyzer.version(),
        "repeats": workload.ratio_repeats,
        "windows_s": workload.window_s,
        "live_s": workload.live_s,
    }
    report = Report("triton", environment, settings)
    report.print_head()
    try:
        with tempfile.TemporaryDirectory(prefix="autovoice-bench-") as folder:
            bench = TritonBench.over(material, Path(folder), workload, report)
            with serving(bench.repository) as server:
                measure_ratio(bench, server)
                measure_shared_memory(bench, server)
                if analyzer is None:
                    skipped(report.console, "load and sequences", missing)
                else:
                    measure_load(bench, server, analyzer)
                    measure_sequences(bench, server, analyzer)
            measure_live(bench)
    except (VoiceConversionError, PerfAnalyzerError) as error:
        raise typer.Exit(fail(f"benchmark: {error}")) from error
    report.print_aims()
    save_plots(report, results)
    report.save(results)


if __name__ == "__main__":
    typer.run(main)
