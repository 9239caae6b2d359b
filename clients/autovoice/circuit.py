"""A circuit breaker: an engine that keeps failing is left alone for a while."""

from __future__ import annotations

import threading
import time


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
