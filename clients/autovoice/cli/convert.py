"""`autovoice convert`: one file, many files, or folders of them."""

from __future__ import annotations

import json
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from autovoice.cli.console import (
    INTERRUPTED,
    describe_gpu,
    load_engine,
    make_table,
    print_table,
    report_error,
    report_warning,
    shown,
)
from autovoice.cli.embed import load_target
from autovoice.cli.options import (
    ENGINE,
    RESULT,
    ApiKeyFileOption,
    ChannelOption,
    DeviceOption,
    FallbackOption,
    IndexRateOption,
    InputFormatOption,
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
    StrictOption,
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
from autovoice.cli.outputs import STANDARD_INPUT, STANDARD_OUTPUTS, FilePair, Skipped, about, pair_files

if TYPE_CHECKING:
    from autovoice import ConversionProfile, FileResult, VoiceConversionError
    from autovoice.results import OperatorTime

MOST_COSTLY = 15  # rows of each table of operators
SUBTYPES = {"16": "PCM_16", "24": "PCM_24", "32": "PCM_32", "float": "FLOAT"}


@dataclass
class FileOutcome:
    """The result of one file, or the error that ended it; neither where it was not converted."""

    files: FilePair
    result: FileResult | None = None
    error: VoiceConversionError | None = None

    def convert(
        self,
        convert_one: Callable[[FilePair, Callable[[Any], None]], FileResult],
        advance: Callable[[Any], None],
    ) -> None:
        """Convert the file and keep how that ended."""
        from autovoice.errors import VoiceConversionError

        try:
            self.result = convert_one(self.files, advance)
        except VoiceConversionError as error:
            self.error = error
        except _StoppedError:
            pass

    @property
    def message(self) -> str:
        """What went wrong, naming the file."""
        named = self.files.output.name in str(self.error)
        return str(self.error) if named or self.error is None else about(self.files.source, self.error)


def convert(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE", help="Recordings of any kind, or folders to search for them."),
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
        Literal["wav", "flac", "ogg", "opus", "mp3", "m4a"] | None,
        typer.Option(
            "--format",
            "--output-format",
            help="Format of the output. Default: its suffix; in a folder and on standard output, wav.",
        ),
    ] = None,
    bit_depth: Annotated[
        Literal["16", "24", "32", "float"] | None,
        typer.Option(help="Bits of a sample, for wav and flac. Default: 16.", rich_help_panel=RESULT),
    ] = None,
    copy_tags: Annotated[
        bool,
        typer.Option(
            "--copy-tags", help="Give the output the source's title and artist.", rich_help_panel=RESULT
        ),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Files converted at once. Default: one on each device.",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    channel: ChannelOption = "mix",
    input_format: InputFormatOption = None,
    strict: StrictOption = False,
    overwrite: OverwriteOption = False,
    skip_existing: SkipExistingOption = False,
    provenance: ProvenanceOption = True,
    profile: Annotated[
        bool, typer.Option("--profile", help="Report the time of every stage.", rich_help_panel=RESULT)
    ] = False,
    profile_operators: Annotated[
        bool,
        typer.Option(
            "--profile-operators", help="Report on stderr which operators cost most.", rich_help_panel=RESULT
        ),
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

    A source of - is standard input, an output of - standard output. A file that cannot be converted does not
    keep the others from it; the exit code then is 1.
    """
    from autovoice import VoiceConversionPipeline
    from autovoice.audio.provenance import provenance_tags
    from autovoice.engines.gpus import gpu_uses
    from autovoice.errors import ConfigurationError

    if as_json and str(output) in STANDARD_OUTPUTS:
        raise ConfigurationError(f"--json and -o {output} both write to standard output; give one of them")
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
    load_engine()
    found = pair_files(sources, output, audio_format, existing, () if target is None else (target,))
    batch = Batch([FileOutcome(pair) for pair in found.pairs])
    with VoiceConversionPipeline(config, record_operators=profile_operators) as pipeline:
        pipeline.voice.check_shift(shift)
        if found.pairs:
            voice_found = load_target(pipeline, target, with_pitch=shift == "auto")
            options: dict[str, Any] = {
                "target_median_f0": voice_found.median_f0,
                "output_sample_rate": sample_rate,
                "pitch_shift_semitones": shift,
                "channel": channel,
                "input_format": input_format,
                "strict": strict,
                "output_format": audio_format,
                "subtype": None if bit_depth is None else SUBTYPES[bit_depth],
                "overwrite": overwrite,
                "copy_tags": copy_tags,
                "tags": provenance_tags() if provenance else None,
            }

            def convert_one(files: FilePair, advance: Callable[[Any], None]) -> FileResult:
                if str(files.output) in STANDARD_OUTPUTS:
                    to: Any = sys.stdout.buffer
                else:
                    to = files.output
                    make_folder(to.parent)
                source: Any = sys.stdin.buffer if files.source == STANDARD_INPUT else files.source
                return pipeline.convert_file(
                    source, to, voice_found.embedding, progress_callback=advance, **options
                )

            batch.run(convert_one, jobs or len(config.devices), quiet=as_json)
        used = ",".join(sorted(pipeline.stats.device_use)) or pipeline.device
        operators = pipeline.operator_times() if profile_operators else ()
    gpus = gpu_uses() if profile else ()
    if as_json:
        report = _as_dict(batch, found.skipped, used, profile)
        if profile:
            report["gpus"] = [asdict(gpu) for gpu in gpus]
        if profile_operators:
            report["operators"] = [asdict(operator) for operator in operators]
        print(json.dumps(report, indent=2))
    else:
        if str(output) not in STANDARD_OUTPUTS:
            _print(batch, found.skipped, profile)
            for gpu in gpus:
                print(describe_gpu(gpu))
        if profile_operators:
            _print_operators(operators)
    return _report(batch, single=len(sources) == 1 and not sources[0].is_dir())


def _report(batch: Batch, *, single: bool) -> int:
    """Write what went wrong on stderr; returns the exit code."""
    failed = [outcome.error for outcome in batch.outcomes if outcome.error is not None]
    for outcome in batch.outcomes:
        if outcome.error is not None:
            report_error(outcome.message)
        if outcome.result is None:
            continue
        for warning in outcome.result.warnings:
            report_warning(warning)
        if outcome.result.passthrough:
            report_error(f"{outcome.files.output} was NOT converted: it is the level-normalised input")
    if batch.interrupted:
        return INTERRUPTED
    if not failed:
        return 0
    return failed[0].exit_code if single else 1


@dataclass
class Batch:
    """Files that are converted, several at once.

    Attributes:
        outcomes: one for each file, which `run` fills in.
        interrupted: whether Ctrl-C ended it before its time.
    """

    outcomes: list[FileOutcome]
    interrupted: bool = False

    def run(
        self,
        convert_one: Callable[[FilePair, Callable[[Any], None]], FileResult],
        jobs: int,
        *,
        quiet: bool,
    ) -> None:
        """Convert every file, at most `jobs` at once, with one progress bar for all."""
        stop = threading.Event()
        shares = [0.0] * len(self.outcomes)
        total = len(self.outcomes)
        name = self.outcomes[0].files.source.name if total == 1 else f"{total} files"
        with _progress(shown(name), total, quiet=quiet) as show:

            def work(number: int) -> None:
                outcome = self.outcomes[number]

                def advance(step: Any) -> None:
                    if stop.is_set():
                        raise _StoppedError
                    shares[number] = step.fraction
                    show(sum(shares), step.stage)

                if not stop.is_set():
                    outcome.convert(convert_one, advance)
                shares[number] = 1.0
                show(sum(shares), "")

            # Interrupts reach the main thread alone, which waits.
            pool = ThreadPoolExecutor(min(jobs, total))
            try:
                for future in [pool.submit(work, number) for number in range(total)]:
                    future.result()
            except KeyboardInterrupt:
                self.interrupted = True
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)


@contextmanager
def _progress(name: str, total: int, *, quiet: bool) -> Iterator[Callable[[float, str], None]]:
    """Show a progress bar on a terminal; yields what takes how many files are done, and the stage."""
    if quiet or not sys.stderr.isatty():
        yield lambda completed, stage: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[stage]}", style="dim", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(name, total=total, stage="")
        yield lambda completed, stage: bars.update(bar, completed=completed, stage=stage)


class _StoppedError(Exception):
    """Ends a conversion whose result nobody wants any more."""


def make_folder(folder: Path) -> None:
    from autovoice.errors import OutputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be created: {error.strerror}; choose another folder") from error


def _as_dict(batch: Batch, skipped: Sequence[Skipped], device: str, profile: bool) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for outcome in batch.outcomes:
        entry: dict[str, Any] = {"source": str(outcome.files.source), "output": str(outcome.files.output)}
        if outcome.result is not None:
            result = outcome.result
            entry |= {
                "sample_rate": result.sample_rate,
                "samples": result.samples,
                "duration_s": result.samples / result.sample_rate,
                "pitch_shift_semitones": result.pitch_shift_semitones,
                "passthrough": result.passthrough,
                "warnings": list(result.warnings),
                "rtf": result.profile.rtf,
            }
            if result.release is not None:
                entry["release"] = result.release
            if profile:
                entry["profile"] = result.profile.to_dict()
            results.append(entry)
        elif outcome.error is not None:
            entry |= {"error": type(outcome.error).__name__, "message": outcome.message}
            errors.append(entry)
    left_out = [{"path": str(each.path), "reason": each.reason} for each in skipped]
    return {
        "device": device,
        "results": results,
        "errors": errors,
        "skipped": left_out,
        "interrupted": batch.interrupted,
    }


def _print(batch: Batch, skipped: Sequence[Skipped], profile: bool) -> None:
    done = [outcome.result for outcome in batch.outcomes if outcome.result is not None]
    for result in done:
        seconds = result.samples / result.sample_rate
        print(
            f"{shown(result.output)}: {seconds:.2f} s at {result.sample_rate} Hz, "
            f"pitch {result.pitch_shift_semitones:+.1f} semitones, RTF {result.profile.rtf:.3f}"
        )
        if profile:
            _print_profile(result.profile)
    for each in skipped:
        print(f"{shown(each.path)}: skipped, {shown(each.reason)}")
    if len(batch.outcomes) != 1 or skipped:
        failed = sum(outcome.error is not None for outcome in batch.outcomes)
        left = len(batch.outcomes) - len(done) - failed
        seconds = sum(result.samples / result.sample_rate for result in done)
        print(
            f"{len(done)} converted ({seconds:.1f} s of audio), {failed} failed"
            + (f", {len(skipped)} skipped" if skipped else "")
            + (f", {left} not begun or not finished" if left else "")
        )


def _print_profile(profile: ConversionProfile) -> None:
    numbers = ("ms", "share", "RTF")
    table = make_table("stage", *numbers, right=numbers)
    seconds = profile.audio_duration_s
    for stage, milliseconds in {**profile.stages, f"total on {profile.device}": profile.total_ms}.items():
        share = f"{100 * milliseconds / profile.total_ms:.0f} %" if profile.total_ms else ""
        table.add_row(stage, f"{milliseconds:.1f}", share, f"{milliseconds / 1000 / seconds:.4f}")
    print_table(table)


def _print_operators(operators: Sequence[OperatorTime]) -> None:
    """Write on stderr what types of operators, nodes and kernels of a GPU cost, the most costly first."""
    nodes = [each for each in operators if not each.is_kernel]
    kernels = [each for each in operators if each.is_kernel]
    types: defaultdict[tuple[str, str], list[OperatorTime]] = defaultdict(list)
    for node in nodes:
        types[node.model, node.operator].append(node)
    rows = [
        (key, sum(each.calls for each in members), sum(each.total_ms for each in members))
        for key, members in types.items()
    ]
    _print_costs("operator", rows)
    _print_costs("node", [((each.model, each.name), each.calls, each.total_ms) for each in nodes])
    if kernels:
        _print_costs("kernel", [((each.model, each.name), each.calls, each.total_ms) for each in kernels])


def _print_costs(what: str, rows: Iterable[tuple[tuple[str, str], int, float]]) -> None:
    numbers = ("calls", "ms", "share")
    table = make_table("model", what, *numbers, right=numbers)
    ordered = sorted(rows, key=lambda row: row[2], reverse=True)
    total = sum(milliseconds for _, _, milliseconds in ordered)
    for key, calls, milliseconds in ordered[:MOST_COSTLY]:
        share = f"{100 * milliseconds / total:.1f} %" if total else ""
        table.add_row(*key, str(calls), f"{milliseconds:.1f}", share)
    print_table(table, sys.stderr)
    print(file=sys.stderr)
