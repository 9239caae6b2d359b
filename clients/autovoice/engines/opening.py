"""From a `PipelineConfig` to the engine it asks for."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from autovoice.address import parse_address
from autovoice.config import BASE_VOICE, PipelineConfig
from autovoice.engines.local import LocalEngine, SequenceStore
from autovoice.engines.resilient import CircuitBreaker, ResilientEngine
from autovoice.errors import ConfigurationError, DeviceError, RepositoryError
from autovoice.repository.model_config import ENSEMBLE
from autovoice.repository.reader import ModelRepository
from autovoice.results import StatsCounter

if TYPE_CHECKING:
    from autovoice.engines.triton.engine import TritonEngine
    from autovoice.engines.triton.wire import Transport

logger = logging.getLogger(__name__)

DEVICE_REST_SECONDS = 30.0  # a GPU that failed needs someone to do something about it
SERVER_REST_SECONDS = 5.0  # a server is soon started again
SERVER_FAILURES = 5  # in a row, before callers without a fallback are refused at once
SERVER_TIMEOUT_SECONDS = 60.0  # a server that hangs must not hang its clients


def open_engine(
    config: PipelineConfig, stats: StatsCounter
) -> tuple[ResilientEngine, ModelRepository | None]:
    """Open the configured repository or server and put retries and the fallback around its engine.

    Returns:
        The engine, and the repository on disk when that is what it runs.

    Raises:
        ConfigurationError: TLS files that cannot be used.
        RepositoryError: when the repository is missing.
        DeviceError: when the device is not to be had and `fallback` is not `"cpu"`.
    """
    if config.backend != "embedded":
        return _over_server(config, stats), None
    repository = ModelRepository(config.repository_path())
    sequences = SequenceStore()

    def on_cpu() -> LocalEngine:
        return LocalEngine(repository, device="cpu", threads=config.thread_count, sequences=sequences)

    try:
        primary = LocalEngine(
            repository, device=config.device, threads=config.thread_count, sequences=sequences
        )
    except DeviceError as error:
        if config.fallback != "cpu":
            raise
        logger.warning("running on the CPU instead: %s", error)
        stats.fallback()
        primary = on_cpu()
    if config.device == "auto" and not _device_works(primary, config.voice or BASE_VOICE):
        primary = on_cpu()
    # A CPU that failed would fail again: only another device has somewhere to fall back to.
    falls_back = config.fallback == "cpu" and primary.device != "cpu"
    return (
        ResilientEngine(
            primary,
            on_cpu if falls_back else None,
            breaker=CircuitBreaker(1, DEVICE_REST_SECONDS) if falls_back else None,
            sequences_move=True,
            retries=config.retries,
            retry_delay_seconds=config.retry_delay_seconds,
            timeout=config.timeout_seconds,
            stats=stats,
        ),
        repository,
    )


def _device_works(engine: LocalEngine, voice: str) -> bool:
    """Whether `"auto"` chose well: ONNX Runtime offers CUDA wherever its library is installed, GPU or not."""
    if engine.device == "cpu":
        return True
    repository = engine.repository
    models = [step.model for step in repository.steps_in_order(engine.spec(voice))]
    try:
        engine.load([model for model in models if repository.spec(model).kind != ENSEMBLE][-1])
    except DeviceError as error:
        logger.info("device 'auto' is the CPU: %s", error)
        return False
    return True


def _over_server(config: PipelineConfig, stats: StatsCounter) -> ResilientEngine:
    """Connect to the configured server, with the embedded runtime behind it where the config allows."""
    server = connect(config)

    def embedded() -> LocalEngine:
        repository = ModelRepository(config.repository_path())
        engine = LocalEngine(repository, device="cpu", threads=config.thread_count)
        _require_same_voice(engine, server, config.voice or BASE_VOICE)
        return engine

    falls_back = config.fallback == "cpu"
    return ResilientEngine(
        server,
        embedded if falls_back else None,
        breaker=CircuitBreaker(1 if falls_back else SERVER_FAILURES, SERVER_REST_SECONDS),
        sequences_move=False,
        retries=config.retries,
        retry_delay_seconds=config.retry_delay_seconds,
        timeout=config.timeout_seconds if config.timeout_seconds is not None else SERVER_TIMEOUT_SECONDS,
        stats=stats,
    )


def connect(config: PipelineConfig) -> TritonEngine:
    """The bare engine over the server that `config.backend` names; nothing is sent yet.

    Raises:
        ConfigurationError: TLS files that cannot be used; gRPC is not installed.
    """
    from autovoice.engines.triton.engine import SPEC_SECONDS, TritonEngine

    address = parse_address(config.backend)
    # Only the protocol in use is imported.
    try:
        module = importlib.import_module(f"autovoice.engines.triton.{address.protocol}")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{config.backend} needs the package grpcio; run `pip install 'autovoice[grpc]'`, or give the "
            "server's http:// address"
        ) from error
    try:
        transport: Transport = module.TRANSPORT(
            address,
            api_key=config.server_key,
            root_certificates=_optional_path(config.tls_root_certificates),
            client_certificate=_optional_path(config.tls_client_certificate),
            client_key=_optional_path(config.tls_client_key),
        )
    except OSError as error:  # which ssl.SSLError is, too
        raise ConfigurationError(f"the TLS files cannot be used ({error}); give PEM files") from error
    limit = config.timeout_seconds
    return TritonEngine(
        address, transport, spec_timeout=SPEC_SECONDS if limit is None else min(SPEC_SECONDS, limit)
    )


def _require_same_voice(embedded: LocalEngine, server: TritonEngine, voice: str) -> None:
    """Refuse to fall back to another kind of voice, as far as is known; the server may never have answered.

    Raises:
        RepositoryError: naming the difference.
    """
    known = server.known_spec(voice)
    if known is None:
        return
    here = embedded.spec(voice)
    if (here.parameters, here.inputs) != (known.parameters, known.inputs):
        raise RepositoryError(
            f"{embedded.repository.path} holds another {voice} than {server.device}; set repository to a "
            "copy of the server's"
        )


def _optional_path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()
