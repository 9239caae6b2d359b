"""Timing of repeated calls, and one thread as a matter of fact."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import psutil


@dataclass(frozen=True)
class Timing:
    """Repeated runs of one thing, in seconds.

    Attributes:
        wall: time on the clock for every run.
        cpu: processor time of the whole process for every run.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median wall time."""
        return float(np.median(self.wall))

    @property
    def cpu_median(self) -> float:
        """Median processor time; equal to `median` for one thread on an idle machine."""
        return float(np.median(self.cpu))


def time_together(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Times several calls in turns, so that a change of the machine's speed meets them all.

    Every call is made once before the clock starts.

    Args:
        calls: what to time, by name.
        repeats: runs of each.
    """
    for call in calls.values():
        call()
    walls: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            walls[name].append(time.perf_counter() - wall)
            processor[name].append(time.process_time() - cpu)
    return {name: Timing(tuple(walls[name]), tuple(processor[name])) for name in calls}


@contextmanager
def cores(count: int, *, first: bool = False) -> Iterator[None]:
    """Keeps all threads of this process, and what it starts, on `count` cores inside the block.

    A thread count alone binds only the library that reads it; BLAS, OpenMP and PyTorch each have a pool of
    their own. Does nothing where the system cannot do it.

    Args:
        count: how many.
        first: the first ones of the machine rather than the last.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    ordered = sorted(allowed)
    _bind(set(ordered[:count] if first else ordered[-count:]))
    try:
        yield
    finally:
        _bind(allowed)


def _bind(chosen: set[int]) -> None:
    # The mask belongs to a thread, so pools that exist already need theirs set too.
    for thread in psutil.Process().threads():
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(thread.id, chosen)
