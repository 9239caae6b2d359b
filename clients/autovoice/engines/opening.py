"""From a `PipelineConfig` to the engine it asks for."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autovoice.address import parse_address
from autovoice.config import BASE_VOICE, PipelineConfig
from autovoice.engines.engine import Engine
from autovoice.engines.local import LocalEngine, SequenceStore
from autovoice.engines.operators import OperatorRecorder
from autovoice.engines.pool import EnginePool
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


def open_engines(
    config: PipelineConfig, stats: StatsCounter, recorder: OperatorRecorder | None = None
) -> tuple[EnginePool, ModelRepository | None]:
    """Open the configured repository or server and put retries and the fallback around its engines.

    Args:
        config: what to open.
        stats: counts retries, fallbacks and lost sequences.
        recorder: records what operators cost, in this process only; None to leave that.

    Returns:
        The engines, and the repository on disk when that is what they run.

    Raises:
        ConfigurationError: TLS files that cannot be used, or a recorder for a server.
        RepositoryError: when the repository is missing.
        DeviceError: when a device is not to be had and `fallback` is not `"cpu"`.
    """
    if config.backend != "embedded":
        if recorder is not None:
            raise ConfigurationError(
                f"what operators cost is not seen in a server ({config.backend}); convert without one"
            )
        return EnginePool([_over_server(config, stats)]), None
    repository = ModelRepository(config.repository_path())
    sequences = SequenceStore()

    def on(device: str) -> LocalEngine:
        return LocalEngine(
            repository, device=device, threads=config.thread_count, sequences=sequences, recorder=recorder
        )

    engines = []
    for device in config.devices:
        try:
            engines.append(on(device))
        except DeviceError as error:
            if config.fallback != "cpu":
                raise
            instead = "running on the CPU instead" if len(config.devices) == 1 else "going on without it"
            logger.warning("%s: %s", instead, error)
            stats.fallback()
    if not engines or (config.device == "auto" and not _device_works(engines[0], config.voice or BASE_VOICE)):
        engines = [on("cpu")]
    # A CPU that failed would fail again: only another device has somewhere to fall back to.
    falls_back = config.fallback == "cpu" and engines[0].device != "cpu"
    return share_work(engines, partial(on, "cpu") if falls_back else None, config, stats), repository


def share_work(
    engines: Sequence[Engine],
    make_fallback: Callable[[], Engine] | None,
    config: PipelineConfig,
    stats: StatsCounter,
) -> EnginePool:
    """Put retries around engines, and behind each the others and then the fallback.

    Args:
        engines: of one repository, with their sequences in one store.
        make_fallback: makes the engine that takes over when all have failed; None for none.
        config: how often and how long to try.
        stats: counts retries, fallbacks and lost sequences.
    """
    breakers = [CircuitBreaker(1, DEVICE_REST_SECONDS) for _ in engines]

    def resilient(number: int, *others: int) -> ResilientEngine:
        following = partial(resilient, *others) if others else make_fallback
        return ResilientEngine(
            engines[number],
            following,
            breaker=breakers[number] if following is not None else None,
            sequences_move=True,
            retries=config.retries,
            retry_delay_seconds=config.retry_delay_seconds,
            timeout=config.timeout_seconds,
            stats=stats,
        )

    numbers = range(len(engines))
    return EnginePool([resilient(*numbers[first:], *numbers[:first]) for first in numbers])


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
