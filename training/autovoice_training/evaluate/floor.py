"""The least a released voice must reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autovoice_training.evaluate.judging import RESULT, SOURCE
from autovoice_training.evaluate.summary import Summary

MIN_PAIRS = 60
MIN_F0_CORRELATION = 0.95
MIN_NEARER_SEEN = 0.90
MIN_NEARER_UNSEEN = 0.75
MAX_MCD_RATIO = 0.85
MAX_WER_INCREASE = 0.25


@dataclass(frozen=True)
class FloorLine:
    """One requirement and what was measured.

    Attributes:
        requirement: in words.
        measured: with its unit; "not measured" where no pair tells.
        passed: whether it is met. What was not measured is not met.
    """

    requirement: str
    measured: str
    passed: bool


def check_floor(summaries: Mapping[str, Summary]) -> list[FloorLine]:
    """Holds the figures of the voice under test against the floor."""
    everything = summaries["all"]
    result, source = everything.figures[RESULT], everything.figures[SOURCE]
    correlation = result["f0_correlation"].value
    distortion = result["mcd"].value / source["mcd"].value
    lines = [
        FloorLine(f"at least {MIN_PAIRS} conversions", f"{everything.pairs}", everything.pairs >= MIN_PAIRS),
        FloorLine(
            f"log-F0 correlation at least {MIN_F0_CORRELATION}",
            f"{correlation:.3f}",
            correlation >= MIN_F0_CORRELATION,
        ),
        _nearer(summaries, "seen target", MIN_NEARER_SEEN),
        _nearer(summaries, "unseen target", MIN_NEARER_UNSEEN),
        FloorLine(
            f"mel-cepstral distortion at least {1 - MAX_MCD_RATIO:.0%} below the source's",
            f"{1 - distortion:.1%} ({result['mcd'].value:.2f} dB for {source['mcd'].value:.2f} dB)",
            distortion <= MAX_MCD_RATIO,
        ),
    ]
    requirement = f"word error rate at most {100 * MAX_WER_INCREASE:.0f} points above the source's"
    rates = everything.word_error_rates
    if SOURCE not in rates:
        return [*lines, FloorLine(requirement, "not measured", False)]
    increase = rates[RESULT].value - rates[SOURCE].value
    measured = f"{100 * increase:.1f} points ({rates[RESULT].value:.1%} for {rates[SOURCE].value:.1%})"
    return [*lines, FloorLine(requirement, measured, increase <= MAX_WER_INCREASE)]


def _nearer(summaries: Mapping[str, Summary], condition: str, least: float) -> FloorLine:
    requirement = f"nearer to the target than to the source in {least:.0%} of pairs, {condition}"
    if condition not in summaries:
        return FloorLine(requirement, "not measured", False)
    figure = summaries[condition].figures[RESULT]["nearer_target"]
    return FloorLine(requirement, f"{figure.value:.1%} of {figure.pairs}", figure.value >= least)
