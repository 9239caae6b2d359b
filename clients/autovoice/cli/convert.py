"""`autovoice convert`: one file, many files, or folders of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from autovoice import (
    ConversionProfile,
    FileResult,
    PipelineConfig,
    VoiceConversionError,
    VoiceConversionPipeline,
)
from autovoice.audio.provenance import provenance_tags
from autovoice.cli.console import load_engine, report_error
from autovoice.cli.embed import Voice, load_voice
from autovoice.cli.outputs import Existing, Job, about, plan_jobs
from autovoice.errors import OutputError, PitchError


@dataclass(frozen=True)
class Conversion:
    """What the command line asked for; the fields are its options."""

    sources: tuple[Path, ...]
    target: Path | None
    output: Path
    pitch_shift: str
    sample_rate: int | None
    audio_format: str
    existing: Existing
    provenance: bool
    config: PipelineConfig


@dataclass(frozen=True)
class Outcome:
    """One job's result, or the error that ended it."""

    job: Job
    result: FileResult | None
    error: VoiceConversionError | None


def convert_files(request: Conversion, *, profile: bool, as_json: bool) -> int:
    """Convert every source and report.

    A file that cannot be converted does not keep the others from it; the exit code is the first failure's.
    """
    shift = parse_pitch_shift(request.pitch_shift)
    jobs = plan_jobs(request.sources, request.output, request.audio_format, request.existing)
    outcomes: list[Outcome] = []
    load_engine()
    with VoiceConversionPipeline(request.config) as pipeline:
        pipeline.voice.check_shift(shift)
        if jobs:
            voice = load_voice(pipeline, request.target, with_pitch=shift == "auto")
            outcomes = _convert_all(pipeline, jobs, voice, shift, request, quiet=as_json)
        device = pipeline.device
    if as_json:
        print(json.dumps(_as_dict(outcomes, device, profile), indent=2))
    else:
        _print(outcomes, profile)
    for outcome in outcomes:
        if outcome.error is not None:
            report_error(_sentence(outcome.job, outcome.error))
        elif outcome.result is not None and outcome.result.passthrough:
            report_error(f"{outcome.job.output} was NOT converted: it is the level-normalised input")
    return next((outcome.error.exit_code for outcome in outcomes if outcome.error is not None), 0)


def parse_pitch_shift(text: str) -> float | Literal["auto"]:
    """Read `--pitch-shift`: a number of semitones or `auto`.

    Raises:
        PitchError: it is neither. The range is the pipeline's to check.
    """
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise PitchError(f"--pitch-shift {text!r} is neither a number of semitones nor auto") from None


def _convert_all(
    pipeline: VoiceConversionPipeline,
    jobs: Sequence[Job],
    voice: Voice,
    shift: float | Literal["auto"],
    request: Conversion,
    *,
    quiet: bool,
) -> list[Outcome]:
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[stage]}"),
    )
    outcomes = []
    with Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        overall = bars.add_task("all files", total=len(jobs), stage="", visible=len(jobs) > 1)
        for number, job in enumerate(jobs):
            bar = bars.add_task(job.source.name, total=1.0, stage="")

            def advance(step: Any, bar: Any = bar, number: int = number) -> None:
                bars.update(bar, completed=step.fraction, stage=step.stage)
                bars.update(overall, completed=number + step.fraction)

            try:
                job.output.parent.mkdir(parents=True, exist_ok=True)
                result = pipeline.convert_file(
                    job.source,
                    job.output,
                    voice.embedding,
                    output_sample_rate=request.sample_rate,
                    pitch_shift_semitones=shift,
                    target_median_f0=voice.median_f0,
                    tags=provenance_tags() if request.provenance else None,
                    progress_callback=advance,
                )
                outcomes.append(Outcome(job, result, None))
            except OSError as error:
                outcomes.append(
                    Outcome(
                        job, None, OutputError(f"{job.output.parent} cannot be created: {error.strerror}")
                    )
                )
            except VoiceConversionError as error:
                outcomes.append(Outcome(job, None, error))
            bars.remove_task(bar)
            bars.update(overall, completed=number + 1)
    return outcomes


def _sentence(job: Job, error: VoiceConversionError) -> str:
    return str(error) if job.output.name in str(error) else about(job.source, error)


def _as_dict(outcomes: Sequence[Outcome], device: str, profile: bool) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for outcome in outcomes:
        entry: dict[str, Any] = {"source": str(outcome.job.source), "output": str(outcome.job.output)}
        if outcome.result is not None:
            result = outcome.result
            entry |= {
                "sample_rate": result.sample_rate,
                "samples": result.samples,
                "duration_s": result.samples / result.sample_rate,
                "pitch_shift_semitones": result.pitch_shift_semitones,
                "passthrough": result.passthrough,
                "rtf": result.profile.rtf,
            }
            if profile:
                entry["profile"] = result.profile.to_dict()
            results.append(entry)
        elif outcome.error is not None:
            entry |= {"error": type(outcome.error).__name__, "message": _sentence(outcome.job, outcome.error)}
            errors.append(entry)
    return {"device": device, "results": results, "errors": errors}


def _print(outcomes: Sequence[Outcome], profile: bool) -> None:
    console = Console()
    done = [outcome.result for outcome in outcomes if outcome.result is not None]
    for result in done:
        line = (
            f"{result.output}: {result.samples / result.sample_rate:.2f} s at {result.sample_rate} Hz, "
            f"pitch {result.pitch_shift_semitones:+.1f} semitones, RTF {result.profile.rtf:.3f}"
        )
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        if profile:
            console.print(_profile_table(result.profile))
    if len(outcomes) != 1:
        failed = len(outcomes) - len(done)
        seconds = sum(result.samples / result.sample_rate for result in done)
        console.print(f"{len(done)} converted ({seconds:.1f} s of audio), {failed} failed", highlight=False)


def _profile_table(profile: ConversionProfile) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stage")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    table.add_column("RTF", justify="right")
    seconds = profile.audio_duration_s
    stages: Mapping[str, float] = {**profile.stages, f"total on {profile.device}": profile.total_ms}
    for stage, milliseconds in stages.items():
        share = f"{100 * milliseconds / profile.total_ms:.0f} %" if profile.total_ms else ""
        table.add_row(stage, f"{milliseconds:.1f}", share, f"{milliseconds / 1000 / seconds:.4f}")
    return table
