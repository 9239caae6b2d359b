"""One offline conversion: a source read in blocks, converted in bounded memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from autovoice.audio import Resampler, output_length, passthrough_gain
from autovoice.errors import SequenceError
from autovoice.executor import MAX_RESTARTS, Executor, StepTiming, observe_steps
from autovoice.family import Target, VoiceFamily, fit_length
from autovoice.results import ConversionProfile, FloatArray, Progress, ProgressCallback
from autovoice.sources import Source, check_duration
from autovoice.streaming import StreamSession

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
        executor: runs the models.
        family: their constants.
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
        executor: Executor,
        family: VoiceFamily,
        source: Source,
        plan: ConversionPlan,
        clock: StageClock,
        name: str,
    ) -> None:
        self._executor = executor
        self._family = family
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
        converter = self._family.converter(
            self._executor, self.target, block_seconds=self._plan.block_seconds
        )
        self.samples = 0
        with StreamSession(
            converter, self._family, self._source.sample_rate, self._plan.output_sample_rate
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
            self.target = self._family.resolve(self._executor, self.target, self._source, self._block)
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
        check_duration(self.samples, self._source.sample_rate, self._family.frames_per_second, self._name)
