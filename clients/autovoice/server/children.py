"""Processes that do not outlive the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def end_with_parent() -> Callable[[], None]:
    """A `preexec_fn` with which a child gets SIGTERM when the thread that started it ends."""
    parent = os.getpid()

    def ask_for_it() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it could be watched
            os._exit(1)

    return ask_for_it
