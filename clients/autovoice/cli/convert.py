"""`autovoice convert`: one file, many files, or folders of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from autovoice.cli.console import load_engine, make_table, print_table, report_error
from autovoice.cli.embed import load_target
from autovoice.cli.options import (
    RESULT,
    ApiKeyFileOption,
    DeviceOption,
    FallbackOption,
    IndexRateOption,
    JsonOption,
    OverwriteOption,
    ProtectOption,
    ProvenanceOption,
    RepositoryOption,
    RetriesOption,
    RmsMixOption,
    ServerOption,
    SkipExistingOption,
    SpeakerOption,
    TargetOption,
    ThreadsOption,
    TimeoutOption,
    TlsCaOption,
    TlsCertificateOption,
    TlsKeyOption,
    VoiceOption,
    parse_pitch_shift,
    pipeline_config,
)
from autovoice.cli.outputs import FilePair, about, pair_files

if TYPE_CHECKING:
    from autovoice import ConversionProfile, FileResult, VoiceConversionError, VoiceConversionPipeline
    from autovoice.conversion import ConversionOptions
    from autovoice.results import FloatArray


@dataclass(frozen=True)
class FileOutcome:
    """The result of one file, or the error that ended it."""

    files: FilePair
    result: FileResult | None = None
    error: VoiceConversionError | None = None

    @property
    def message(self) -> str:
        """What went wrong, naming the file."""
        named = self.files.output.name in str(self.error)
        return str(self.error) if named or self.error is None else about(self.files.source, self.error)


def convert(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE", help="Recordings, or folders to search for wav, flac, ogg, mp3."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="A file for one source (its suffix is the format), a folder for more.",
        ),
    ],
    target: TargetOption = None,
    voice: VoiceOption = None,
    pitch_shift: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Semitones up or down, or auto for the base voice: to the target's median pitch.",
        ),
    ] = "0",
    sample_rate: Annotated[
        int | None, typer.Option(metavar="HZ", help="Rate of the output. Default: the source's.")
    ] = None,
    audio_format: Annotated[
        Literal["wav", "flac", "ogg", "mp3"],
        typer.Option("--format", help="Format of the files in a folder."),
    ] = "wav",
    overwrite: OverwriteOption = False,
    skip_existing: SkipExistingOption = False,
    provenance: ProvenanceOption = True,
    profile: Annotated[
        bool, typer.Option("--profile", help="Report the time of every stage.", rich_help_panel=RESULT)
    ] = False,
    as_json: JsonOption = False,
    speaker: SpeakerOption = None,
    index_rate: IndexRateOption = None,
    protect: ProtectOption = None,
    rms_mix: RmsMixOption = None,
    repository: RepositoryOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    fallback: FallbackOption = "cpu",
    server: ServerOption = None,
    api_key_file: ApiKeyFileOption = None,
    tls_ca: TlsCaOption = None,
    tls_certificate: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
    timeout: TimeoutOption = None,
    retries: RetriesOption = 2,
) -> int:
    """Convert recordings into the target's voice, or into an imported one.

    A file that cannot be converted does not keep the others from it; the exit code is the first failure's.
    """
    from autovoice import VoiceConversionPipeline
    from autovoice.audio.provenance import provenance_tags
    from autovoice.errors import ConfigurationError

    if overwrite and skip_existing:
        raise ConfigurationError("--overwrite and --skip-existing contradict each other; give one of them")
    config = pipeline_config(
        repository=repository,
        voice=voice,
        speaker=speaker,
        index_rate=index_rate,
        protect=protect,
        rms_mix=rms_mix,
        device=device,
        threads=threads,
        fallback=fallback,
        server=server,
        api_key_file=api_key_file,
        tls_ca=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        timeout=timeout,
        retries=retries,
    )
    shift = parse_pitch_shift(pitch_shift)
    existing: Literal["replace", "skip", "refuse"] = (
        "replace" if overwrite else "skip" if skip_existing else "refuse"
    )
    files = pair_files(sources, output, audio_format, existing)
    outcomes: list[FileOutcome] = []
    load_engine()
    with VoiceConversionPipeline(config) as pipeline:
        pipeline.voice.check_shift(shift)
        if files:
            found = load_target(pipeline, target, with_pitch=shift == "auto")
            options: ConversionOptions = {
                "target_median_f0": found.median_f0,
                "output_sample_rate": sample_rate,
                "pitch_shift_semitones": shift,
            }
            tags = provenance_tags() if provenance else None
            outcomes = _convert_all(pipeline, files, found.embedding, tags, options, quiet=as_json)
        used = pipeline.device
    if as_json:
        print(json.dumps(_as_dict(outcomes, used, profile), indent=2))
    else:
        _print(outcomes, profile)
    for outcome in outcomes:
        if outcome.error is not None:
            report_error(outcome.message)
        elif outcome.result is not None and outcome.result.passthrough:
            report_error(f"{outcome.files.output} was NOT converted: it is the level-normalised input")
    return next((outcome.error.exit_code for outcome in outcomes if outcome.error is not None), 0)


def _convert_all(
    pipeline: VoiceConversionPipeline,
    files: Sequence[FilePair],
    embedding: FloatArray | None,
    tags: Mapping[str, str] | None,
    options: ConversionOptions,
    *,
    quiet: bool,
) -> list[FileOutcome]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from autovoice.errors import VoiceConversionError

    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[stage]}", style="dim", markup=False),
    )
    outcomes = []
    with Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        overall = bars.add_task("all files", total=len(files), stage="", visible=len(files) > 1)
        for number, pair in enumerate(files):
            bar = bars.add_task(pair.source.name, total=1.0, stage="")

            def advance(step: Any, bar: Any = bar, number: int = number) -> None:
                bars.update(bar, completed=step.fraction, stage=step.stage)
                bars.update(overall, completed=number + step.fraction)

            try:
                _make_folder(pair.output.parent)
                options["progress_callback"] = advance
                result = pipeline.convert_file(pair.source, pair.output, embedding, tags=tags, **options)
                outcomes.append(FileOutcome(pair, result=result))
            except VoiceConversionError as error:
                outcomes.append(FileOutcome(pair, error=error))
            bars.remove_task(bar)
            bars.update(overall, completed=number + 1)
    return outcomes


def _make_folder(folder: Path) -> None:
    from autovoice.errors import OutputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be created: {error.strerror}; choose another folder") from error


def _as_dict(outcomes: Sequence[FileOutcome], device: str, profile: bool) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for outcome in outcomes:
        entry: dict[str, Any] = {"source": str(outcome.files.source), "output": str(outcome.files.output)}
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
            entry |= {"error": type(outcome.error).__name__, "message": outcome.message}
            errors.append(entry)
    return {"device": device, "results": results, "errors": errors}


def _print(outcomes: Sequence[FileOutcome], profile: bool) -> None:
    done = [outcome.result for outcome in outcomes if outcome.result is not None]
    for result in done:
        print(
            f"{result.output}: {result.samples / result.sample_rate:.2f} s at {result.sample_rate} Hz, "
            f"pitch {result.pitch_shift_semitones:+.1f} semitones, RTF {result.profile.rtf:.3f}"
        )
        if profile:
            _print_profile(result.profile)
    if len(outcomes) != 1:
        failed = len(outcomes) - len(done)
        seconds = sum(result.samples / result.sample_rate for result in done)
        print(f"{len(done)} converted ({seconds:.1f} s of audio), {failed} failed")


def _print_profile(profile: ConversionProfile) -> None:
    numbers = ("ms", "share", "RTF")
    table = make_table("stage", *numbers, right=numbers)
    seconds = profile.audio_duration_s
    for stage, milliseconds in {**profile.stages, f"total on {profile.device}": profile.total_ms}.items():
        share = f"{100 * milliseconds / profile.total_ms:.0f} %" if profile.total_ms else ""
        table.add_row(stage, f"{milliseconds:.1f}", share, f"{milliseconds / 1000 / seconds:.4f}")
    print_table(table)
