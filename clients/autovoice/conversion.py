"""One offline conversion: a source read in blocks, converted in bounded memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from autovoice.audio.samples import Resampler, output_length, passthrough_gain, resample
from autovoice.audio.source import ArraySource, Source, check_duration
from autovoice.engines.engine import MAX_RESTARTS, Engine, StepTiming, observe_steps
from autovoice.errors import SequenceError
from autovoice.results import ConversionProfile, FloatArray, Progress, ProgressCallback
from autovoice.streaming import StreamSession, samples_needed
from autovoice.voices.voice import Target, Voice, fit_length

logger = logging.getLogger(__name__)


class StageClock:
    """Adds up the time of stages and passes progress on.

    Args:
        device: reported when no model ran.
        callback: told of every stage that ends; what it raises ends the conversion.
    """

    def __init__(self, device: str, callback: ProgressCallback | None = None) -> None:
        self._callback = callback
        self._started = time.perf_counter()
        self._fraction = 0.0
        self.stages: dict[str, float] = {}
        self.device = device
        self.chunk = 1
        self.chunks = 1

    def on_step(self, timing: StepTiming) -> None:
        """Record a model run."""
        self.device = timing.device
        self._add(timing.model, timing.seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the block as a stage, less the model runs inside it."""
        started = time.perf_counter()
        before = sum(self.stages.values())
        yield
        inside = sum(self.stages.values()) - before
        self._add(name, time.perf_counter() - started - inside / 1e3)

    def advance(self, fraction: float) -> None:
        """Say how much of the source is dealt with, 0 to 1."""
        self._fraction = max(self._fraction, min(fraction, 1.0))

    def finish(self) -> None:
        """Tell the callback that everything is done."""
        self._fraction = 1.0
        if self._callback is not None:
            self._callback(Progress("finish", self.chunks, self.chunks, 1.0))

    def profile(self, audio_seconds: float, samples: int) -> ConversionProfile:
        """The times so far against `audio_seconds` of source in `samples`."""
        total = time.perf_counter() - self._started
        return ConversionProfile(
            total_ms=total * 1e3,
            audio_duration_s=audio_seconds,
            rtf=total / audio_seconds,
            throughput_samples_per_sec=samples / total,
            stages=dict(self.stages),
            device=self.device,
        )

    def _add(self, name: str, seconds: float) -> None:
        self.stages[name] = self.stages.get(name, 0.0) + seconds * 1e3
        if self._callback is not None:
            self._callback(Progress(name, min(self.chunk, self.chunks), self.chunks, self._fraction))


@dataclass(frozen=True)
class ConversionPlan:
    """What one conversion is to do, checked.

    Attributes:
        target: what to convert to.
        output_sample_rate: Hz.
        block_seconds: audio per request.
    """

    target: Target
    output_sample_rate: int
    block_seconds: float


