"""The least a released voice must reach, and what it aims at."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from autovoice_training.evaluate.judging import OWN, RESULT, SOURCE
from autovoice_training.evaluate.sets import EVALUATION, KOKORO, PEOPLE
from autovoice_training.evaluate.summary import MEASURES, ROWS, Figure, Measure, Summary

MIN_PAIRS = 40
MAX_CLICK_RATIO = 4.0
MAX_OFFSET_DBFS = -60.0
MAX_PEAK_DBFS = 0.0

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Floor:
    """One requirement.

    Attributes:
        group: name of the set.
        row: of `summary.ROWS`.
        measure: of `summary.MEASURES`.
        bound: the least, or with `at_most` the most.
        aim: what would be better; None where the bound says all.
        at_most: whether the bound is an upper one.
        beyond_source: whether the bound is relative to the source's figure.
        worst: whether the largest value of any pair is meant and not the mean.
    """

    group: str
    row: str
    measure: str
    bound: float
    aim: float | None = None
    at_most: bool = False
    beyond_source: bool = False
    worst: bool = False


@dataclass(frozen=True)
class FloorLine:
    """One requirement and what was measured.

    Attributes:
        requirement: in words.
        measured: with its interval and number of pairs; "not measured" where no pair tells.
        aim: in words, empty where there is none.
        passed: whether it is met. What was not measured is not met.
    """

    requirement: str
    measured: str
    aim: str
    passed: bool


def _of_any_speech(group: str, correlation: float, voicing: float) -> tuple[Floor, ...]:
    return (
        Floor(group, RESULT, "f0_corr", correlation),
        Floor(group, RESULT, "voicing_error", voicing, at_most=True),
        Floor(group, RESULT, "line", 1.0, at_most=True, beyond_source=True),
        Floor(group, RESULT, "click", MAX_CLICK_RATIO, at_most=True, worst=True),
        Floor(group, RESULT, "offset", MAX_OFFSET_DBFS, at_most=True),
        Floor(group, RESULT, "peak", MAX_PEAK_DBFS, at_most=True, worst=True),
    )


FLOORS = (
    Floor(KOKORO, RESULT, "spk_nearer_target", 0.92, 0.98),
    Floor(KOKORO, RESULT, "spk_similarity", 0.62, 0.72),
    Floor(KOKORO, RESULT, "whisper_wer", 0.04, 0.02, at_most=True, beyond_source=True),
    Floor(KOKORO, RESULT, "distill_mos", 3.2, 3.8),
    # Nothing is missing above 8 kHz where the target has it.
    Floor(KOKORO, RESULT, "high_band_difference", -6.0),
    *_of_any_speech(KOKORO, 0.975, 0.05),
    Floor(PEOPLE, RESULT, "spk_nearer_target", 0.80, 0.95),
    Floor(PEOPLE, RESULT, "spk_similarity", 0.54, 0.62),
    Floor(PEOPLE, RESULT, "whisper_wer", 0.10, 0.05, at_most=True, beyond_source=True),
    Floor(PEOPLE, RESULT, "distill_mos", 2.85, 3.3),
    *_of_any_speech(PEOPLE, 0.95, 0.08),
    Floor(PEOPLE, OWN, "spk_similarity_file", 0.82, 0.88),
    Floor(PEOPLE, OWN, "whisper_wer", 0.10, 0.05, at_most=True, beyond_source=True),
    Floor(PEOPLE, OWN, "distill_mos", 2.95, 3.4),
)


def check_floors(summaries: Mapping[str, Summary], groups: Collection[str], kind: str) -> list[FloorLine]:
    """Holds the figures of the voice under test against the floors.

    Args:
        summaries: by set.
        groups: the sets that were asked for, also those that are missing.
        kind: `sets.DEVELOPMENT` or `sets.EVALUATION`; the latter alone must have MIN_PAIRS pairs.
    """
    lines = []
    for group in dict.fromkeys(floor.group for floor in FLOORS if floor.group in groups):
        rows = summaries.get(group, {})
        if kind == EVALUATION:
            figure = rows.get(RESULT, {}).get("spk_similarity")
            pairs = figure.pairs if figure else 0
            lines.append(
                FloorLine(f"{group}: at least {MIN_PAIRS} pairs", f"{pairs}", "", pairs >= MIN_PAIRS)
            )
        lines += [_check(floor, rows) for floor in FLOORS if floor.group == group]
    return lines


def _check(floor: Floor, rows: Summary) -> FloorLine:
    measure = MEASURES[floor.measure]
    side = "at most" if floor.at_most else "at least"
    beyond = " more than the source" if floor.beyond_source else ""
    requirement = (
        f"{floor.group}, {ROWS[floor.row][0]}: {measure.title} {side} {shown(floor.bound, measure)}{beyond}"
        + (", every pair" if floor.worst else "")
    )
    aim = "" if floor.aim is None else shown(floor.aim, measure)
    figure = rows.get(floor.row, {}).get(floor.measure)
    source = rows.get(SOURCE, {}).get(floor.measure) if floor.beyond_source else None
    if figure is None or (floor.beyond_source and source is None):
        return FloorLine(requirement, NOT_MEASURED, aim, False)
    value = figure.most if floor.worst else figure.value
    bound = floor.bound + (source.value if source else 0.0)
    measured = shown(value, measure) if floor.worst else with_interval(figure, measure)
    measured += f", {figure.pairs} pairs"
    if source:
        measured += f"; source {shown(source.value, measure)}"
    return FloorLine(requirement, measured, aim, value <= bound if floor.at_most else value >= bound)


def shown(value: float, measure: Measure) -> str:
    """A value as tables show it."""
    return f"{value * (100.0 if measure.percent else 1.0):.{measure.digits}f}"


def with_interval(figure: Figure, measure: Measure) -> str:
    """A figure as tables show it."""
    return f"{shown(figure.value, measure)} ({shown(figure.low, measure)} to {shown(figure.high, measure)})"
