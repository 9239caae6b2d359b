"""Retries, a circuit breaker and the fallback to the CPU, as an engine around engines."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import numpy.typing as npt
import tenacity
from cachetools import LRUCache

from autovoice.engines.engine import Engine, Sequence, Tensors
from autovoice.errors import (
    CapacityError,
    DeviceError,
    InferenceError,
    RepositoryError,
    RequestError,
    SequenceError,
    StreamClosedError,
    UnavailableError,
    VoiceConversionError,
)
from autovoice.repository.model_config import ModelSpec
from autovoice.results import StatsCounter

logger = logging.getLogger(__name__)

MAX_DELAY_SECONDS = 10.0
MAX_SEQUENCES = 4096  # that the fallback started
_Answer = TypeVar("_Answer")


class ResilientEngine:
    """Sends a failed request again, then hands it to the fallback.

    While the breaker is open, requests go straight to the fallback, or fail at once where there is none. A
    sequence moves in its middle only when both engines share their states; otherwise it stays with the engine
    that started it, and a failure ends it.

    Args:
        primary: tried first.
        make_fallback: makes the fallback when it is first needed; None to raise instead.
        breaker: leaves a failing primary alone; None to ask it every time.
        sequences_move: whether the fallback has the states of the primary's sequences.
        retries: how often a transient failure is sent again.
        retry_delay_seconds: pause before the first retry, doubled each time; up to half of it is taken off at
            random, so that callers that failed together do not come back together.
        timeout: default limit per request in seconds, retries included.
        stats: counts retries, fallbacks and lost sequences.
    """

    def __init__(
        self,
        primary: Engine,
        make_fallback: Callable[[], Engine] | None,
        *,
        breaker: CircuitBreaker | None,
        sequences_move: bool,
        retries: int,
        retry_delay_seconds: float,
        timeout: float | None,
        stats: StatsCounter,
    ) -> None:
        self._primary = primary
        self._make_fallback = make_fallback
        self._fallback: Engine | None = None
        self._breaker = breaker if breaker is not None else CircuitBreaker(math.inf, 0.0)
        self._sequences_move = sequences_move
        self._on_fallback: LRUCache[int, Engine] = LRUCache(MAX_SEQUENCES)  # by sequence id
        self._enough_attempts = tenacity.stop_after_attempt(retries + 1)
        half, longest = retry_delay_seconds / 2, MAX_DELAY_SECONDS / 2
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, InferenceError) and error.transient
            ),
            wait=tenacity.wait_exponential(half, longest) + tenacity.wait_random_exponential(half, longest),
            before_sleep=self._note_retry,
            reraise=True,
        )
        self._timeout = timeout
        self._stats = stats
        self._lock = threading.Lock()
        self._closed = False

    @property
    def device(self) -> str:
        """Where the next request will run."""
        if self._fallback is not None and self._breaker.is_open:
            return self._fallback.device
        return self._primary.device

    def spec(self, model: str) -> ModelSpec:
        """The config of a model; see `Engine.spec`."""
        self._check_open()
        return self._call(lambda engine, _: engine.spec(model), self._timeout)[0]

    def infer(
        self, model: str, inputs: Tensors, *, sequence: Sequence | None = None, timeout: float | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run one request; see `Engine.infer`."""
        self._check_open()
        limit = timeout if timeout is not None else self._timeout
        stays = sequence is not None and not self._sequences_move
        try:
            if sequence is not None and stays and not sequence.start:
                engine = self._engine_of(sequence.id)
                outputs = engine.infer(model, inputs, sequence=sequence, timeout=limit)
                if engine is not self._primary:
                    self._stats.fallback()
            else:
                outputs, engine = self._call(
                    lambda engine, left: engine.infer(model, inputs, sequence=sequence, timeout=left),
                    limit,
                )
        except SequenceError:
            self._stats.lost_sequence()
            raise
        if sequence is not None and stays:
            with self._lock:
                self._on_fallback.pop(sequence.id, None)
                if engine is not self._primary and not sequence.end:
                    self._on_fallback[sequence.id] = engine
        return outputs

    def end_sequence(self, model: str, inputs: Tensors, sequence_id: int) -> None:
        """Drop the states of a sequence; see `Engine.end_sequence`."""
        if not self._closed:
            self._engine_of(sequence_id).end_sequence(model, inputs, sequence_id)
            with self._lock:
                self._on_fallback.pop(sequence_id, None)

    def close(self) -> None:
        """Close both engines; see `Engine.close`."""
        with self._lock:
            self._closed = True
        self._primary.close()
        if self._fallback is not None:
            self._fallback.close()

    def _call(
        self, call: Callable[[Engine, float | None], _Answer], limit: float | None
    ) -> tuple[_Answer, Engine]:
        """Make a call where it works; returns the answer and who gave it."""
        cause: InferenceError
        if self._breaker.admit():
            started = time.monotonic()
            too_late = tenacity.stop_before_delay(math.inf if limit is None else limit)
            try:
                for attempt in self._retrying.copy(stop=self._enough_attempts | too_late):
                    with attempt:
                        left = None if limit is None else started + limit - time.monotonic()
                        answer = call(self._primary, left)
                self._breaker.succeeded()
                return answer, self._primary
            except VoiceConversionError as error:
                if not _is_engine_failure(error):
                    self._breaker.succeeded()  # it answered
                    raise
                self._breaker.failed()
                if self._make_fallback is not None:
                    logger.warning("%s failed, falling back: %s", self._primary.device, error)
                cause = error
        else:
            cause = UnavailableError(
                f"{self._primary.device} keeps failing and is left alone for a moment; try again later"
            )
        fallback = self._open_fallback(cause)
        self._stats.fallback()
        return call(fallback, limit), fallback

    def _note_retry(self, state: tenacity.RetryCallState) -> None:
        self._stats.retry()
        error = state.outcome and state.outcome.exception()
        logger.warning("retry %d in %.2f s: %s", state.attempt_number, state.upcoming_sleep, error)

    def _open_fallback(self, cause: InferenceError) -> Engine:
        if self._make_fallback is None:
            raise cause
        with self._lock:
            self._check_open()
            if self._fallback is None:
                try:
                    self._fallback = self._make_fallback()
                except (RepositoryError, DeviceError) as error:
                    raise UnavailableError(
                        f"{cause}; and there is no fallback: {error} (or set fallback='raise')"
                    ) from cause
            return self._fallback

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError("this pipeline has been closed; make another")

    def _engine_of(self, sequence_id: int) -> Engine:
        with self._lock:
            engine: Engine = self._on_fallback.get(sequence_id, self._primary)
            return engine


