"""The commands that convert, and their options; what they do lives in `cli_<command>.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from autovoice.cli.options import (
    RESULT,
    DeviceOption,
    EmbedFallbackOption,
    FallbackOption,
    IndexRateOption,
    JsonOption,
    OverwriteOption,
    ProtectOption,
    ProvenanceOption,
    RepositoryOption,
    RmsMixOption,
    SkipExistingOption,
    SpeakerOption,
    TargetOption,
    ThreadsOption,
    VoiceOption,
)
from autovoice.cli.remote_options import (
    ApiKeyFileOption,
    RetriesOption,
    ServerOption,
    TimeoutOption,
    TlsCaOption,
    TlsCertificateOption,
    TlsKeyOption,
    server_settings,
)


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
    """Convert recordings into the target's voice, or into an imported one."""
    from autovoice.cli.convert import Conversion, convert_files
    from autovoice.cli.voices import voice_config

    if overwrite and skip_existing:
        raise typer.BadParameter("--overwrite and --skip-existing contradict each other; give one of them")
    request = Conversion(
        sources=tuple(sources),
        target=target,
        output=output,
        pitch_shift=pitch_shift,
        sample_rate=sample_rate,
        audio_format=audio_format,
        provenance=provenance,
        existing="replace" if overwrite else "skip" if skip_existing else "refuse",
        config=voice_config(
            voice,
            (speaker, index_rate, protect, rms_mix),
            repository=repository,
            device=device,
            threads=threads,
            fallback=fallback,
            **server_settings(server, api_key_file, tls_ca, tls_certificate, tls_key, timeout, retries),
        ),
    )
    return convert_files(request, profile=profile, as_json=as_json)


def embed(
    references: Annotated[
        list[Path],
        typer.Argument(metavar="REFERENCE", help="Recordings of one voice, a few seconds each."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="VOICE.npy", help="The file to write.")],
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    repository: RepositoryOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    fallback: EmbedFallbackOption = "cpu",
    server: ServerOption = None,
    api_key_file: ApiKeyFileOption = None,
    tls_ca: TlsCaOption = None,
    tls_certificate: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
    timeout: TimeoutOption = None,
    retries: RetriesOption = 2,
) -> int:
    """Write the embedding of a voice; several recordings are averaged."""
    from autovoice import PipelineConfig
    from autovoice.cli.embed import embed_references

    config = PipelineConfig(
        repository=repository,
        device=device,
        threads=threads,
        fallback=fallback,
        **server_settings(server, api_key_file, tls_ca, tls_certificate, tls_key, timeout, retries),
    )
    return embed_references(references, output, config, overwrite=overwrite, as_json=as_json)


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
    from autovoice.cli.stream import simulate_stream
    from autovoice.cli.voices import voice_config

    config = voice_config(
        voice,
        (speaker, index_rate, protect, rms_mix),
        repository=repository,
        device=device,
        threads=threads,
        fallback=fallback,
        **server_settings(server, api_key_file, tls_ca, tls_certificate, tls_key, timeout, retries),
    )
    return simulate_stream(
        simulate,
        target,
        config,
        chunk_ms=chunk_ms,
        core_ms=core_ms,
        pitch_shift=pitch_shift,
        sample_rate=sample_rate,
        output=output,
        overwrite=overwrite,
        provenance=provenance,
        as_json=as_json,
    )
