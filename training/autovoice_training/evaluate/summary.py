"""Figures over many pairs, by condition and system."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autovoice_training.evaluate.judging import SYSTEMS, Scores, Verdict

RESAMPLES = 1000

MEASURES: dict[str, Callable[[Scores], float]] = {
    "similarity_target": lambda scores: scores.similarity_target,
    "similarity_source": lambda scores: scores.similarity_source,
    "nearer_target": lambda scores: scores.nearer_target,
    "identified": lambda scores: scores.identified,
    "mcd": lambda scores: scores.mcd,
    "f0_correlation": lambda scores: scores.f0_correlation,
    "gross_error": lambda scores: scores.gross_error,
    "voicing_error": lambda scores: scores.voicing_error,
}
"""Averaged over pairs. Word error rate is not among them: it is a ratio of sums."""

CONDITIONS: dict[str, Callable[[Verdict], bool]] = {
    "all": lambda verdict: True,
    "seen target": lambda verdict: verdict.pair.target_seen,
    "unseen target": lambda verdict: not verdict.pair.target_seen,
    "seen source": lambda verdict: verdict.pair.source_seen,
    "unseen source": lambda verdict: not verdict.pair.source_seen,
    "same sex": lambda verdict: verdict.pair.same_sex,
    "cross sex": lambda verdict: not verdict.pair.same_sex,
}


@dataclass(frozen=True)
class Figure:
    """A mean over pairs.

    Attributes:
        value: the mean.
        low: lower end of its 95 % interval by bootstrap over pairs.
        high: upper end.
        pairs: how many.
    """

    value: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class WordErrorRate:
    """Errors over words on the pairs whose speaker the recogniser understands unconverted."""

    value: float
    pairs: int


@dataclass(frozen=True)
class Summary:
    """All figures of one condition.

    Attributes:
        condition: its name.
        pairs: how many are in it.
        figures: by system and measure.
        word_error_rates: by system; absent where no pair has a speaker the recogniser understands.
    """

    condition: str
    pairs: int
    figures: dict[str, dict[str, Figure]]
    word_error_rates: dict[str, WordErrorRate]


def summarise(verdicts: Sequence[Verdict]) -> dict[str, Summary]:
    """Figures by condition: the whole, each factor by itself, and every cell of the design that has pairs."""
    conditions = dict(CONDITIONS)
    for cell in sorted({verdict.pair.condition for verdict in verdicts}):
        conditions[cell] = lambda verdict, cell=cell: verdict.pair.condition == cell  # type: ignore[misc]
    summaries = {}
    for condition, belongs in conditions.items():
        chosen = [verdict for verdict in verdicts if belongs(verdict)]
        if chosen:
            summaries[condition] = _summary(condition, chosen)
    return summaries


def mean_with_interval(values: Sequence[float]) -> Figure:
    """Mean and 95 % percentile bootstrap interval (Efron 1979), the same for the same values."""
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.percentile(array[draws].mean(axis=1), [2.5, 97.5])
    return Figure(float(array.mean()), float(low), float(high), len(array))


def _summary(condition: str, verdicts: Sequence[Verdict]) -> Summary:
    figures = {
        system: {
            name: mean_with_interval([float(measure(verdict.scores[system])) for verdict in verdicts])
            for name, measure in MEASURES.items()
        }
        for system in SYSTEMS
    }
    rates = {}
    for system in SYSTEMS:
        counted = [
            (errors, verdict.words)
            for verdict in verdicts
            if (errors := verdict.scores[system].word_errors) is not None
        ]
        if counted:
            errors, words = (sum(column) for column in zip(*counted, strict=True))
            rates[system] = WordErrorRate(errors / words, len(counted))
    return Summary(condition, len(verdicts), figures, rates)
