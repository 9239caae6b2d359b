"""The least a released voice must reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autovoice_training.evaluate.conditions import PLAIN
from autovoice_training.evaluate.judging import COPY, RESULT, SOURCE, WORLD, Verdict
from autovoice_training.evaluate.summary import Summary

MIN_PAIRS = 60
MIN_IDENTIFIED = {"seen target": 0.95, "unseen target": 0.75}
MIN_SIMILARITY = {"seen target": 0.78, "unseen target": 0.70}
MIN_NEARER = {"seen target": 0.98, "unseen target": 0.93}
MAX_WER_INCREASE = 0.10
MIN_F0_CORRELATION = 0.97
MAX_GROSS_ERROR = 0.02
MAX_VOICING_ERROR = 0.08
MIN_MCD_BELOW = {SOURCE: 0.30, WORLD: 0.15}
NATURAL = {"f0_roughness": "F0 roughness", "cepstral_delta": "cepstral delta"}
MAX_CLICK_RATIO = 6.0
MAX_OFFSET_DBFS = -60.0
MAX_PEAK_DBFS = 0.0

NOT_MEASURED = "not measured"


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


def check_floor(
    verdicts: Sequence[Verdict], summaries: Mapping[str, Summary], natural: Mapping[str, tuple[float, float]]
) -> list[FloorLine]:
    """Holds the figures of the voice under test against the floor.

    Args:
        verdicts: of all conversions.
        summaries: of the same, by condition.
        natural: range of the naturalness proxies over natural voices, see `Jury.natural_range`.
    """
    everything = summaries["all"]
    plain = [verdict for verdict in verdicts if verdict.condition == PLAIN.name]
    return [
        FloorLine(f"at least {MIN_PAIRS} conversions", f"{everything.pairs}", everything.pairs >= MIN_PAIRS),
        *_by_target(
            summaries, "identified", "rank-1 identification at least {:.0%}", MIN_IDENTIFIED, "{:.1%}"
        ),
        *_by_target(summaries, "similarity_target", "similarity at least {:.2f}", MIN_SIMILARITY, "{:.3f}"),
        *_by_target(
            summaries, "nearer_target", "nearer to target than to source in {:.0%}", MIN_NEARER, "{:.1%}"
        ),
        _words(everything),
        _figure(
            everything,
            "f0_correlation",
            f"log-F0 correlation at least {MIN_F0_CORRELATION}",
            "{:.3f}",
            lambda value: value >= MIN_F0_CORRELATION,
        ),
        _figure(
            everything,
            "gross_error",
            f"gross pitch errors under {MAX_GROSS_ERROR:.0%}",
            "{:.2%}",
            lambda value: value < MAX_GROSS_ERROR,
        ),
        _figure(
            everything,
            "voicing_error",
            f"voicing errors under {MAX_VOICING_ERROR:.0%}",
            "{:.1%}",
            lambda value: value < MAX_VOICING_ERROR,
        ),
        *(_distortion(everything, system, least) for system, least in MIN_MCD_BELOW.items()),
        *(_natural(everything, key, natural[key]) for key in NATURAL),
        _clicks(plain),
        _worst(plain, "offset", MAX_OFFSET_DBFS, "no DC: offset"),
        _worst(plain, "peak", MAX_PEAK_DBFS, "peak"),
    ]


def _figure(
    summary: Summary, measure: str, requirement: str, form: str, passes: Callable[[float], bool]
) -> FloorLine:
    figure = summary.figures[RESULT].get(measure)
    if figure is None:
        return FloorLine(requirement, NOT_MEASURED, False)
    return FloorLine(
        requirement, f"{form.format(figure.value)} of {figure.pairs} pairs", passes(figure.value)
    )


def _by_target(
    summaries: Mapping[str, Summary], measure: str, requirement: str, least: Mapping[str, float], form: str
) -> list[FloorLine]:
    lines = []
    for condition, bound in least.items():
        text = f"{requirement.format(bound)}, {condition}"
        if condition in summaries:
            passes = _at_least(bound)
            lines.append(_figure(summaries[condition], measure, text, form, passes))
        else:
            lines.append(FloorLine(text, NOT_MEASURED, False))
    return lines


def _at_least(bound: float) -> Callable[[float], bool]:
    return lambda value: value >= bound


def _words(summary: Summary) -> FloorLine:
    requirement = f"word error rate at most {100 * MAX_WER_INCREASE:.0f} points above the source's"
    rates = summary.word_error_rates
    if SOURCE not in rates:
        return FloorLine(requirement, NOT_MEASURED, False)
    increase = rates[RESULT].value - rates[SOURCE].value
    measured = (
        f"{100 * increase:.1f} points ({rates[RESULT].value:.1%} for {rates[SOURCE].value:.1%}, "
        f"{rates[RESULT].pairs} pairs)"
    )
    return FloorLine(requirement, measured, increase <= MAX_WER_INCREASE)


def _distortion(summary: Summary, system: str, least: float) -> FloorLine:
    names = {SOURCE: "the unconverted source's", WORLD: "the WORLD shift's"}
    requirement = f"mel-cepstral distortion at least {least:.0%} below {names[system]}"
    if "mcd" not in summary.figures[RESULT]:
        return FloorLine(requirement, NOT_MEASURED, False)
    found, other = (summary.figures[one]["mcd"].value for one in (RESULT, system))
    below = 1.0 - found / other
    return FloorLine(requirement, f"{below:.1%} ({found:.2f} dB for {other:.2f} dB)", below >= least)


def _natural(summary: Summary, measure: str, natural: tuple[float, float]) -> FloorLine:
    low, high = natural
    requirement = f"{NATURAL[measure]} as in natural voices, {low:.1f} to {high:.1f}"
    return _figure(summary, measure, requirement, "{:.1f}", lambda value: low <= value <= high)


def _clicks(verdicts: Sequence[Verdict]) -> FloorLine:
    requirement = f"no click beyond {MAX_CLICK_RATIO:.0f} times what copy-synthesis has"
    ratios = [
        verdict.scores[RESULT].naturalness.click / verdict.scores[COPY].naturalness.click
        for verdict in verdicts
        if COPY in verdict.scores
    ]
    if not ratios:
        return FloorLine(requirement, NOT_MEASURED, False)
    return FloorLine(requirement, f"{max(ratios):.2f} times at most", max(ratios) <= MAX_CLICK_RATIO)


def _worst(verdicts: Sequence[Verdict], measure: str, most: float, name: str) -> FloorLine:
    worst = max(getattr(verdict.scores[RESULT].naturalness, measure) for verdict in verdicts)
    return FloorLine(f"{name} under {most:.0f} dBFS", f"{worst:.1f} dBFS at most", worst < most)