def _is_engine_failure(error: VoiceConversionError) -> TypeGuard[InferenceError]:
    """Whether another engine may do better: not where the request, its sequence or their number is at
    fault."""
    return isinstance(error, InferenceError) and not isinstance(
        error, (RequestError, SequenceError, CapacityError)
    )


class CircuitBreaker:
    """Opens after failures in a row; from then on one request per rest is let through to try the engine.

    Thread safe.

    Args:
        threshold: failures in a row that open it; infinite to keep it closed.
        rest_seconds: how long it stays open.
    """

    def __init__(self, threshold: float, rest_seconds: float) -> None:
        self._threshold = threshold
        self._rest_seconds = rest_seconds
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether the engine is resting now."""
        with self._lock:
            return self._failures >= self._threshold and time.monotonic() < self._open_until

    def admit(self) -> bool:
        """Whether the caller may use the engine; who may must report back with `succeeded` or `failed`."""
        with self._lock:
            if self._failures < self._threshold:
                return True
            now = time.monotonic()
            if now < self._open_until:
                return False
            self._open_until = now + self._rest_seconds  # the others wait for this one's result
            return True

    def succeeded(self) -> None:
        """The engine answered."""
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        """The engine did not answer."""
        with self._lock:
            self._failures += 1
            self._open_until = time.monotonic() + self._rest_seconds
