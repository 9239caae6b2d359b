"""The `autovoice` command: options, exit codes and error lines over the Python API.

Exit codes: 0 done, 1 the conversion itself failed, 2 the caller's mistake, 130 interrupted, 143 told to stop.
A failure is one line on stderr. What a command does lives in `cli_<command>.py`, imported when it runs, so
that `--help` does not wait for ONNX Runtime.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from autovoice.cli_outputs import RESULT_PANEL, ProvenanceOption, SkipExistingOption

# Typer brings its own copy of click in newer versions and the package in older ones; BadParameter is the name
# it exports in both, and the base of all its usage errors is two steps up.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="autovoice",
    help="Voice conversion: the words, melody and timing of one recording in the voice of another.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_ENGINE = "Engine"
_RESULT = RESULT_PANEL
_SECURITY = "Security"
_LOG = "Log and traces"

TargetOption = Annotated[
    Path,
    typer.Option(
        "--target",
        "-t",
        metavar="FILE",
        help="A recording of the target voice, or a .npy made by `embed`.",
    ),
]
RepositoryOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Model repository. Default: $AUTOVOICE_REPOSITORY, else the checkout's model_repository.",
        rich_help_panel=_ENGINE,
    ),
]
DeviceOption = Annotated[
    Literal["auto", "cuda", "cpu"], typer.Option(help="Where the models run.", rich_help_panel=_ENGINE)
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="CPU threads per model. Default: the usable cores, up to 4.",
        rich_help_panel=_ENGINE,
    ),
]
FallbackOption = Annotated[
    Literal["cpu", "passthrough", "raise"],
    typer.Option(
        help="When the engine fails: use the CPU, hand back the unconverted input (flagged), or stop.",
        rich_help_panel=_ENGINE,
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace outputs that exist.", rich_help_panel=_RESULT)
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=_RESULT)
]


@app.command()
def convert(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE", help="Recordings, or folders to search for wav, flac, ogg, mp3."),
    ],
    target: TargetOption,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="A file for one source (its suffix is the format), a folder for more.",
        ),
    ],
    pitch_shift: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Semitones up or down, or auto: from the source's median pitch to the target's.",
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
        bool, typer.Option("--profile", help="Report the time of every stage.", rich_help_panel=_RESULT)
    ] = False,
    as_json: JsonOption = False,
    repository: RepositoryOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    fallback: FallbackOption = "cpu",
) -> int:
    """Convert recordings into the target's voice."""
    from autovoice import PipelineConfig
    from autovoice.cli_convert import Conversion, convert_files

    if overwrite and skip_existing:
        raise typer.BadParameter("--overwrite and --skip-existing contradict each other; give one of them")
    request = Conversion(
        sources=tuple(sources),
        target=target,
        output=output,
        pitch_shift=pitch_shift,
        sample_rate=sample_rate,
        audio_format=audio_format,
        existing="replace" if overwrite else "skip" if skip_existing else "refuse",
        provenance=provenance,
        config=PipelineConfig(repository=repository, device=device, threads=threads, fallback=fallback),
    )
    return convert_files(request, profile=profile, as_json=as_json)


@app.command()
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
) -> int:
    """Write the embedding of a voice; several recordings are averaged."""
    from autovoice import PipelineConfig
    from autovoice.cli_embed import embed_references

    config = PipelineConfig(repository=repository, device=device, threads=threads)
    return embed_references(references, output, config, overwrite=overwrite, as_json=as_json)


@app.command()
def stream(
    simulate: Annotated[
        Path, typer.Option(metavar="FILE", help="Recording to play as if a microphone heard it.")
    ],
    target: TargetOption,
    chunk_ms: Annotated[float, typer.Option(metavar="MS", help="Length of a chunk, 1 to 1000 ms.")] = 20.0,
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
    repository: RepositoryOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    fallback: FallbackOption = "cpu",
) -> int:
    """Convert a recording at the pace of real time and report latency and underruns."""
    from autovoice import PipelineConfig
    from autovoice.cli_stream import simulate_stream

    config = PipelineConfig(repository=repository, device=device, threads=threads, fallback=fallback)
    return simulate_stream(
        simulate,
        target,
        config,
        chunk_ms=chunk_ms,
        pitch_shift=pitch_shift,
        sample_rate=sample_rate,
        output=output,
        overwrite=overwrite,
        provenance=provenance,
        as_json=as_json,
    )


