"""`autovoice stream`: how a live conversion of a recording would have gone."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autovoice.cli.console import load_engine, make_table, print_table, report_error
from autovoice.cli.embed import load_target
from autovoice.cli.options import (
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
    SpeakerOption,
    TargetOption,
    ThreadsOption,
    TimeoutOption,
    TlsCaOption,
    TlsCertificateOption,
    TlsKeyOption,
    VoiceOption,
    parse_gain,
    parse_pitch_shift,
    pipeline_config,
)
from autovoice.cli.outputs import require_writable

if TYPE_CHECKING:
    from autovoice import StreamSession
    from autovoice.results import FloatArray

CHUNK_MS_RANGE = (1.0, 1000.0)


@dataclass(frozen=True)
class Delivery:
    """One chunk that brought output, times in seconds since the start of the source.

    Attributes:
        captured: when the last sample of the chunk had been heard.
        ready: when its output could be played.
        position: where the first sample of that output lies in the source.
    """

    captured: float
    ready: float
    position: float


@dataclass(frozen=True)
class StreamReport:
    """What a listener of the simulated stream would have met.

    Attributes:
        sample_rate: of the simulated sound card, Hz.
        chunk_ms: length of a chunk.
        chunks: how many were pushed.
        audio_s: length of the source.
        algorithmic_ms: delay the signal path itself has, however fast the computer.
        latency_ms: from a chunk being complete to its output being ready, percentiles over chunks.
        end_to_end_ms: from a sample being heard to its conversion being ready: filling the chunk, the signal
            path and the computation. The sound card's buffers come on top.
        underruns: how often a player with one chunk in hand would have run dry.
        rtf: compute time over audio time.
        device: where the models ran.
        passthrough: the output is the level-normalised input because the engine failed.
    """

    sample_rate: int
    chunk_ms: float
    chunks: int
    audio_s: float
    algorithmic_ms: float
    latency_ms: dict[str, float]
    end_to_end_ms: dict[str, float]
    underruns: int
    rtf: float
    device: str
    passthrough: bool


def stream(
    simulate: Annotated[
        Path, typer.Option(metavar="FILE", help="Recording to play as if a microphone heard it.")
    ],
    target: TargetOption = None,
    voice: VoiceOption = None,
    chunk_ms: Annotated[float, typer.Option(metavar="MS", help="Length of a chunk, 1 to 1000 ms.")] = 20.0,
    core_ms: Annotated[
        float | None,
        typer.Option(metavar="MS", help="Audio converted at once. Default: 10; an imported voice: 240."),
    ] = None,
    pitch_shift: Annotated[str, typer.Option(metavar="N", help="Semitones up or down.")] = "0",
    input_gain: Annotated[
        str,
        typer.Option(metavar="DB|auto", help="Gain of the source, taken back in the end; auto follows it."),
    ] = "auto",
    sample_rate: Annotated[
        int | None,
        typer.Option(
            metavar="HZ",
            help="Rate of the simulated sound card. Default: the voice's own; resampling adds delay.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Keep what was heard in this file.")
    ] = None,
    overwrite: OverwriteOption = False,
    provenance: ProvenanceOption = True,
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
    """Convert a recording at the pace of real time and report latency and underruns."""
    from autovoice.errors import ConfigurationError, PitchError

    low, high = CHUNK_MS_RANGE
    if not low <= chunk_ms <= high:  # also refuses NaN
        raise ConfigurationError(f"--chunk-ms is {chunk_ms:g}; give a length from {low:g} to {high:g} ms")
    gain = parse_gain(input_gain)
    shift = parse_pitch_shift(pitch_shift)
    if shift == "auto":
        raise PitchError(
            "--pitch-shift auto needs the whole source, which a live stream has not heard; give semitones"
        )
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
    if output is not None:
        require_writable(output, overwrite)
    load_engine()
    import numpy as np

    from autovoice import VoiceConversionPipeline, read_audio, write_audio
    from autovoice.audio.provenance import provenance_tags
    from autovoice.audio.samples import check_sample_rate, resample

    recorded, recorded_rate = read_audio(simulate)
    with VoiceConversionPipeline(config) as pipeline:
        # A live service opens its microphone at the rate of the voice, so that nothing need be resampled.
        own_rate = pipeline.voice.output_sample_rate
        rate = own_rate if sample_rate is None else check_sample_rate(sample_rate)
        audio = resample(recorded, recorded_rate, rate)
        found = load_target(pipeline, target, with_pitch=False)

        def start() -> StreamSession:
            return pipeline.stream(
                found.embedding,
                sample_rate=rate,
                pitch_shift_semitones=shift,
                input_gain_db=gain,
                core_seconds=None if core_ms is None else core_ms / 1e3,
            )

        with start() as rehearsal:  # loads the models, which a live service does before it takes a call
            rehearsal.push(np.zeros(rate // 2, np.float32))
            rehearsal.flush()
        with start() as live:
            report, converted = _play(live, audio, rate, chunk_ms, pipeline.device, quiet=as_json)
    if output is not None:
        write_audio(output, converted, rate, tags=provenance_tags() if provenance else None)
    if as_json:
        files = {"source": str(simulate), "output": str(output) if output else None}
        print(json.dumps(files | asdict(report), indent=2))
    else:
        _print(report, output)
    if report.passthrough:
        report_error("the stream was NOT converted: what was heard is the level-normalised input")
    return 0


def _play(
    live: StreamSession, audio: FloatArray, sample_rate: int, chunk_ms: float, device: str, *, quiet: bool
) -> tuple[StreamReport, FloatArray]:
    import numpy as np
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    deliveries: list[Delivery] = []
    latencies: list[float] = []
    busy = 0.0
    pieces: list[FloatArray] = []
    heard = 0
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    columns = (TextColumn("streaming"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        bar = bars.add_task("", total=len(audio))
        start = time.perf_counter()
        for first, last in chunk_bounds(len(audio), sample_rate, chunk_ms):
            captured = last / sample_rate
            time.sleep(max(0.0, start + captured - time.perf_counter()))
            began = time.perf_counter()
            piece = live.push(audio[first:last])
            ready = time.perf_counter() - start
            busy += ready - (began - start)
            latencies.append(ready - captured)
            if len(piece):
                deliveries.append(Delivery(captured, ready, heard / sample_rate))
                pieces.append(piece)
                heard += len(piece)
            bars.update(bar, completed=last)
        pieces.append(live.flush())
    report = StreamReport(
        sample_rate=sample_rate,
        chunk_ms=chunk_ms,
        chunks=len(latencies),
        audio_s=len(audio) / sample_rate,
        algorithmic_ms=1e3 * live.latency_seconds,
        latency_ms=percentiles(latencies),
        end_to_end_ms=percentiles([each.ready - each.position for each in deliveries]),
        underruns=count_underruns(deliveries, chunk_ms / 1e3),
        rtf=busy / (len(audio) / sample_rate),
        device=device,
        passthrough=live.passthrough,
    )
    return report, np.concatenate(pieces)


def chunk_bounds(samples: int, sample_rate: int, chunk_ms: float) -> Iterator[tuple[int, int]]:
    """Yield (first, last) sample of each chunk; fractions of a sample are carried so that nothing drifts."""
    length = sample_rate * chunk_ms / 1e3
    edges = [min(samples, round(number * length)) for number in range(math.ceil(samples / length) + 1)]
    return ((first, last) for first, last in itertools.pairwise(edges) if last > first)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and maximum in milliseconds; NaN of an empty list would not be JSON, so zeros."""
    import numpy as np

    values = 1e3 * np.array(seconds or [0.0])
    p50, p95, p99 = (float(value) for value in np.percentile(values, [50, 95, 99]))
    return {"p50": p50, "p95": p95, "p99": p99, "max": float(values.max())}


