"""What the judges of the evaluation say of a release, beside the one that it is compared with."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autovoice.audio.source import ArraySource
from autovoice.errors import ConfigurationError
from autovoice.gate.converter import BLOCK_SECONDS, Converter, base_converter
from autovoice.gate.report import Check
from autovoice.gate.suite import Suite
from autovoice.results import FloatArray
from autovoice.voices.base import BaseVoice


@dataclass(frozen=True)
class Margin:
    """How much worse a release may be, on average over the suite.

    Attributes:
        worse: the difference allowed.
        sign: 1 where more is better, -1 where less is.
        text: of a figure.
    """

    worse: float
    sign: int
    text: str


MARGINS = {
    "words": Margin(0.02, -1, "{:.1%} wrong"),
    "identity": Margin(0.02, 1, "CAM++ {:.3f}"),
    "melody": Margin(0.02, 1, "log-F0 correlation {:.3f}"),
    "naturalness": Margin(0.1, 1, "DistillMOS {:.2f}"),
}
"""By the measure, which is the check's name and what the judges call it."""


@dataclass(frozen=True)
class Conversions:
    """What a voice of a release made of a suite; equal places belong together.

    Attributes:
        sources: mono audio [T] at `rate`.
        targets: recordings of whom they are converted to, at `rate`; None where the voice is its own.
        made: the results, at `rate`.
        shifts: semitones.
        rate: Hz.
    """

    sources: list[FloatArray]
    targets: list[FloatArray | None]
    made: list[FloatArray]
    shifts: list[float]
    rate: int


def load_judges() -> Any:
    """The module that asks the judges.

    Raises:
        ConfigurationError: the judges are not installed.
    """
    try:
        return importlib.import_module("autovoice_training.evaluate.release")
    except ImportError as error:
        raise ConfigurationError(
            f"the judges are not installed ({error}); run `pip install 'autovoice[judge]'`, or leave them "
            "out by --no-judges"
        ) from error


def judge_checks(
    judges: Any, new: Mapping[str, Converter], old: Mapping[str, Converter], suite: Suite
) -> Iterator[Check]:
    """Ask the judges about each voice that both releases have; the worst voice counts.

    Args:
        judges: of `load_judges`.
        new: voices of the release that is tried, by name.
        old: those of the one it is compared with.
        suite: what is converted.

    Raises:
        InferenceError: a release failed.
    """
    found = {
        name: (_measure(judges, new[name], suite), _measure(judges, old[name], suite))
        for name in new
        if name in old
    }
    yield from compare(found)


def compare(found: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]]) -> Iterator[Check]:
    """Hold the figures of two releases against `MARGINS`.

    Args:
        found: for each voice, the figures of the release that is tried and of the other one.
    """
    for measure, margin in MARGINS.items():
        pairs = {
            name: (mine[measure], other[measure]) for name, (mine, other) in found.items() if measure in mine
        }
        if not pairs:
            yield Check(measure, "left out", reason="no voice that both releases have can be judged by it")
            continue
        name, (mine, other) = max(pairs.items(), key=lambda item: margin.sign * (item[1][1] - item[1][0]))
        worse = margin.sign * (other - mine)
        figure = f"{margin.text.format(mine)}, {margin.text.format(other)} before"
        limit = f"{margin.worse:g} worse"
        values = {"new": mine, "old": other, "worse": worse}
        if worse > margin.worse:
            yield Check(measure, "refused", figure, limit, f"{name} is {worse:.3g} worse", values)
        else:
            yield Check(measure, "passed", figure, limit, "", values)


def _measure(judges: Any, converter: Converter, suite: Suite) -> Mapping[str, float]:
    figures: Mapping[str, float] = judges.measure(**vars(convert_suite(converter, suite)))
    return figures


def convert_suite(converter: Converter, suite: Suite) -> Conversions:
    """Convert every source to every target, its pitch shifted to the target's."""
    voice, engine = converter.voice, converter.engine
    rate, made_rate = voice.sample_rate, voice.output_sample_rate
    made = Conversions([], [], [], [], made_rate)
    for recording in suite.sources:
        source = recording.at(rate)
        for target in suite.targets if isinstance(voice, BaseVoice) else (None,):
            one, shift = converter, 0.0
            if target is not None and isinstance(voice, BaseVoice):
                one = base_converter(engine, voice, target.audio, target.sample_rate)
                wanted = replace(one.target, shift_semitones=None)
                block = round(BLOCK_SECONDS * rate)
                shift = voice.resolve(engine, wanted, ArraySource(source, rate), block).shift_semitones or 0.0
            made.sources.append(recording.at(made_rate))
            made.targets.append(None if target is None else target.at(made_rate))
            made.made.append(np.ascontiguousarray(one.whole(source, shift)))
            made.shifts.append(shift)
    return made
