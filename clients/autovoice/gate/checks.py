"""The checks of a release that runs: what it answers, how fast, and in how much memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autovoice.audio.levels import level_of
from autovoice.audio.samples import resample
from autovoice.engines.engine import Engine
from autovoice.errors import RepositoryError, VoiceConversionError
from autovoice.gate import sound
from autovoice.gate.converter import Converter
from autovoice.gate.embedded import EMBEDDING, convert_embedded
from autovoice.gate.report import Check
from autovoice.gate.serving import ServedRelease
from autovoice.gate.suite import Condition, Suite
from autovoice.results import FloatArray
from autovoice.voices.base import BaseVoice, read_base_voice
from autovoice.voices.pitch import PITCH_STREAM, track_f0
from autovoice.voices.rvc import RvcVoice

LEVEL_DB = 6.0
OWN_LEVEL_DB = 30.0
"""Of voices that do not follow their source's level."""
SILENCE_DB = -60.0
LOST_SHARE = 0.05
CLIPPED_SHARE = 0.001
PITCH_SEMITONES = 0.5
GROSS_SHARE = 0.2
PITCH_SHIFT = 4.0
PITCH_SECONDS = 12.0
AGREEMENT = 1e-4
AGREEMENT_SECONDS = 3.0
GROWTH_BYTES = 25_000
"""Of resident memory, for each request."""
MEMORY_TRIES = 3
MEMORY_FIRST = 8  # requests at least, which fill the buffers
MEMORY_SECONDS = (0.5, 4.5)
MEMORY_STEP_SECONDS = 0.01
"""Each request has a length of its own: ONNX Runtime keeps something for every length that it has seen."""

Converters = Mapping[str, Converter]
Speech = Mapping[str, FloatArray]


@dataclass(frozen=True)
class Answer:
    """What a voice made of a condition.

    Attributes:
        voice: its name.
        converter: that made it.
        condition: what it was given.
        audio: what came back [M]; empty where the request failed.
        error: why it failed.
    """

    voice: str
    converter: Converter
    condition: Condition
    audio: FloatArray
    error: str = ""

    @property
    def name(self) -> str:
        """What to call it in reasons."""
        return f"{self.voice}, {self.condition.name}"

    @property
    def rates(self) -> tuple[int, int]:
        """Of source and result, Hz."""
        return self.converter.voice.sample_rate, self.converter.voice.output_sample_rate


@dataclass
class Worst:
    """The worst of several figures, and what is wrong with those beyond the limit.

    Attributes:
        limit: largest figure allowed.
        figure: the largest found, 0 where there is none.
        wrong: where the limit is passed.
    """

    limit: float
    figure: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def add(self, name: str, figure: float, text: str) -> None:
        """Take in a figure; one that is no number is beyond every limit."""
        if math.isnan(figure) or figure > self.limit:
            self.wrong.append(f"{name}: {text}")
        self.figure = max(self.figure, figure) if not math.isnan(figure) else math.nan

    def check(self, name: str, text: str, limit: str) -> Check:
        """The check of all of them."""
        reason = listed(self.wrong)
        return Check(name, "refused" if self.wrong else "passed", text, limit, reason, {"worst": self.figure})


def listed(reasons: Sequence[str]) -> str:
    """The first reasons in one line."""
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return "; ".join(reasons[:3]) + more


def warm_up(converters: Converters) -> Check:
    """Silence of a second, whole and live: the least that every voice has to answer with numbers."""
    wrong = []
    for name, converter in converters.items():
        silence = np.zeros(converter.voice.sample_rate, np.float32)
        for kind, convert in (("whole", converter.whole), ("live", converter.live)):
            try:
                if not np.isfinite(convert(silence)).all():
                    wrong.append(f"{name}, {kind}: not finite")
            except VoiceConversionError as error:
                wrong.append(f"{name}, {kind}: {error}")
    count = 2 * len(converters)
    figure = f"{count - len(wrong)} of {count} finite"
    return Check("warm-up", "refused" if wrong else "passed", figure, "all finite", listed(wrong))


def ask(converters: Converters, conditions: Mapping[int, Sequence[Condition]]) -> list[Answer]:
    """Have every voice convert every condition.

    Args:
        converters: by the name of the voice.
        conditions: by sample rate.
    """
    answers = []
    for name, converter in converters.items():
        for condition in conditions[converter.voice.sample_rate]:
            audio, error = np.zeros(0, np.float32), ""
            try:
                audio = converter.whole(condition.audio)
            except VoiceConversionError as failure:
                error = str(failure)
            answers.append(Answer(name, converter, condition, audio, error))
    return answers


