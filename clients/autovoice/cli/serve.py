"""`autovoice serve`: a Triton server in the foreground."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autovoice.cli.options import RepositoryOption, read_key
from autovoice.config import API_KEY_VARIABLE, PipelineConfig
from autovoice.errors import ConfigurationError, VoiceConversionError
from autovoice.server.logs import LogRecord

if TYPE_CHECKING:
    from autovoice.rollout.service import RolloutService
    from autovoice.server.options import ServeOptions
    from autovoice.server.supervision import Supervisor

CONTROL_KEY_VARIABLE = "AUTOVOICE_CONTROL_KEY"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SECURITY = "Security"
_LOG = "Log and traces"
_ROLLOUT = "Releases"


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
    gpus: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="GPUs that models use, as 0,1. Default: what their configs say."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="ONNX Runtime threads per copy. Default: what its config says."),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Key that inference asks for. Default: $AUTOVOICE_API_KEY, else none. While the server "
            "starts, users of this machine can read it in tritonserver's command line for a moment; where "
            "they must not, use --tls-client-ca or a proxy that asks for the key.",
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
        typer.Option(metavar="URL", help="OpenTelemetry collector (OTLP over HTTP).", rich_help_panel=_LOG),
    ] = None,
    trace_rate: Annotated[
        int, typer.Option(metavar="N", min=1, help="Trace one request in N.", rich_help_panel=_LOG)
    ] = 1,
    startup_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long loading the models may take.")
    ] = 300.0,
    rollout: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Serve releases behind Envoy, as `autovoice rollout` wants them: a folder for that, made "
            "where it is missing. --repository, TLS and --no-metrics are then not available.",
            rich_help_panel=_ROLLOUT,
        ),
    ] = None,
    releases: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the releases are. Default: where they were the last time.",
            rich_help_panel=_ROLLOUT,
        ),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(
            metavar="PEM",
            help="Key that must have signed each release. Default: that of the last time, if any.",
            rich_help_panel=_ROLLOUT,
        ),
    ] = None,
    drain_limit: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How long a release without a share is served to its live streams. Default: 10m.",
            rich_help_panel=_ROLLOUT,
        ),
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="One server for two releases, where memory has no room for two servers: no canary, and live "
            "streams begin again at a switch. --instances, --gpus, --threads, --drain-limit and --prometheus "
            "are then not available.",
            rich_help_panel=_ROLLOUT,
        ),
    ] = False,
    prometheus: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Roll candidates back for alerts of this Prometheus, which needs the configuration in "
            "DIR/prometheus. Default: start the one on PATH.",
            rich_help_panel=_ROLLOUT,
        ),
    ] = None,
    extra: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- OPTION...]", help="Further options of tritonserver, after --."),
    ] = None,
) -> int:
    """Serve the model repository with NVIDIA Triton over HTTP and gRPC until interrupted."""
    server: Supervisor | RolloutService | None = None
    told = False

    def stop(number: int, frame: FrameType | None) -> None:
        """The first signal lets the server finish its requests, the second kills it."""
        nonlocal told
        told = True
        if server is not None:
            server.terminate()

    previous = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        from autovoice.server.options import ServeOptions, parse_gpus
        from autovoice.server.supervision import Supervisor

        if rollout is None:
            given = {"--releases": releases, "--public-key": public_key, "--drain-limit": drain_limit}
            _require_rollout({**given, "--in-place": in_place or None, "--prometheus": prometheus})
        if rollout is not None:
            tls = tls_certificate or tls_key or tls_client_ca
            _require_available(repository=repository, tls=tls, no_metrics=not metrics)
        if in_place:
            loading = {"--instances": instances, "--gpus": gpus, "--threads": threads}
            _require_none({**loading, "--drain-limit": drain_limit, "--prometheus": prometheus})
        options = ServeOptions(
            repository=rollout or PipelineConfig(repository=repository).repository_path(),
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
            gpus=None if gpus is None else parse_gpus(gpus),
            threads=threads,
            trace_url=trace_url,
            trace_rate=trace_rate,
            startup_seconds=startup_timeout,
            extra=tuple(extra or ()),
        )
        if rollout is None:
            server = Supervisor(options, on_ready=_announce, on_log=_Log(options, log_format))
        else:
            server = _rollout_service(
                rollout, releases, public_key, drain_limit, in_place, prometheus, options, log_format
            )
        if told:  # before there was a server to tell
            return 0
        server.run()
    except VoiceConversionError:
        if not told:
            raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def _require_rollout(options: Mapping[str, object]) -> None:
    """Refuse options that have a meaning with --rollout only.

    Raises:
        ConfigurationError: one is given.
    """
    for name, value in options.items():
        if value is not None:
            raise ConfigurationError(f"{name} is for --rollout DIR; give that too")


def _require_available(**values: object) -> None:
    """Refuse options that have no meaning with --rollout.

    Raises:
        ConfigurationError: one is given.
    """
    options = {
        "repository": "--repository (give the folder of the releases with --releases)",
        "tls": "TLS (put a proxy that ends it in front)",
        "no_metrics": "--no-metrics (releases are judged by them)",
    }
    for name, value in values.items():
        if value:
            raise ConfigurationError(f"{options[name]} is not available with --rollout; leave it out")


def _require_none(options: Mapping[str, object]) -> None:
    """Refuse options that have no meaning with --in-place.

    Raises:
        ConfigurationError: one is given.
    """
    for name, value in options.items():
        if value is not None:
            raise ConfigurationError(f"{name} is not available with --in-place; leave it out")


def _rollout_service(
    folder: Path,
    releases: Path | None,
    public_key: Path | None,
    drain_limit: str | None,
    in_place: bool,
    prometheus: str | None,
    options: ServeOptions,
    log_format: str,
) -> RolloutService:
    from autovoice.rollout.promotion import parse_duration
    from autovoice.rollout.service import DRAIN_LIMIT_SECONDS, RolloutService
    from autovoice.rollout.state import RolloutFolder, Service
    from autovoice.rollout.watching import open_watcher

    def announce(service: Service) -> None:
        _announce(
            replace(
                options,
                http_port=service.http,
                grpc_port=service.grpc,
                metrics_port=service.metrics,
                metrics=False,
            )
        )
        print(f"metrics: http://127.0.0.1:{service.metrics}/stats/prometheus", flush=True)
        if watcher is not None:
            print(f"prometheus: {watcher.url}", flush=True)

    def log(record: LogRecord) -> None:
        if record.shown_at(options.log_level):
            print(record.as_text() if log_format == "text" else record.as_json(), file=sys.stderr, flush=True)

    # In place there is no trial to watch.
    watcher = None if in_place else open_watcher(folder, prometheus, log)
    return RolloutService(
        RolloutFolder(folder),
        releases,
        options,
        public_key=public_key,
        on_ready=announce,
        on_log=log,
        watcher=watcher,
        mode="in-place" if in_place else "processes",
        drain_limit=DRAIN_LIMIT_SECONDS if drain_limit is None else parse_duration(drain_limit),
    )


class _Log:
    """Writes the server's log to stderr, and how many models are loaded."""

    def __init__(self, options: ServeOptions, log_format: str) -> None:
        from autovoice.repository.reader import ModelRepository

        self._options = options
        self._format = log_format
        self._models = len(ModelRepository(options.repository).names())
        self._loaded: set[str] = set()

    def __call__(self, record: LogRecord) -> None:
        model = record.loaded_model
        if model is not None and model not in self._loaded:
            self._loaded.add(model)
            text = f"loaded {model} ({len(self._loaded)} of {self._models})"
            self._print(text if self._format == "text" else LogRecord("info", text).as_json())
        elif record.shown_at(self._options.log_level):
            self._print(record.as_text() if self._format == "text" else record.as_json())

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _announce(options: ServeOptions) -> None:
    print(f"ready: {options.grpc_url} {options.http_url}", flush=True)
    if options.metrics:
        print(f"metrics: {options.metrics_url}", flush=True)
