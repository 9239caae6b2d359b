"""Retries and the fallback to the CPU, as an executor around executors."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from autovoice.errors import InferenceError, RequestError, SequenceError
from autovoice.executor import Executor, Sequence, Tensors
from autovoice.model_config import ModelSpec
from autovoice.results import StatsCounter

logger = logging.getLogger(__name__)

REST_SECONDS = 30.0  # how long a failed primary is left alone


class ResilientExecutor:
    """Sends a failed request again, then hands it to the fallback.

    While the primary rests after a failure, requests go straight to the fallback. A sequence can move in its
    middle when
    both executors share their sequence states.

    Args:
        primary: tried first.
        make_fallback: makes the fallback when it is first needed; None to raise instead.
        retries: how often a transient failure is sent again.
        retry_delay_seconds: pause before the first retry, doubled each time.
        timeout: default limit per request in seconds.
        stats: counts retries and fallbacks.
        rest_seconds: how long a failed primary is left alone.
    """

    def __init__(
        self,
        primary: Executor,
        make_fallback: Callable[[], Executor] | None,
        *,
        retries: int,
        retry_delay_seconds: float,
        timeout: float | None,
        stats: StatsCounter,
        rest_seconds: float = REST_SECONDS,
    ) -> None:
        self._primary = primary
        self._make_fallback = make_fallback
        self._fallback: Executor | None = None
        self._retries = retries
        self._retry_delay_seconds = retry_delay_seconds
        self._timeout = timeout
        self._stats = stats
        self._rest_seconds = rest_seconds
        self._resting_until = float("-inf")
        self._lock = threading.Lock()

    @property
    def device(self) -> str:
        """Where the next request will run."""
        if self._fallback is not None and time.monotonic() < self._resting_until:
            return self._fallback.device
        return self._primary.device

    def spec(self, model: str) -> ModelSpec:
        """The config of a model; see `Executor.spec`."""
        return self._primary.spec(model)

    def infer(
        self, model: str, inputs: Tensors, *, sequence: Sequence | None = None, timeout: float | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run one request; see `Executor.infer`."""
        limit = timeout if timeout is not None else self._timeout
        if self._make_fallback is not None and time.monotonic() < self._resting_until:
            return self._infer_on_fallback(model, inputs, sequence, limit)
        try:
            return self._infer_with_retries(model, inputs, sequence, limit)
        except (RequestError, SequenceError):
            raise
        except InferenceError as error:
            if self._make_fallback is None:
                raise
            logger.warning("%s failed on %s, falling back: %s", model, self._primary.device, error)
            self._resting_until = time.monotonic() + self._rest_seconds
        return self._infer_on_fallback(model, inputs, sequence, limit)

    def close(self) -> None:
        """Close both executors."""
        self._primary.close()
        if self._fallback is not None:
            self._fallback.close()

    def _infer_with_retries(
        self, model: str, inputs: Tensors, sequence: Sequence | None, limit: float | None
    ) -> dict[str, npt.NDArray[Any]]:
        for attempt in range(self._retries):
            try:
                return self._primary.infer(model, inputs, sequence=sequence, timeout=limit)
            except InferenceError as error:
                if not error.transient:
                    raise
                delay = self._retry_delay_seconds * 2**attempt
                logger.warning(
                    "%s failed, retry %d of %d in %.2f s: %s", model, attempt + 1, self._retries, delay, error
                )
            self._stats.retry()
            time.sleep(delay)
        return self._primary.infer(model, inputs, sequence=sequence, timeout=limit)

    def _infer_on_fallback(
        self, model: str, inputs: Tensors, sequence: Sequence | None, limit: float | None
    ) -> dict[str, npt.NDArray[Any]]:
        assert self._make_fallback is not None
        with self._lock:
            if self._fallback is None:
                self._fallback = self._make_fallback()
        self._stats.fallback()
        return self._fallback.infer(model, inputs, sequence=sequence, timeout=limit)
