"""Retries, a circuit breaker and the fallback to the CPU, as an engine around engines."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import numpy.typing as npt

from autovoice.engines.engine import Engine, Sequence, Tensors
from autovoice.errors import (
    DeviceError,
    InferenceError,
    RepositoryError,
    RequestError,
    SequenceError,
    UnavailableError,
)
from autovoice.repository.model_config import ModelSpec
from autovoice.results import StatsCounter

logger = logging.getLogger(__name__)

MAX_DELAY_SECONDS = 10.0
MAX_SEQUENCES = 4096  # whose engine is remembered
_Answer = TypeVar("_Answer")
_Call = Callable[[Engine, "float | None"], _Answer]


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
        self._breaker = breaker
        self._sequences_move = sequences_move
        self._homes: OrderedDict[int, Engine] = OrderedDict()
        self._retries = retries
        self._retry_delay_seconds = retry_delay_seconds
        self._timeout = timeout
        self._stats = stats
        self._lock = threading.Lock()

    @property
    def device(self) -> str:
        """Where the next request will run."""
        if self._fallback is not None and self._breaker is not None and self._breaker.is_open:
            return self._fallback.device
        return self._primary.device

    def spec(self, model: str) -> ModelSpec:
        """The config of a model; see `Engine.spec`."""
        return self._run(lambda engine, _: engine.spec(model), model, self._timeout)[0]

    def infer(
        self, model: str, inputs: Tensors, *, sequence: Sequence | None = None, timeout: float | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run one request; see `Engine.infer`."""
        limit = timeout if timeout is not None else self._timeout

        def call(engine: Engine, left: float | None) -> dict[str, npt.NDArray[Any]]:
            return engine.infer(model, inputs, sequence=sequence, timeout=left)

        try:
            if sequence is None or self._sequences_move:
                return self._run(call, model, limit)[0]
            if sequence.start:
                answer, home = self._run(call, model, limit)
            else:
                home = self._homes.get(sequence.id, self._primary)
                answer = call(home, limit)
                if home is not self._primary:
                    self._stats.fallback()
        except SequenceError:
            self._stats.lost_sequence()
            raise
        self._settle(sequence, home)
        return answer

    def close(self) -> None:
        """Close both engines."""
        self._primary.close()
        if self._fallback is not None:
            self._fallback.close()

    def _run(self, call: _Call[_Answer], model: str, limit: float | None) -> tuple[_Answer, Engine]:
        """Make a call where it works; returns the answer and who gave it."""
        if self._breaker is not None and not self._breaker.admit():
            cause: InferenceError = UnavailableError(
                f"{self._primary.device} keeps failing and is left alone for a moment; try again later"
            )
        else:
            try:
                return self._on_primary(call, model, limit), self._primary
            except InferenceError as error:
                if self._make_fallback is None or not _engine_failed(error):
                    raise
                logger.warning("%s failed on %s, falling back: %s", model, self._primary.device, error)
                cause = error
        if self._make_fallback is None:
            raise cause
        fallback = self._open_fallback(self._make_fallback, cause)
        self._stats.fallback()
        return call(fallback, limit), fallback

    def _on_primary(self, call: _Call[_Answer], model: str, limit: float | None) -> _Answer:
        try:
            answer = self._with_retries(call, model, limit)
        except BaseException as error:
            if self._breaker is not None:
                if isinstance(error, InferenceError) and _engine_failed(error):
                    self._breaker.failed()
                else:
                    self._breaker.succeeded()  # it answered, or is not to blame
            raise
        if self._breaker is not None:
            self._breaker.succeeded()
        return answer

    def _with_retries(self, call: _Call[_Answer], model: str, limit: float | None) -> _Answer:
        deadline = None if limit is None else time.monotonic() + limit
        attempt = 0
        while True:
            try:
                return call(self._primary, None if deadline is None else deadline - time.monotonic())
            except InferenceError as error:
                delay = min(self._retry_delay_seconds * 2**attempt, MAX_DELAY_SECONDS)
                delay *= random.uniform(0.5, 1.0)
                attempt += 1
                in_time = deadline is None or time.monotonic() + delay < deadline
                if not error.transient or attempt > self._retries or not in_time:
                    raise
                logger.warning(
                    "%s failed, retry %d of %d in %.2f s: %s", model, attempt, self._retries, delay, error
                )
            self._stats.retry()
            time.sleep(delay)

    def _open_fallback(self, make: Callable[[], Engine], cause: InferenceError) -> Engine:
        with self._lock:
            if self._fallback is None:
                try:
                    self._fallback = make()
                except (RepositoryError, DeviceError) as error:
                    raise UnavailableError(
                        f"{cause}; and there is no fallback: {error} (or set fallback='raise')"
                    ) from cause
            return self._fallback

    def _settle(self, sequence: Sequence, home: Engine) -> None:
        """Remember who holds a sequence; the primary needs no entry."""
        with self._lock:
            self._homes.pop(sequence.id, None)
            if home is not self._primary and not sequence.end:
                self._homes[sequence.id] = home
                while len(self._homes) > MAX_SEQUENCES:
                    self._homes.popitem(last=False)


def _engine_failed(error: InferenceError) -> bool:
    """Whether another engine may do better: not where the request or its sequence is at fault."""
    return not isinstance(error, (RequestError, SequenceError))


class CircuitBreaker:
    """Opens after failures in a row; from then on one request per rest is let through to try the engine.

    Thread safe.

    Args:
        threshold: failures in a row that open it.
        rest_seconds: how long it stays open.
    """

    def __init__(self, threshold: int, rest_seconds: float) -> None:
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