def count_underruns(deliveries: Sequence[Delivery], slack: float) -> int:
    """Count how often a player runs dry.

    It starts `slack` seconds after the first output would be there if computing took no time. When output is
    late the player waits for it and goes on from there, so that one hiccup counts once.

    Args:
        deliveries: in order.
        slack: what the player keeps in hand, seconds.
    """
    # The largest of these delays lets every output arrive in time on an infinitely fast computer.
    delay = max((each.captured - each.position for each in deliveries), default=0.0) + slack
    underruns = 0
    for each in deliveries:
        if each.ready > each.position + delay:
            underruns += 1
            delay = each.ready - each.position
    return underruns


def _print(report: StreamReport, output: Path | None) -> None:
    chunks = f"{report.chunks} chunks of {report.chunk_ms:g} ms"
    underruns = f"{report.underruns} underrun{'s' * (report.underruns != 1)}"
    print(
        f"{report.audio_s:.2f} s at {report.sample_rate} Hz in {chunks} on {report.device}, "
        f"RTF {report.rtf:.3f}, {underruns}"
    )
    print(f"algorithmic latency {report.algorithmic_ms:.1f} ms")
    table = make_table("ms", *report.latency_ms, "", right=report.latency_ms)
    table.columns[-1].style = "dim"
    for label, values, meaning in (
        ("latency", report.latency_ms, "chunk complete to output ready"),
        ("end to end", report.end_to_end_ms, "sample heard to its conversion ready"),
    ):
        table.add_row(label, *(f"{value:.1f}" for value in values.values()), meaning)
    print_table(table)
    if output is not None:
        print(f"written to {output}")
