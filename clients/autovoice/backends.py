"""From a `PipelineConfig` to the executor it asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable

from autovoice.config import PipelineConfig
from autovoice.embedded import EmbeddedExecutor, SequenceStore
from autovoice.errors import ConfigurationError, DeviceError
from autovoice.executor import Executor
from autovoice.family import OFFLINE
from autovoice.repository import ModelRepository
from autovoice.resilience import ResilientExecutor
from autovoice.results import StatsCounter

logger = logging.getLogger(__name__)


def make_executor(config: PipelineConfig, stats: StatsCounter) -> tuple[ResilientExecutor, ModelRepository]:
    """Open the configured repository and put retries and the fallback around its executor.

    Raises:
        ConfigurationError: for a backend that this version does not drive.
        RepositoryError: when the repository is missing.
        DeviceError: when the device is not to be had and `fallback` is not `"cpu"`.
    """
    if config.backend != "embedded":
        raise ConfigurationError(
            f"backend {config.backend!r} needs a Triton client, which this version does not have; use "
            "backend='embedded'"
        )
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
    if config.device == "auto" and not _device_works(primary):
        primary = on_cpu()
    # A CPU that failed would fail again: only another device has somewhere to fall back to.
    falls_back = config.fallback == "cpu" and primary.device != "cpu"
    return resilient(primary, on_cpu if falls_back else None, config, stats), repository


def _device_works(executor: EmbeddedExecutor) -> bool:
    """Whether `"auto"` chose well: ONNX Runtime offers CUDA wherever its library is installed, GPU or not."""
    if executor.device == "cpu":
        return True
    steps = executor.repository.steps_in_order(executor.spec(OFFLINE))
    try:
        executor.load(steps[-1].model)
    except DeviceError as error:
        logger.info("device 'auto' is the CPU: %s", error)
        return False
    return True


def resilient(
    primary: Executor,
    make_fallback: Callable[[], Executor] | None,
    config: PipelineConfig,
    stats: StatsCounter,
) -> ResilientExecutor:
    """Put the config's retries, timeout and fallback around an executor."""
    return ResilientExecutor(
        primary,
        make_fallback,
        retries=config.retries,
        retry_delay_seconds=config.retry_delay_seconds,
        timeout=config.timeout_seconds,
        stats=stats,
    )