def sound_checks(answers: Sequence[Answer]) -> Iterator[Check]:
    """Whether what came back is finite, of the right length, as loud as it should be, and not distorted."""
    wrong = [
        f"{answer.name}: {answer.error or 'samples that are not finite'}"
        for answer in answers
        if answer.error or not np.isfinite(answer.audio).all()
    ]
    count = len(answers)
    figure = f"{count - len(wrong)} of {count} finite"
    yield Check("answers", "refused" if wrong else "passed", figure, "all finite", listed(wrong))

    lengths = Worst(0.0)
    whole = [answer for answer in answers if not answer.error]
    for answer in whole:
        expected = answer.converter.voice.converted_samples(answer.condition.audio.size)
        shape = answer.audio.shape
        off = float(abs(shape[0] - expected)) if len(shape) == 1 else math.nan
        lengths.add(answer.name, off, f"{list(shape)} samples instead of [{expected}]")
    yield lengths.check("length", f"off by {lengths.figure:.0f} samples", "exact")
    yield from _loudness(whole)


def _loudness(answers: Sequence[Answer]) -> Iterator[Check]:
    levels, silence = Worst(LEVEL_DB), Worst(SILENCE_DB, -math.inf)
    lost, clipped = Worst(LOST_SHARE), Worst(CLIPPED_SHARE)
    for answer in answers:
        rate, made_rate = answer.rates
        source, speech, made = answer.condition.audio, answer.condition.speech, answer.audio
        clipped.add(answer.name, share := sound.clipped_share(made), f"{share:.2%} of the samples")
        if speech is None:
            level = sound.decibels(level_of(made, made_rate))
            silence.add(answer.name, level, f"{level:.1f} dB out of silence")
            continue
        difference = sound.level_difference_db(source, rate, made, made_rate)
        follows = answer.converter.voice.level_share(answer.converter.target) == 1.0
        excess = abs(difference) if follows else abs(difference) * LEVEL_DB / OWN_LEVEL_DB
        levels.add(answer.name, excess, f"{difference:+.1f} dB beyond the source")
        share = sound.lost_speech(speech, rate, made, made_rate)
        lost.add(answer.name, share, f"{share:.0%} of the speech came out silent")
    yield levels.check("level", f"{levels.figure:.1f} dB off the source's", f"{LEVEL_DB:g} dB")
    yield lost.check("speech", f"{lost.figure:.1%} came out silent", f"{LOST_SHARE:.0%}")
    yield silence.check("silence", f"{silence.figure:.1f} dB out of silence", f"{SILENCE_DB:g} dB")
    yield clipped.check("clipping", f"{clipped.figure:.3%} of the samples", f"{CLIPPED_SHARE:.1%}")


def pitch_check(converters: Converters, speech: Speech, trackers: Sequence[Engine]) -> Check:
    """Whether the pitch of a result is its source's times the shift; a wrong rate moves it.

    Args:
        converters: by the name of the voice.
        speech: for each voice, at its rate [T].
        trackers: engines whose pitch stage follows the pitch of source and result; the first that has one.
    """
    limit = f"{PITCH_SEMITONES:g} semitones, {GROSS_SHARE:.0%} gross errors"
    found = next(filter(None, map(_pitch_stage, trackers)), None)
    if found is None:
        return Check("pitch", "left out", limit=limit, reason="no release has a stage that follows the pitch")
    engine, base = found

    def f0(audio: FloatArray, rate: int) -> FloatArray:
        return track_f0(engine, base.clock, [resample(audio, rate, base.sample_rate)])

    worst, gross = Worst(PITCH_SEMITONES), Worst(GROSS_SHARE)
    for name, converter in converters.items():
        voice = converter.voice
        rate = voice.sample_rate
        source = speech[name][: round(PITCH_SECONDS * rate)]
        moves = isinstance(voice, BaseVoice) or (isinstance(voice, RvcVoice) and voice.has_f0)
        for shift in (0.0, PITCH_SHIFT) if moves else (0.0,):
            try:
                made = converter.whole(source, shift)
                deviation, share = sound.pitch_errors(
                    f0(source, rate), f0(made, voice.output_sample_rate), shift
                )
            except VoiceConversionError as error:
                return Check("pitch", "refused", limit=limit, reason=f"{name}: {error}")
            where = f"{name}, shifted by {shift:g}"
            worst.add(where, abs(deviation), f"{deviation:+.2f} semitones off what it should be")
            gross.add(where, share, f"{share:.0%} gross errors")
    wrong = worst.wrong + gross.wrong
    return Check(
        "pitch",
        "refused" if wrong else "passed",
        f"{worst.figure:.2f} semitones off, {gross.figure:.1%} gross errors",
        limit,
        listed(wrong),
        {"semitones": worst.figure, "gross_share": gross.figure},
    )


