"""What every command shares: its error line, and loading the engine so that Ctrl-C ends it in good order."""

from __future__ import annotations

import importlib
import signal
import sys
from types import FrameType

NATIVE_LIBRARIES = ("onnxruntime", "soundfile", "soxr")


def load_engine() -> None:
    """Import the native libraries, with an interrupt held back until they are there.

    A KeyboardInterrupt raised while one of them initialises itself crosses C++ frames: the process aborts and
    leaves what it was writing, or the interrupt is lost. To be called from the main thread.
    """
    pending = False

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal pending
        pending = True

    previous = signal.signal(signal.SIGINT, hold)
    try:
        for name in NATIVE_LIBRARIES:
            importlib.import_module(name)
    finally:
        signal.signal(signal.SIGINT, previous)
    if pending:
        raise KeyboardInterrupt


def report_error(error: BaseException | str) -> None:
    """Write one line on stderr, whatever the length of the message."""
    print("autovoice: " + " ".join(str(error).split()), file=sys.stderr)
