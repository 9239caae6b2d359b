"""Engines of several devices, and the work they share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

from autovoice.engines.engine import Engine

_Item = TypeVar("_Item")


class EnginePool:
    """Engines that give the same results, one for each device. Thread safe.

    Args:
        engines: at least one.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = tuple(engines)
        self._lock = threading.Lock()
        self._borrowers = [0] * len(self._engines)

    @property
    def first(self) -> Engine:
        """The engine for what is not shared."""
        return self._engines[0]

    @contextmanager
    def lend(self) -> Iterator[Engine]:
        """The engine with the least to do, the first of several."""
        with self._lock:
            index = self._borrowers.index(min(self._borrowers))
            self._borrowers[index] += 1
        try:
            yield self._engines[index]
        finally:
            with self._lock:
                self._borrowers[index] -= 1

    def share(self, work: Callable[[Engine, _Item], None], items: Iterable[_Item]) -> None:
        """Do the work on every item, in order and as many at once as there are engines.

        Raises:
            Exception: what the work raised first, in the order of the items; the items that were not begun
                then never are.
        """

        def do(item: _Item) -> None:
            with self.lend() as engine:
                work(engine, item)

        if len(self._engines) == 1:
            for item in items:
                do(item)
            return
        threads = ThreadPoolExecutor(len(self._engines), thread_name_prefix="autovoice-device")
        try:
            for future in [threads.submit(copy_context().run, do, item) for item in items]:
                future.result()
        finally:
            threads.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Close all engines."""
        for engine in self._engines:
            engine.close()
