"""How long requests take, beside those of another release in the same run."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autovoice.gate.converter import LIVE_SECONDS, Converter
from autovoice.gate.report import Check
from autovoice.results import FloatArray
from autovoice.voices.voice import VoiceStream

RTF, P99 = "RTF", "p99"
RATIOS = {RTF: 1.25, P99: 1.5}
"""Of a release's figure to that of the one it is compared with, at most."""
LONGEST_RTF = 1.0
"""Where there is nothing to compare with: what a live stream needs."""
TRIES = 3
WHOLE_SECONDS = 1.0

Send = Callable[[], object]


@dataclass(frozen=True)
class Figure:
    """One figure of one voice.

    Attributes:
        measure: `RTF`, the median compute time over audio time, or `P99`, the 99th percentile in seconds.
        kind: of request: `"whole"` or `"live"`.
        voice: its name.
        mine: of the release that is tried.
        other: of the one it is compared with; None for none.
    """

    measure: str
    kind: str
    voice: str
    mine: float
    other: float | None

    @property
    def excess(self) -> float:
        """The figure over its limit; above 1 it is refused."""
        if self.other is not None:
            return self.mine / self.other / RATIOS[self.measure]
        return self.mine / LONGEST_RTF if self.measure == RTF else 0.0

    def check(self) -> Check:
        """The check of it."""
        name = f"{self.measure}, {self.kind}"
        text, values = self._text(self.mine), {"new": self.mine}
        if self.other is None:
            if self.measure == P99:
                reason = "there is no release to compare with"
                return Check(name, "left out", text, "", reason, values)
            limit, reason = f"{LONGEST_RTF:g}", f"{self.voice} is slower than its audio"
        else:
            ratio = self.mine / self.other
            text += f", {ratio:.2f} times {self._text(self.other)}"
            limit, reason = f"{RATIOS[self.measure]:g} times", f"{self.voice} takes {ratio:.2f} times as long"
            values |= {"old": self.other, "ratio": ratio}
        if self.excess > 1:
            return Check(name, "refused", text, limit, reason, values)
        return Check(name, "passed", text, limit, "", values)

    def _text(self, value: float) -> str:
        return f"{value * 1e3:.1f} ms" if self.measure == P99 else f"{value:.4f}"


def speed_checks(
    new: Mapping[str, Converter], old: Mapping[str, Converter], speech: Mapping[str, FloatArray], rounds: int
) -> list[Check]:
    """Time whole requests and pieces of live streams, in turn with those of the other release.

    What passes a limit is measured again, at most `TRIES` times in all, and the best counts: a machine that
    was busy for a moment is no reason to refuse a release.

    Args:
        new: voices of the release that is tried, by name.
        old: those of the one it is compared with; voices that both have are compared.
        speech: for each voice, at its rate [T].
        rounds: requests of each kind to each release.

    Raises:
        InferenceError: a release failed.
    """
    worst: dict[tuple[str, str], Figure] = {}
    for name in [name for name in new if name in old] or list(new):
        best: dict[tuple[str, str], Figure] = {}
        for _ in range(TRIES):
            for figure in _measure(name, new[name], old.get(name), speech[name], rounds):
                key = figure.kind, figure.measure
                best[key] = min(best.get(key, figure), figure, key=lambda one: one.excess)
            if all(figure.excess <= 1 for figure in best.values()):
                break
        for key, figure in best.items():
            worst[key] = max(worst.get(key, figure), figure, key=lambda one: one.excess)
    return [figure.check() for figure in worst.values()]


def _measure(
    name: str, new: Converter, old: Converter | None, speech: FloatArray, rounds: int
) -> Iterator[Figure]:
    converters = [new] if old is None else [new, old]
    audio = np.resize(speech, round(WHOLE_SECONDS * new.voice.sample_rate))
    whole = _take_turns([functools.partial(one.whole, audio) for one in converters], rounds)
    yield from _figures(name, "whole", whole, WHOLE_SECONDS)
    streams = [one.open_live() for one in converters]
    try:
        sends = []
        for one, stream in zip(converters, streams, strict=True):
            length = round((rounds + 1) * LIVE_SECONDS * one.voice.sample_rate)
            pieces = iter(list(one.pieces(np.resize(speech, length))))
            sends.append(functools.partial(_push_next, stream, pieces))
        live = _take_turns(sends, rounds)
    finally:
        for stream in streams:
            stream.close()
    yield from _figures(name, "live", live, LIVE_SECONDS)


def _push_next(stream: VoiceStream, pieces: Iterator[FloatArray]) -> None:
    stream.push(next(pieces))


def _take_turns(sends: Sequence[Send], rounds: int) -> list[list[float]]:
    """Seconds of each request of each sender; who comes first changes, and the first round is not counted."""
    seconds: list[list[float]] = [[] for _ in sends]
    for number in range(rounds + 1):
        order = range(len(sends)) if number % 2 else reversed(range(len(sends)))
        for sender in order:
            started = time.perf_counter()
            sends[sender]()
            if number:
                seconds[sender].append(time.perf_counter() - started)
    return seconds


def _figures(
    name: str, kind: str, seconds: Sequence[Sequence[float]], audio_seconds: float
) -> Iterator[Figure]:
    rtf = [statistics.median(each) / audio_seconds for each in seconds]
    p99 = [float(np.percentile(each, 99)) for each in seconds]
    for measure, values in ((RTF, rtf), (P99, p99)):
        yield Figure(measure, kind, name, values[0], values[1] if len(values) > 1 else None)