def _pitch_stage(engine: Engine) -> tuple[Engine, BaseVoice] | None:
    """An engine and the base voice on it, whose stage follows the pitch; None where there is none."""
    try:
        engine.spec(PITCH_STREAM)
        return engine, read_base_voice(engine)
    except RepositoryError:
        return None


def agreement_check(served: ServedRelease, converters: Converters, speech: Speech, suite: Suite) -> Check:
    """Whether one source comes out the same live, in a batch, and from the embedded runtime."""
    limit = f"{AGREEMENT:g}"
    target = suite.targets[0]
    sources = {}
    for name, converter in converters.items():
        sources[name] = speech[name][: round(AGREEMENT_SECONDS * converter.voice.sample_rate)]
    try:
        embedded = convert_embedded(served.path, sources, converters, target.audio, target.sample_rate)
    except VoiceConversionError as error:
        return Check("agreement", "refused", limit=limit, reason=str(error))
    worst = Worst(AGREEMENT)

    def compare(name: str, made: FloatArray, expected: FloatArray) -> None:
        size = min(made.size, expected.size)
        fits = made.size == expected.size
        off = (
            float(np.abs(made.ravel()[:size] - expected.ravel()[:size]).max(initial=0.0))
            if fits
            else math.nan
        )
        worst.add(name, off, f"differs by {off:.1e}" if fits else f"{made.size} samples, not {expected.size}")

    for name, converter in converters.items():
        source, causal = sources[name], isinstance(converter.voice, BaseVoice)
        try:
            whole = converter.whole(source)
            expected = whole[: converter.voice.converted_samples(source.size)]
            # Shorter ones are padded, which only voices allow where that changes nothing.
            shorter = source[: source.size - source.size // 8]
            fits = converter.voice.may_share(shorter.size, source.size)
            partner = shorter if fits else source[::-1].copy()
            first, second = converter.batch([source, partner])
            compare(f"{name}, batch", first, expected)
            compare(f"{name}, batch", second, converter.whole(partner)[: second.size])
            if causal:
                compare(f"{name}, live", converter.live(source), expected)
                compare(f"{name}, embedded live", embedded[f"live/{name}"], expected)
            compare(f"{name}, embedded", embedded[f"whole/{name}"], whole)
            if f"embedding/{name}" in embedded:
                compare(
                    f"{name}, embedding", embedded[f"embedding/{name}"], converter.target.tensors[EMBEDDING]
                )
        except VoiceConversionError as error:
            return Check("agreement", "refused", limit=limit, reason=f"{name}: {error}")
    return worst.check("agreement", f"{worst.figure:.1e} apart", limit)


def memory_check(served: ServedRelease, converters: Converters, speech: Speech, requests: int) -> Check:
    """Whether the server's memory stays flat over many requests of changing length, whole and live.

    Memory that grows is watched for longer: buffers reach their size in the end, leaks do not.

    Args:
        served: the server.
        converters: its voices.
        speech: for each voice, at its rate [T]; pieces of it are sent.
        requests: how many after those that fill the buffers.
    """
    limit = f"{GROWTH_BYTES / 1000:g} kB a request"
    names = list(converters)
    steps = np.random.default_rng(0).permutation(
        round((MEMORY_SECONDS[1] - MEMORY_SECONDS[0]) / MEMORY_STEP_SECONDS)
    )
    sent = 0

    def send(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            name = names[sent % len(names)]
            converter = converters[name]
            rate = converter.voice.sample_rate
            # The longest comes first.
            seconds = MEMORY_SECONDS[1] - MEMORY_STEP_SECONDS * (steps[sent % steps.size] if sent else 0)
            if sent % 5 == 4:
                converter.live(speech[name][: round(seconds / 4 * rate)])
            else:
                converter.whole(speech[name][: round(seconds * rate)])
            sent += 1

    try:
        send(max(requests // 4, MEMORY_FIRST))
        growth = total = 0.0
        for _ in range(MEMORY_TRIES):
            before = served.memory_bytes()
            send(requests)
            grown = served.memory_bytes() - before
            total, growth = total + grown, grown / requests
            if growth <= GROWTH_BYTES:
                break
    except VoiceConversionError as error:
        return Check("memory", "refused", limit=limit, reason=str(error))
    after = served.memory_bytes()
    figure = f"{growth / 1000:+.1f} kB a request over {requests}, {after / 1e6:.0f} MB in all"
    values = {"bytes_a_request": growth, "grown": total, "resident": float(after), "requests": float(sent)}
    reason = f"memory grew by {total / 1e6:.1f} MB and did not stop" if growth > GROWTH_BYTES else ""
    return Check("memory", "refused" if reason else "passed", figure, limit, reason, values)
