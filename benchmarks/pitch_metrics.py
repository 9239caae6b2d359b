"""How far a pitch track is from the pitch that a signal is known to have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

GROSS_RATIO = 0.2
"""An estimate further than 20 % from the truth is a gross error, as is usual since Rabiner et al. (1976)."""


@dataclass(frozen=True)
class PitchErrors:
    """Counts over frames; those of several signals can be added.

    Attributes:
        voiced: frames that have a pitch.
        unvoiced: frames that have none.
        missed: voiced frames called unvoiced.
        invented: unvoiced frames called voiced.
        gross: frames voiced in both whose estimate is further than 20 % from the truth.
        cents: sum of the absolute errors in cents of the other frames voiced in both.
    """

    voiced: int
    unvoiced: int
    missed: int
    invented: int
    gross: int
    cents: float

    def gross_percent(self) -> float | None:
        """Gross errors among the frames voiced in both; None where there are none."""
        return _percent(self.gross, self.voiced - self.missed)

    def fine_cents(self) -> float | None:
        """Mean absolute error in cents where it is not gross; None where there is no such frame."""
        good = self.voiced - self.missed - self.gross
        return self.cents / good if good else None

    def voicing_percent(self) -> float | None:
        """Wrong voicing decisions among all frames; None without any frame."""
        return _percent(self.missed + self.invented, self.voiced + self.unvoiced)

    def frame_percent(self) -> float | None:
        """Frames with either error, among all: the F0 frame error of Chu and Alwan (2009)."""
        return _percent(self.missed + self.invented + self.gross, self.voiced + self.unvoiced)


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def compare(truth: Array, estimate: Array) -> PitchErrors:
    """Holds an estimate against the truth, frame by frame.

    Args:
        truth: F0 in Hz, 0 where there is none, [F].
        estimate: the same for the same instants, [F].

    Raises:
        ValueError: the lengths differ.
    """
    if truth.shape != estimate.shape:
        raise ValueError(f"the truth has shape {truth.shape} and the estimate {estimate.shape}")
    voiced, called = truth > 0, estimate > 0
    both = voiced & called
    ratio = estimate[both] / truth[both]
    gross = np.abs(ratio - 1) > GROSS_RATIO
    return PitchErrors(
        voiced=int(voiced.sum()),
        unvoiced=int((~voiced).sum()),
        missed=int((voiced & ~called).sum()),
        invented=int((~voiced & called).sum()),
        gross=int(gross.sum()),
        cents=float(np.abs(1200 * np.log2(ratio[~gross])).sum()),
    )


def total(errors: Iterable[PitchErrors]) -> PitchErrors:
    """Adds up the errors of several signals."""
    every = list(errors)
    return PitchErrors(
        voiced=sum(each.voiced for each in every),
        unvoiced=sum(each.unvoiced for each in every),
        missed=sum(each.missed for each in every),
        invented=sum(each.invented for each in every),
        gross=sum(each.gross for each in every),
        cents=sum(each.cents for each in every),
    )
