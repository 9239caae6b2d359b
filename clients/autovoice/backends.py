"""From a `PipelineConfig` to the executor it asks for."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from autovoice.circuit import CircuitBreaker
from autovoice.config import PipelineConfig
from autovoice.embedded import EmbeddedExecutor, SequenceStore
from autovoice.errors import ConfigurationError, DeviceError, RepositoryError
from autovoice.family import BASE_VOICE
from autovoice.model_config import ENSEMBLE
from autovoice.remote.address import parse_address
from autovoice.repository import ModelRepository
from autovoice.resilience import ResilientExecutor
from autovoice.results import StatsCounter

if TYPE_CHECKING:
    from autovoice.remote.executor import RemoteExecutor
    from autovoice.remote.wire import Transport

logger = logging.getLogger(__name__)

DEVICE_REST_SECONDS = 30.0  # a GPU that failed needs someone to do something about it
SERVER_REST_SECONDS = 5.0  # a server is soon started again
SERVER_FAILURES = 5  # in a row, before callers without a fallback are refused at once
SERVER_TIMEOUT_SECONDS = 60.0  # a server that hangs must not hang its clients


def make_executor(
    config: PipelineConfig, stats: StatsCounter
) -> tuple[ResilientExecutor, ModelRepository | None]:
    """Open the configured repository or server and put retries and the fallback around its executor.

    Returns:
        The executor, and the repository on disk when that is what it runs.

    Raises:
        ConfigurationError: TLS files that cannot be used.
        RepositoryError: when the repository is missing.
        DeviceError: when the device is not to be had and `fallback` is not `"cpu"`.
    """
    if config.backend != "embedded":
        return _over_server(config, stats), None
    repository = ModelRepository(config.repository_path())
    sequences = SequenceStore()

    def on_cpu() -> EmbeddedExecutor:
        return EmbeddedExecutor(repository, device="cpu", threads=config.thread_count, sequences=sequences)

    try:
        primary = EmbeddedExecutor(
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
        ResilientExecutor(
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


def _device_works(executor: EmbeddedExecutor, voice: str) -> bool:
    """Whether `"auto"` chose well: ONNX Runtime offers CUDA wherever its library is installed, GPU or not."""
    if executor.device == "cpu":
        return True
    repository = executor.repository
    models = [step.model for step in repository.steps_in_order(executor.spec(voice))]
    try:
        executor.load([model for model in models if repository.spec(model).kind != ENSEMBLE][-1])
    except DeviceError as error:
        logger.info("device 'auto' is the CPU: %s", error)
        return False
    return True


def _over_server(config: PipelineConfig, stats: StatsCounter) -> ResilientExecutor:
    """Connect to the configured server, with the embedded runtime behind it where the config allows."""
    server = connect(config)

    def embedded() -> EmbeddedExecutor:
        repository = ModelRepository(config.repository_path())
        executor = EmbeddedExecutor(repository, device="cpu", threads=config.thread_count)
        _require_same_voice(executor, server, config.voice or BASE_VOICE)
        return executor

    falls_back = config.fallback == "cpu"
    return ResilientExecutor(
        server,
        embedded if falls_back else None,
        breaker=CircuitBreaker(1 if falls_back else SERVER_FAILURES, SERVER_REST_SECONDS),
        sequences_move=False,
        retries=config.retries,
        retry_delay_seconds=config.retry_delay_seconds,
        timeout=config.timeout_seconds if config.timeout_seconds is not None else SERVER_TIMEOUT_SECONDS,
        stats=stats,
    )


def connect(config: PipelineConfig) -> RemoteExecutor:
    """The bare executor over the server that `config.backend` names; nothing is sent yet.

    Raises:
        ConfigurationError: TLS files that cannot be used.
    """
    from autovoice.remote.executor import RemoteExecutor

    address = parse_address(config.backend)
    # Only the protocol in use is imported.
    module = importlib.import_module(f"autovoice.remote.{address.protocol}_transport")
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
    return RemoteExecutor(address, transport)


def _require_same_voice(embedded: EmbeddedExecutor, server: RemoteExecutor, voice: str) -> None:
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
