"""What a server is started with, checked, and as Triton's own command line."""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autovoice.address import API_KEY_HEADER
from autovoice.atomic import reason_of
from autovoice.config import usable_cores
from autovoice.engines.gpus import gpu_count
from autovoice.errors import ConfigurationError
from autovoice.server.logs import LEVELS, Level

INFERENCE_APIS = ("inference", "shared-memory", "statistics")
CONTROL_APIS = ("model-repository", "trace", "logging")
_KEY = re.compile(r"[A-Za-z0-9._~-]{16,}")


@dataclass(frozen=True)
class ServeOptions:
    """Options of one server; nonsense is refused when they are made.

    Attributes:
        repository: folder of the models.
        host: address that all services bind to.
        http_port: 0 picks a free one, as for the others.
        grpc_port: likewise.
        metrics_port: likewise.
        metrics: whether Prometheus metrics are served.
        config_name: `configs/NAME.pbtxt` of each model is used where it exists.
        api_key: asked for by inference, shared memory and statistics; None for no key. Triton takes keys on
            its command line only, where every user of the machine can read them for a moment while the server
            starts; after that they are overwritten. Where that moment is too long, use TLS client
            certificates, a proxy that asks for the key, or a machine without other users.
        control_key: asked for by model control, tracing and log settings; None for `api_key`. With neither,
            these are open on loopback and closed elsewhere.
        tls_certificate: PEM file; gRPC then speaks TLS.
        tls_key: PEM file of the certificate's key.
        tls_client_ca: PEM file; clients then need a certificate signed by it.
        log_level: least severe level shown.
        instances: copies of each model, None for what its config says.
        gpus: numbers of the GPUs on which models run that may use one, each its own copies; None for what
            their configs say.
        threads: ONNX Runtime threads of each copy, None for what its config says.
        trace_url: OpenTelemetry collector (OTLP over HTTP) that receives traces.
        trace_rate: one request in so many is traced.
        startup_seconds: how long loading may take.
        extra: further arguments of tritonserver.
    """

    repository: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    metrics: bool = True
    config_name: str | None = None
    api_key: str | None = None
    control_key: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    log_level: Level = "warning"
    instances: int | None = None
    gpus: tuple[int, ...] | None = None
    threads: int | None = None
    trace_url: str | None = None
    trace_rate: int = 1
    startup_seconds: float = 300.0
    extra: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigurationError("host is empty; give an address, or 0.0.0.0 for all of this machine")
        for name in ("http_port", "grpc_port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)}; give a port up to 65535, or 0 for any free one"
                )
        ports = [port for port in (self.http_port, self.grpc_port, self.metrics_port) if port]
        if len(set(ports)) < len(ports):
            raise ConfigurationError(f"ports {ports} collide; give HTTP, gRPC and metrics one each")
        for name in ("api_key", "control_key"):
            key = getattr(self, name)
            if key is not None and not _KEY.fullmatch(key):
                raise ConfigurationError(
                    f"{name} must have at least 16 characters out of letters, digits and ._~-; "
                    "`openssl rand -hex 16` makes one"
                )
        if (self.tls_certificate is None) != (self.tls_key is None) or (
            self.tls_client_ca is not None and self.tls_certificate is None
        ):
            raise ConfigurationError("TLS needs a certificate and its key; give both, or neither")
        for path in (self.tls_certificate, self.tls_key, self.tls_client_ca):
            if path is not None and not path.is_file():
                raise ConfigurationError(f"TLS file {path} does not exist; give a PEM file")
        if self.log_level not in LEVELS:
            raise ConfigurationError(f"log level is {self.log_level!r}; use one of {', '.join(LEVELS)}")
        for name in ("instances", "threads"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 1024:
                raise ConfigurationError(f"{name} is {value}; give a number from 1 to 1024")
        if self.gpus is not None:
            _check_gpus(self.gpus)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server: every address of `host` is a loopback address."""
        try:
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # no such name
            return False
        addresses = {str(address[0]).partition("%")[0] for *_, address in found}
        return all(ipaddress.ip_address(address).is_loopback for address in addresses)

    @property
    def http_url(self) -> str:
        """Address of the HTTP service, as `PipelineConfig.backend` takes it."""
        return f"http://{_reachable(self.host)}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """Address of the gRPC service, as `PipelineConfig.backend` takes it."""
        return f"grpc://{_reachable(self.host)}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Address of the metrics."""
        return f"http://{_reachable(self.host)}:{self.metrics_port}/metrics"

    def with_free_ports(self) -> ServeOptions:
        """These options with a free port in the place of every 0.

        Raises:
            ConfigurationError: when a port that was asked for is taken, or the host is not this machine.
        """
        free = iter(free_ports(self.host, 3))
        for name in ("http_port", "grpc_port", "metrics_port"):
            port = getattr(self, name)
            if port and (name != "metrics_port" or self.metrics) and not _is_free(self.host, port):
                raise ConfigurationError(
                    f"port {port} of {self.host} is in use; choose another {name}, or 0 for any free one"
                )
        return replace(
            self,
            http_port=self.http_port or next(free),
            grpc_port=self.grpc_port or next(free),
            metrics_port=self.metrics_port or next(free),
        )

    def arguments(
        self, repository: Path, backends: Path, models: Sequence[str], *, exit_on_error: bool = True
    ) -> list[str]:
        """Triton's command line, without the program.

        Args:
            repository: folder to serve, which may be a view of `self.repository`.
            backends: the backend directory.
            models: names of the models to load. Triton's `*` takes every folder for a model.
            exit_on_error: whether one that does not load ends the server.
        """
        values: dict[str, object] = {
            "model-repository": repository,
            "backend-directory": backends,
            "model-control-mode": "explicit",
            "strict-readiness": "true",
            "exit-on-error": str(exit_on_error).lower(),
            # Loading keeps a core busy for each model; more at once than there are cores take longer.
            "model-load-thread-count": min(usable_cores(), 4),
            "http-address": self.host,
            "http-port": self.http_port,
            "grpc-address": self.host,
            "grpc-port": self.grpc_port,
            "allow-metrics": str(self.metrics).lower(),
            # Triton would keep the messages of 8 requests for reuse, however large they were.
            "grpc-infer-allocation-pool-size": 0,
            "log-format": "ISO8601",
            "log-verbose": int(self.log_level == "verbose"),
        }
        if self.metrics:
            values |= {"metrics-address": self.host, "metrics-port": self.metrics_port}
        if not _has_nvidia_driver():
            values["allow-gpu-metrics"] = "false"
        if self.config_name is not None:
            values["model-config-name"] = self.config_name
        if self.tls_certificate is not None:
            mutual = self.tls_client_ca is not None
            values["grpc-use-ssl-mutual" if mutual else "grpc-use-ssl"] = "true"
            values |= {"grpc-server-cert": self.tls_certificate, "grpc-server-key": self.tls_key}
            if mutual:
                values["grpc-root-cert"] = self.tls_client_ca
        arguments = [f"--{name}={value}" for name, value in values.items()]
        arguments += [f"--load-model={name}" for name in models]
        # The configs are complete. Completing them would start every model's process twice.
        arguments.append("--disable-auto-complete-config")
        return [*arguments, *self._restrictions(), *self._tracing(), *self.extra]

    def closed(self) -> ServeOptions:
        """These options, with a random control key where others reach the server and there is none."""
        if self.is_loopback or self.api_key or self.control_key:
            return self
        return replace(self, control_key=secrets.token_hex(16))

    def inference_headers(self) -> dict[str, str]:
        """HTTP headers that inference and statistics ask for."""
        return {API_KEY_HEADER: self.api_key} if self.api_key else {}

    def control_headers(self) -> dict[str, str]:
        """HTTP headers that the control APIs ask for."""
        key = self.control_key or self.api_key
        return {API_KEY_HEADER: key} if key else {}

    def _restrictions(self) -> list[str]:
        restrictions = []
        for apis, key in (
            (INFERENCE_APIS, self.api_key),
            (CONTROL_APIS, self.control_key or self.api_key),
        ):
            if key is not None:
                rule = f"{','.join(apis)}:{API_KEY_HEADER}={key}"
                restrictions += [f"--http-restricted-api={rule}", f"--grpc-restricted-protocol={rule}"]
        return restrictions

    def _tracing(self) -> list[str]:
        if self.trace_url is None:
            return []
        settings = ("mode=opentelemetry", f"rate={self.trace_rate}", "level=TIMESTAMPS")
        return [f"--trace-config={setting}" for setting in settings] + [
            f"--trace-config=opentelemetry,url={self.trace_url}"
        ]


def free_ports(host: str, count: int) -> list[int]:
    """Distinct TCP ports that nobody listens on at the moment."""
    sockets = []
    try:
        for _ in range(count):
            listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            sockets.append(listener)
            listener.bind((host, 0))
        return [int(listener.getsockname()[1]) for listener in sockets]
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"cannot bind to {host} ({reason_of(error)}); give an address of this machine"
        ) from error
    finally:
        for listener in sockets:
            listener.close()


def parse_gpus(text: str) -> tuple[int, ...]:
    """Read `--gpus`: numbers with commas between them.

    Raises:
        ConfigurationError: it is something else.
    """
    if not re.fullmatch(r"[0-9]{1,3}(,[0-9]{1,3})*", text):
        raise ConfigurationError(f"--gpus {text!r} is no list of numbers; give GPUs as 0,1")
    return tuple(int(number) for number in text.split(","))


def _check_gpus(gpus: tuple[int, ...]) -> None:
    if not gpus or len(set(gpus)) < len(gpus) or min(gpus) < 0:
        raise ConfigurationError(f"gpus is {gpus}; give the numbers of GPUs from 0 on, each once")
    count = gpu_count()
    if not count:
        raise ConfigurationError(
            f"gpus is {gpus}, and no NVIDIA GPU can be seen here; start the container with --gpus all, or "
            "leave them out"
        )
    if max(gpus) >= count:
        raise ConfigurationError(f"gpus is {gpus}, and there are {count}; give numbers from 0 to {count - 1}")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        # As servers do: connections of a former server that are still closing do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, UnicodeError):
            return False
    return True


def _reachable(host: str) -> str:
    """The address under which a server bound to `host` is reached from here."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists()