class Conversion:
    """Runs a `ConversionPlan` on a source.

    Args:
        engine: runs the models.
        voice: their constants.
        source: what to convert.
        plan: how.
        clock: times the stages.
        name: what to call the source in errors.

    Attributes:
        clock: times the stages.
        samples: of the source read so far.
        target: what it is converted to.
    """

    def __init__(
        self,
        engine: Engine,
        voice: Voice,
        source: Source,
        plan: ConversionPlan,
        clock: StageClock,
        name: str,
    ) -> None:
        self._engine = engine
        self._voice = voice
        self._source = source
        self._plan = plan
        self._name = name
        self._block = max(1, round(plan.block_seconds * source.sample_rate))
        self.clock = clock
        self.samples = 0
        self.target = plan.target
        clock.chunks = max(1, -(-source.frames // self._block))

    def blocks(self) -> Iterator[FloatArray]:
        """Yield converted audio at the plan's rate; in all exactly as long as the source.

        When the engine loses its state, the source is converted from its start again, and what was yielded
        before is left out: the samples are the same as without the loss.

        Raises:
            AudioInputError: when the source holds less than one frame.
            InferenceError: when the engine failed.
        """
        self.resolve()
        yielded = 0
        for left in reversed(range(MAX_RESTARTS + 1)):
            position = 0
            try:
                for block in self._blocks_from_start():
                    fresh = block[max(yielded - position, 0) :]
                    position += block.size
                    if fresh.size:
                        yielded = position
                        yield fresh
                return
            except SequenceError as error:
                if not left:
                    raise
                logger.warning("converting %s from its start again: %s", self._name, error)

    def _blocks_from_start(self) -> Iterator[FloatArray]:
        converter = self._voice.open_stream(self._engine, self.target, block_seconds=self._plan.block_seconds)
        self.samples = 0
        with StreamSession(
            converter, self._voice, self._source.sample_rate, self._plan.output_sample_rate
        ) as session:
            for number, chunk in enumerate(self._source.blocks(self._block), start=1):
                self.clock.chunk = number
                self.samples += chunk.size
                self.clock.advance(0.99 * self.samples / max(self._source.frames, self.samples))
                with observe_steps(self.clock.on_step), self.clock.stage("resample"):
                    converted = session.push(chunk)
                if converted.size:
                    yield converted
            self._check_length()
            with observe_steps(self.clock.on_step), self.clock.stage("resample"):
                converted = session.flush()
        yield converted

    @property
    def shift_semitones(self) -> float:
        """The pitch shift applied, 0 as long as it has not been found."""
        return self.target.shift_semitones or 0.0

    def resolve(self) -> Target:
        """Find the target's pitch shift where the plan leaves it open."""
        with observe_steps(self.clock.on_step):
            self.target = self._voice.resolve(self._engine, self.target, self._source, self._block)
        return self.target

    def passthrough_blocks(self) -> Iterator[FloatArray]:
        """Yield the unconverted source at -20 dB RMS and the plan's rate (`fallback="passthrough"`)."""
        peak = square_sum = 0.0
        self.samples = 0
        for chunk in self._source.blocks(self._block):
            self.samples += chunk.size
            peak = max(peak, float(np.abs(chunk).max()))
            square_sum += float(np.square(chunk, dtype=np.float64).sum())
        self._check_length()
        gain = np.float32(passthrough_gain(peak, square_sum / self.samples))
        total = output_length(self.samples, self._source.sample_rate, self._plan.output_sample_rate)
        resampler = Resampler(self._source.sample_rate, self._plan.output_sample_rate)
        made = 0
        for chunk in self._source.blocks(self._block):
            ready = resampler.push(chunk * gain)[: total - made]
            made += ready.size
            yield ready
        if self._source.sample_rate != self._plan.output_sample_rate:
            yield fit_length(resampler.push(np.zeros(0, np.float32), last=True), total - made)

    def profile(self) -> ConversionProfile:
        """Timings so far."""
        return self.clock.profile(self.samples / self._source.sample_rate, self.samples)

    def _check_length(self) -> None:
        check_duration(self.samples, self._source.sample_rate, self._voice.frames_per_second, self._name)


MAX_BATCH_SECONDS = 60.0  # audio in one request; bounds its memory


@dataclass(frozen=True)
class BatchItem:
    """One source and what to do with it."""

    source: ArraySource
    plan: ConversionPlan
    name: str


@dataclass(frozen=True)
class _Row:
    """An item at the voice's rate, ready to be batched."""

    index: int
    audio: FloatArray
    target: Target
    output_samples: int


def convert_batch(
    engine: Engine, voice: Voice, items: Sequence[BatchItem], clock: StageClock
) -> list[FloatArray]:
    """Convert items together; each result equals that of its own conversion.

    Items longer than a block of their plan are streamed one by one, so that memory stays bounded.

    Args:
        engine: runs the models.
        voice: their constants.
        items: what to convert.
        clock: times the stages.

    Returns:
        Converted audio per item, each exactly as long as its source at its output rate.
    """
    results: list[FloatArray] = [np.zeros(0, np.float32)] * len(items)
    rows: list[_Row] = []
    done = 0
    for index, item in enumerate(items):
        conversion = Conversion(engine, voice, item.source, item.plan, clock, item.name)
        if item.source.frames > item.plan.block_seconds * item.source.sample_rate:
            results[index] = np.concatenate(list(conversion.blocks()))
            done += 1
            continue
        rows.append(_prepare(index, item, conversion.resolve(), voice, clock))
    buckets = make_buckets(
        [row.audio.size for row in rows], voice, [voice.offline_model(row.target) for row in rows]
    )
    clock.chunks = done + len(buckets)
    for number, bucket in enumerate(buckets, start=done + 1):
        clock.chunk = number
        clock.advance(number / clock.chunks)
        members = [rows[position] for position in bucket]
        with observe_steps(clock.on_step):
            converted = _infer(engine, voice, members)
        with clock.stage("resample"):
            for row, audio in zip(members, converted, strict=True):
                rate = items[row.index].plan.output_sample_rate
                trimmed = audio[: voice.converted_samples(row.audio.size)]
                trimmed = resample(trimmed, voice.output_sample_rate, rate)
                results[row.index] = fit_length(trimmed, row.output_samples)
    return results


def make_buckets(lengths: Sequence[int], voice: Voice, models: Sequence[str]) -> list[list[int]]:
    """Group positions so that each group is for one model, of like length, and not too much audio.

    Args:
        lengths: samples of each row at the voice's rate.
        voice: says which lengths may share a request, and how many.
        models: the ensemble that each row is for.

    Returns:
        Positions into `lengths`, every one exactly once.
    """
    buckets: list[list[int]] = []
    order = sorted(range(len(lengths)), key=lambda position: (models[position], -lengths[position]))
    for position in order:
        if buckets:
            bucket = buckets[-1]
            longest = lengths[bucket[0]]
            fits = (
                models[position] == models[bucket[0]]
                and voice.may_share(lengths[position], longest)
                and len(bucket) < voice.max_batch_size
                and (len(bucket) + 1) * longest <= MAX_BATCH_SECONDS * voice.sample_rate
            )
            if fits:
                bucket.append(position)
                continue
        buckets.append([position])
    return buckets


def _prepare(index: int, item: BatchItem, target: Target, voice: Voice, clock: StageClock) -> _Row:
    source = item.source
    rate = item.plan.output_sample_rate
    with clock.stage("resample"):
        audio = resample(source.audio, source.sample_rate, voice.sample_rate)
    output_samples = output_length(source.frames, source.sample_rate, rate)
    needed = samples_needed(output_samples, voice, rate)
    return _Row(index, fit_length(audio, max(needed, audio.size)), target, output_samples)


def _infer(engine: Engine, voice: Voice, rows: Sequence[_Row]) -> Iterable[FloatArray]:
    longest = max(row.audio.size for row in rows)
    requests = [voice.offline_inputs(row.target, fit_length(row.audio, longest)) for row in rows]
    inputs = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
    model = voice.offline_model(rows[0].target)
    converted: FloatArray = engine.infer(model, inputs)["CONVERTED_AUDIO"]
    return converted