@app.command()
def info(
    repository: RepositoryOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Load every model and check it against its configuration.")
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Show a server instead: http://host:port. Its key: $AUTOVOICE_API_KEY."
        ),
    ] = None,
    ready: Annotated[
        bool, typer.Option("--ready", help="With --server: only check that it is ready (exit code 0 or 1).")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Show the model repository, engines, versions and devices, or what a server does and how fast."""
    if server is not None:
        from autovoice.cli_server_info import check_ready, show_server

        return check_ready(server) if ready else show_server(server, as_json=as_json)
    from autovoice.cli_info import show_info

    return show_info(repository, check=check, as_json=as_json)


@app.command()
def serve(
    repository: RepositoryOption = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to bind to.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(metavar="PORT", help="0 picks a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(metavar="PORT", help="0 picks a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(metavar="PORT", help="0 picks a free one.")] = 8002,
    metrics: Annotated[bool, typer.Option(help="Serve Prometheus metrics.")] = True,
    config_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Use configs/NAME.pbtxt of the models that have it.")
    ] = None,
    instances: Annotated[
        int | None, typer.Option(metavar="N", help="Copies of each model. Default: what its config says.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="ONNX Runtime threads per copy. Default: what its config says."),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Key that inference asks for. Default: $AUTOVOICE_API_KEY, else none.",
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    control_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Key that loading models, tracing and log settings ask for. Default: "
            "$AUTOVOICE_CONTROL_KEY, else the other key; with neither they are closed unless on loopback.",
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="Certificate for TLS on gRPC.", rich_help_panel=_SECURITY),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Its private key.", rich_help_panel=_SECURITY)
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="PEM", help="Ask clients for a certificate of this CA.", rich_help_panel=_SECURITY
        ),
    ] = None,
    log_level: Annotated[
        Literal["error", "warning", "info", "verbose"],
        typer.Option(help="Least severe lines of the server's log to show.", rich_help_panel=_LOG),
    ] = "warning",
    log_format: Annotated[
        Literal["text", "json"], typer.Option(help="One JSON object per line, or text.", rich_help_panel=_LOG)
    ] = "text",
    trace_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenTelemetry collector (OTLP over HTTP) to send traces to.",
            rich_help_panel=_LOG,
        ),
    ] = None,
    trace_rate: Annotated[
        int, typer.Option(metavar="N", min=1, help="Trace one request in N.", rich_help_panel=_LOG)
    ] = 1,
    startup_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long loading the models may take.")
    ] = 300.0,
    extra: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- OPTION...]", help="Further options of tritonserver, after --."),
    ] = None,
) -> int:
    """Serve the model repository with NVIDIA Triton over HTTP and gRPC until interrupted."""
    from autovoice import PipelineConfig
    from autovoice.cli_serve import API_KEY_VARIABLE, CONTROL_KEY_VARIABLE, read_key
    from autovoice.cli_serve import serve as run_server
    from autovoice.serving.options import ServeOptions

    options = ServeOptions(
        repository=PipelineConfig(repository=repository).repository_path(),
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        metrics=metrics,
        config_name=config_name,
        api_key=read_key(api_key_file, API_KEY_VARIABLE),
        control_key=read_key(control_key_file, CONTROL_KEY_VARIABLE),
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        log_level=log_level,
        instances=instances,
        threads=threads,
        trace_url=trace_url,
        trace_rate=trace_rate,
        startup_seconds=startup_timeout,
        extra=tuple(extra or ()),
    )
    return run_server(options, log_format=log_format)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from autovoice import __version__

        print(f"autovoice {__version__}")
        raise typer.Exit


def report_error(error: BaseException | str) -> None:
    """Write one line on stderr, whatever the length of the message."""
    print("autovoice: " + " ".join(str(error).split()), file=sys.stderr)


def report_usage_error(error: Any) -> None:
    """Write what is wrong with the options and how to see the right ones."""
    message = error.format_message().rstrip(".")
    if message:  # it is empty after a bare `autovoice`, which has printed the help
        report_error(f"{message}; see {error.ctx.command_path} --help" if error.ctx else message)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        code = app(list(arguments), prog_name="autovoice", standalone_mode=False)
        sys.stdout.flush()
    except _UsageError as error:
        report_usage_error(error)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED  # what newer versions of Typer return
    except BrokenPipeError:  # the reader of stdout left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from autovoice.errors import VoiceConversionError

        if not isinstance(error, VoiceConversionError):
            raise  # a defect of ours: its traceback is what a report needs
        report_error(error)
        return error.exit_code
    if code == INTERRUPTED:
        report_error("interrupted; finished outputs are kept, the current one was not written")
    return code if isinstance(code, int) else 0


def main() -> None:
    """Entry point of the `autovoice` script."""
    from autovoice.errors import PassthroughWarning

    # An orchestrator's request to stop must leave as little behind as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # The commands flag passed-through results themselves, in one line each.
    warnings.simplefilter("ignore", PassthroughWarning)
    sys.exit(run(sys.argv[1:]))
