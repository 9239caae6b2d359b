"""Speed, start-up, memory and latency of conversions on the CPU: `python benchmarks/pipeline.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import typer
from options import Quick, Repository, Results, Speech
from processes import measure_cold_start, measure_memory, measure_stream
from report import DEFAULT_RESULTS, Aim, Environment, Report, Section, fail, significant, skipped
from speech import SpeechError, find_recordings, load, looped
from timing import cores, time_together
from workload import QUICK, Bench, Workload, load_material
from world import analyse_and_resynthesise, world_missing

from autovoice import (
    ConversionProfile,
    PipelineConfig,
    VoiceConversionError,
    VoiceConversionPipeline,
    save_embedding,
)
from autovoice.config import usable_cores
from autovoice.engines.onnx_session import make_session

PACKAGES = ("autovoice", "onnxruntime", "numpy", "soxr", "soundfile", "pyworld")
STAGES = ("content_encoder", "pitch_extractor", "synthesizer", "converter")
"""The last is the three others in one model, as streams and long sources run them."""

MAX_RTF = 0.04


def measure_conversion(bench: Bench[Workload]) -> None:
    """RTF of every stage and in total beside WORLD's."""
    workload, report = bench.workload, bench.report
    peer = world_missing()
    if peer:
        skipped(report.console, "comparison with WORLD", peer)
    rows = []
    for threads in workload.threads:
        if threads > usable_cores():
            skipped(report.console, f"{threads} threads", f"this process may use {usable_cores()} cores")
            continue
        config = PipelineConfig(repository=bench.repository, device="cpu", threads=threads)
        with cores(threads), VoiceConversionPipeline(config) as pipeline:
            for seconds in workload.lengths_s:
                rows.append(_conversion_row(bench, pipeline, seconds, threads, with_peer=not peer))
    report.add(
        "conversion",
        Section(
            "conversion: RTF per stage and in total",
            rows,
            "Source and output at the models' own rate. RTF = time / audio time, median of the runs; cpu rtf "
            "counts processor time of all threads. world: dio, cheaptrick, d4c and synthesis at 5 ms frames "
            "on the same audio, in turns with ours, on one thread; vs world: ratio of processor times.",
        ),
    )
    single = [row["rtf"] for row in rows if row["threads"] == 1]
    report.aims.append(
        Aim(
            "total RTF, 1 thread, worst length", f"<= {MAX_RTF}", f"{max(single):.4f}", max(single) <= MAX_RTF
        )
    )


def _conversion_row(
    bench: Bench[Workload],
    pipeline: VoiceConversionPipeline,
    seconds: float,
    threads: int,
    *,
    with_peer: bool,
) -> dict[str, float | int]:
    source = bench.source(seconds)
    profiles: list[ConversionProfile] = []

    def ours() -> None:
        profiles.append(
            pipeline.profile_conversion(source, bench.embedding, source_sample_rate=bench.sample_rate)
        )

    calls = {"ours": ours}
    if with_peer and threads == 1:
        calls["world"] = lambda: analyse_and_resynthesise(source, bench.sample_rate)
    times = time_together(calls, bench.workload.repeats)
    stages = stage_medians(profiles[1:])
    row: dict[str, float | int] = {
        "audio_s": seconds,
        "threads": threads,
        "rtf": significant(times["ours"].median / seconds),
        "cpu_rtf": significant(times["ours"].cpu_median / seconds),
    }
    parts = {name: significant(stages[name] / 1e3 / seconds) for name in STAGES if name in stages}
    row |= parts
    row["other"] = significant(times["ours"].median / seconds - sum(parts.values()), 2)
    if "world" in times:
        row["world"] = significant(times["world"].median / seconds)
        # Of processor times: both run on one thread, and other processes disturb these least.
        row["vs_world"] = significant(times["ours"].cpu_median / times["world"].cpu_median)
    return row


def stage_medians(profiles: Sequence[ConversionProfile]) -> dict[str, float]:
    """Milliseconds of every stage; a long source runs the streaming twins of the models, counted as one."""
    merged: list[dict[str, float]] = []
    for profile in profiles:
        stages: dict[str, float] = {}
        for name, milliseconds in profile.stages.items():
            stage = name.removesuffix("_stream")
            stages[stage] = stages.get(stage, 0.0) + milliseconds
        merged.append(stages)
    return {name: float(np.median([stages[name] for stages in merged])) for name in merged[0]}


def measure_other_calls(bench: Bench[Workload]) -> None:
    """What else a service calls, on one thread."""
    seconds, batch = bench.workload.calls_s, 8
    source = bench.source(seconds)
    resampled = looped(load(find_recordings(None, 1)[0], 44100), round(seconds * 44100))
    rate, voice = bench.sample_rate, bench.embedding
    config = PipelineConfig(repository=bench.repository, device="cpu", threads=1, embedding_cache_size=0)
    with cores(1), VoiceConversionPipeline(config) as pipeline:
        calls = {
            "convert, source at 44.1 kHz": lambda: pipeline.convert(
                resampled, voice, source_sample_rate=44100
            ),
            "convert, pitch shift auto": lambda: pipeline.convert(
                source, voice, source_sample_rate=rate, pitch_shift_semitones="auto"
            ),
            f"batch_convert, {batch} sources": lambda: pipeline.batch_convert(
                [source] * batch, voice, source_sample_rates=rate
            ),
            "extract_f0": lambda: pipeline.extract_f0(source, rate),
            "embed": lambda: pipeline.embed(source, rate),
        }
        times = time_together(calls, bench.workload.repeats)
    rows = []
    for name, timing in times.items():
        audio = seconds * (batch if name.startswith("batch") else 1)
        rows.append(
            {
                "call": name,
                "audio_s": audio,
                "ms": significant(timing.median * 1e3),
                "rtf": significant(timing.median / audio),
            }
        )
    bench.report.add("other_calls", Section("other calls, 1 thread", rows, "Median of the runs."))


def weights_of(repository: Path) -> str:
    """The checkpoint that the models were made from, as their files say it."""
    session = make_session(repository / "synthesizer" / "1" / "model.onnx")
    checkpoint = session.get_modelmeta().custom_metadata_map.get("checkpoint_sha256", "unknown")
    return checkpoint if len(checkpoint) < 16 else f"checkpoint sha256 {checkpoint[:12]}"


def main(
    quick: Quick = False,
    repository: Repository = None,
    speech: Speech = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Measures conversions: RTF per stage, cold start, memory, streaming latency."""
    environment = Environment.here(PACKAGES)
    workload = QUICK if quick else Workload()
    try:
        material = load_material(repository, speech)
    except (VoiceConversionError, SpeechError) as error:
        raise typer.Exit(fail(f"benchmark: {error}")) from error
    settings = {
        "quick": quick,
        "family": material.family,
        "weights": weights_of(material.repository),
        "speech": material.origin,
        "lengths_s": workload.lengths_s,
        "threads": workload.threads,
        "repeats": workload.repeats,
    }
    report = Report("pipeline", environment, settings)
    report.print_head()
    with tempfile.TemporaryDirectory(prefix="autovoice-bench-") as folder:
        bench = Bench.over(material, Path(folder), workload, report)
        save_embedding(bench.embedding_file, bench.embedding)
        measure_cold_start(bench)
        measure_conversion(bench)
        measure_other_calls(bench)
        measure_stream(bench)
        measure_memory(bench)
    report.print_aims()
    report.save(results)


if __name__ == "__main__":
    typer.run(main)
