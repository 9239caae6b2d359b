"""What is wrong with converted audio, found on the server without knowing how it should sound."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

ANSWERS = "answers"
NOT_FINITE = "not_finite"
SILENT = "silent"
CLIPPED = "clipped"
FAULTS = (NOT_FINITE, SILENT, CLIPPED)

AUDIO_TENSORS = (("SOURCE_AUDIO", "CONVERTED_AUDIO"), ("SOURCE", "MIXED_AUDIO"))
"""What goes into and comes out of the models that end an ensemble: of whole voices, and of RVC's windows."""

_HEARD_POWER = 1e-4  # of a source, -40 dB of full scale: no pause and no noise of a room
_SILENT_POWER = 1e-8  # of an answer, -80 dB
_FULL_SCALE = 1.0
_CLIPPED_LEVEL = 0.1  # what repeats its extreme below this is no clipping that is heard
_RUN = 5  # equal samples at the extreme: no sound has them, at 24 kHz, unless it was cut off there
_REPORT_SECONDS = 0.5


def audio_faults(source: FloatArray, converted: FloatArray) -> list[str]:
    """Faults of finite converted audio, `SILENT` or `CLIPPED` or none.

    A live stream answers late by its look-ahead, so its first chunks after digital silence count as silent,
    in every release alike.

    Args:
        source: what was converted [rows, samples], any rate.
        converted: the answer [rows, samples], any rate.
    """
    faults = []
    if any(
        _power(heard) > _HEARD_POWER and _power(made) < _SILENT_POWER
        for heard, made in zip(source, converted, strict=True)
    ):
        faults.append(SILENT)
    if any(_is_clipped(row) for row in converted):
        faults.append(CLIPPED)
    return faults


def _power(row: FloatArray) -> float:
    """Mean square without the offset, which nobody hears."""
    return float(np.dot(row, row)) / row.size - float(row.mean()) ** 2


def _is_clipped(row: FloatArray) -> bool:
    for extreme in (row.max(), row.min()):
        if abs(extreme) > _FULL_SCALE:
            return True
        if abs(extreme) > _CLIPPED_LEVEL:
            at = row == extreme
            if np.count_nonzero(at) >= _RUN and np.convolve(at, np.ones(_RUN), "valid").max() == _RUN:
                return True
    return False


class Metric(Protocol):
    """A counter of Triton's Python backend."""

    def increment(self, value: float, /) -> None:
        """Add to it."""


class AnswerCounter:
    """Counts answers and their faults, and adds them to Triton's metrics twice a second, from a thread.

    To tell Triton one number takes a tenth of a millisecond and more; to count it here, next to nothing.

    Args:
        metrics: by name: `ANSWERS` and each of `FAULTS`.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self._metrics = metrics
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="answer counter", daemon=True)
        self._thread.start()

    def count(self, faults: Iterable[str] = ()) -> None:
        """Count one answer."""
        with self._lock:
            self._counts.update((ANSWERS, *faults))

    def close(self) -> None:
        """Add what is left to the metrics, and end."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        ending = False
        while not ending:
            ending = self._ending.wait(_REPORT_SECONDS)
            with self._lock:
                counts, self._counts = self._counts, Counter()
            for name, count in counts.items():
                self._metrics[name].increment(count)
