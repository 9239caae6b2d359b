"""Figures over many pairs, by condition and system."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from autovoice_training.evaluate.conditions import PLAIN
from autovoice_training.evaluate.judging import SYSTEMS, Scores, Verdict
from autovoice_training.evaluate.naturalness import Naturalness
from autovoice_training.evaluate.speaker import equal_error_rate

RESAMPLES = 1000

MEASURES: dict[str, Callable[[Scores], float | None]] = {
    "similarity_target": lambda scores: scores.similarity_target,
    "similarity_source": lambda scores: scores.similarity_source,
    "nearer_target": lambda scores: scores.nearer_target,
    "identified": lambda scores: scores.identified,
    "mcd": lambda scores: scores.mcd,
    "f0_correlation": lambda scores: scores.f0_correlation,
    "gross_error": lambda scores: scores.gross_error,
    "voicing_error": lambda scores: scores.voicing_error,
    **{field.name: operator.attrgetter(f"naturalness.{field.name}") for field in fields(Naturalness)},
}
"""Averaged over pairs. Word error rate and equal error rate are not among them: they pool all pairs."""

FACTORS: dict[str, Callable[[Verdict], bool]] = {
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
        figures: by system and measure; absent where no pair has what is measured.
        equal_error_rates: by system, of taking results for their targets.
        word_error_rates: by system; absent where no pair has a speaker the recogniser understands.
    """

    condition: str
    pairs: int
    figures: dict[str, dict[str, Figure]]
    equal_error_rates: dict[str, float]
    word_error_rates: dict[str, WordErrorRate]


def summarise(verdicts: Sequence[Verdict]) -> dict[str, Summary]:
    """Figures by condition.

    The plain conversions as a whole, by factor and by cell of the design; then each harder condition.
    """
    plain = [verdict for verdict in verdicts if verdict.condition == PLAIN.name]
    groups = {name: [one for one in plain if belongs(one)] for name, belongs in FACTORS.items()}
    for cell in sorted({verdict.pair.cell for verdict in plain}):
        groups[cell] = [one for one in plain if one.pair.cell == cell]
    for condition in dict.fromkeys(one.condition for one in verdicts if one.condition != PLAIN.name):
        groups[condition] = [one for one in verdicts if one.condition == condition]
    return {name: _summary(name, chosen) for name, chosen in groups.items() if chosen}


def mean_with_interval(values: Sequence[float]) -> Figure:
    """Mean and 95 % percentile bootstrap interval (Efron 1979), the same for the same values."""
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.percentile(array[draws].mean(axis=1), [2.5, 97.5])
    return Figure(float(array.mean()), float(low), float(high), len(array))


def _summary(condition: str, verdicts: Sequence[Verdict]) -> Summary:
    figures: dict[str, dict[str, Figure]] = {}
    equal, rates = {}, {}
    for system in SYSTEMS:
        having = [verdict for verdict in verdicts if system in verdict.scores]
        judged = [verdict.scores[system] for verdict in having]
        figures[system] = {}
        for name, measure in MEASURES.items():
            values = [float(value) for scores in judged if (value := measure(scores)) is not None]
            if values:
                figures[system][name] = mean_with_interval(values)
        if judged:
            others = [
                value
                for verdict in having
                for name, value in verdict.scores[system].similarities.items()
                if name != verdict.pair.target
            ]
            equal[system] = equal_error_rate([scores.similarity_target for scores in judged], others)
        counted = [
            (errors, verdict.words)
            for verdict in having
            if (errors := verdict.scores[system].word_errors) is not None
        ]
        if counted:
            errors, words = (sum(column) for column in zip(*counted, strict=True))
            rates[system] = WordErrorRate(errors / words, len(counted))
    return Summary(condition, len(verdicts), figures, equal, rates)
