"""Figures over many pairs, by set and system."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autovoice_training.evaluate.conditions import PLAIN
from autovoice_training.evaluate.judging import RESULT, SYSTEMS, Verdict

RESAMPLES = 1000


@dataclass(frozen=True)
class Measure:
    """How a measure is shown.

    Attributes:
        title: of its column.
        digits: behind the point.
        percent: whether it is shown as a percentage.
    """

    title: str
    digits: int = 2
    percent: bool = False


WORD_ERROR_RATE = "whisper_wer"

MEASURES: dict[str, Measure] = {
    "spk_nearer_target": Measure("nearer to target than to source, CAM++, %", 0, True),
    "spk_similarity": Measure("similarity to target, CAM++"),
    "spk_similarity_source": Measure("to source, CAM++"),
    "spk_similarity_file": Measure("to the source file, CAM++"),
    WORD_ERROR_RATE: Measure("words wrong, Whisper base, %", 1, True),
    "distill_mos": Measure("DistillMOS"),
    "dns_overall": Measure("DNSMOS overall"),
    "dns_sig": Measure("DNSMOS speech"),
    "dns_bak": Measure("DNSMOS background"),
    "dns_p808": Measure("DNSMOS P.808"),
    "ge2e_similarity": Measure("similarity to target, GE2E (in the loss)"),
    "ge2e_similarity_source": Measure("to source, GE2E (in the loss)"),
    "ge2e_nearer_target": Measure("nearer to target, GE2E (in the loss), %", 0, True),
    "f0_corr": Measure("log-F0 correlation", 3),
    "gross_error": Measure("gross pitch errors, %", 1, True),
    "voicing_error": Measure("voicing errors, %", 1, True),
    "high_band": Measure("power above 8 kHz, dB", 1),
    "high_band_difference": Measure("power above 8 kHz beyond the target's, dB", 1),
    "line": Measure("strongest line, dB", 1),
    "click": Measure("strongest click, times the source's"),
    "offset": Measure("offset, dBFS", 1),
    "peak": Measure("peak, dBFS", 1),
}
"""By name, which is VERSA's (Shi et al. 2025) where it has the measure: spk_similarity, whisper_wer,
dns_overall, dns_p808, f0_corr."""


@dataclass(frozen=True)
class Figure:
    """A measure over pairs.

    Attributes:
        value: the mean; of word error rates, errors over words.
        low: lower end of its 95 % interval by bootstrap over pairs.
        high: upper end.
        most: the largest value of any pair.
        pairs: how many.
    """

    value: float
    low: float
    high: float
    most: float
    pairs: int


Summary = dict[str, dict[str, Figure]]
"""By row (a system, or `result` of pairs of same or other sex), then by measure; absent where none has it."""

ROWS: dict[str, tuple[str, str, Callable[[Verdict], bool]]] = {
    **{system: (title, system, lambda verdict: True) for system, title in SYSTEMS.items()},
    "result_same_sex": ("AutoVoice, same sex", RESULT, lambda verdict: verdict.pair.same_sex),
    "result_other_sex": ("AutoVoice, other sex", RESULT, lambda verdict: not verdict.pair.same_sex),
}
"""By name: title, system, and which pairs belong to it."""


def summarise(groups: Sequence[str], verdicts: Sequence[Verdict]) -> dict[str, Summary]:
    """Figures by set; a harder condition stands by itself, as `SET, CONDITION`.

    Args:
        groups: the set of each verdict.
        verdicts: of all conversions.
    """
    by_group: dict[str, list[Verdict]] = {}
    for group, verdict in zip(groups, verdicts, strict=True):
        name = group if verdict.condition == PLAIN.name else f"{group}, {verdict.condition}"
        by_group.setdefault(name, []).append(verdict)
    return {name: _summary(chosen) for name, chosen in by_group.items()}


def ratio_with_interval(numerators: Sequence[float], denominators: Sequence[float]) -> Figure:
    """Sum over sum, with a 95 % percentile bootstrap interval (Efron 1979), the same for the same values."""
    over, under = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    draws = np.random.default_rng(0).integers(len(over), size=(RESAMPLES, len(over)))
    low, high = np.percentile(over[draws].sum(axis=1) / under[draws].sum(axis=1), [2.5, 97.5])
    return Figure(
        float(over.sum() / under.sum()), float(low), float(high), float((over / under).max()), len(over)
    )


def _summary(verdicts: Sequence[Verdict]) -> Summary:
    rows = {}
    for row, (_, system, belongs) in ROWS.items():
        judged = [one.scores[system] for one in verdicts if system in one.scores and belongs(one)]
        if figures := _figures(judged):
            rows[row] = figures
    return rows


def _figures(judged: Sequence[Mapping[str, float]]) -> dict[str, Figure]:
    figures = {}
    for name in MEASURES:
        if name == WORD_ERROR_RATE:
            counted = [(one["word_errors"], one["words"]) for one in judged if one.get("words")]
        else:
            counted = [(one[name], 1.0) for one in judged if name in one]
        if counted:
            numerators, denominators = zip(*counted, strict=True)
            figures[name] = ratio_with_interval(numerators, denominators)
    return figures
