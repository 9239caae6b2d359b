"""One offline conversion: a source read in blocks, converted in bounded memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autovoice.audio import Resampler, frame_count, output_length, passthrough_gain, slices
from autovoice.errors import AudioInputError, SequenceError
from autovoice.executor import Executor, StepTiming, observe_steps
from autovoice.family import VoiceFamily
from autovoice.frames import MAX_RESTARTS, FrameConverter, Target, fit_length
from autovoice.pitch import expected_median_f0, matching_shift, median_voiced, track_f0
from autovoice.results import ConversionProfile, FloatArray, Progress, ProgressCallback
from autovoice.streaming import StreamSession

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Mono audio that can be read from the start any number of times."""

    @property
    def sample_rate(self) -> int:
        """Hz."""

    @property
    def frames(self) -> int:
        """Samples, perhaps estimated."""

    def blocks(self, frames: int) -> Iterator[FloatArray]:
        """Mono float32 blocks of `frames` samples, the last one shorter."""


@dataclass(frozen=True)
class ArraySource:
    """A `Source` in memory.

    Attributes:
        audio: mono float32 [T].
        sample_rate: Hz.
    """

    audio: FloatArray
    sample_rate: int

    @property
    def frames(self) -> int:
        """Samples."""
        return self.audio.size

    def blocks(self, frames: int) -> Iterator[FloatArray]:
        """Views of `frames` samples, the last one shorter."""
        return slices(self.audio, frames)


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
        embedding: unit vector [E].
        shift_semitones: None to match the target's median pitch.
        target_median_f0: Hz, for the matching; None to judge it by the embedding.
        f0: pitch track of the source to use, Hz [F]; None to extract it.
        output_sample_rate: Hz.
        block_seconds: audio per request.
    """

    embedding: FloatArray
    shift_semitones: float | None
    target_median_f0: float | None
    f0: FloatArray | None
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
        self.shift_semitones = 0.0
        clock.chunks = max(1, -(-source.frames // self._block))

    def blocks(self) -> Iterator[FloatArray]:
        """Yield converted audio at the plan's rate; in all exactly as long as the source.

        When the engine loses its state, the source is converted from its start again, and what was yielded
        before is left out: the samples are the same as without the loss.

        Raises:
            AudioInputError: when the source holds less than one frame.
            InferenceError: when the engine failed.
        """
        self.shift_semitones = self.resolve_shift()
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
        target = Target(self._plan.embedding, self.shift_semitones, self._plan.f0)
        frame = self._family.frame_samples
        block = max(1, round(self._plan.block_seconds * self._family.frames_per_second)) * frame
        converter = FrameConverter(self._executor, self._family, target, block=block, live=False)
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

    def resolve_shift(self) -> float:
        """The pitch shift in semitones; `"auto"` takes a first pass over the source."""
        if self._plan.shift_semitones is not None:
            return self._plan.shift_semitones
        with observe_steps(self.clock.on_step):
            f0 = self._plan.f0
            if f0 is None:
                f0 = track_source_f0(self._executor, self._family, self._source, self._block)
            target = self._plan.target_median_f0
            if target is None:
                target = expected_median_f0(self._executor, self._plan.embedding)
        return matching_shift(median_voiced(f0), target)

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
        check_duration(self.samples, self._source.sample_rate, self._family, self._name)


def check_duration(samples: int, sample_rate: int, family: VoiceFamily, name: str) -> None:
    """Refuse a source shorter than one frame.

    Raises:
        AudioInputError: naming its length.
    """
    if samples * family.frames_per_second < sample_rate:
        least = frame_count(sample_rate, family.frames_per_second, 1)
        raise AudioInputError(
            f"{name} has {samples} samples ({1e3 * samples / sample_rate:.2f} ms at {sample_rate} Hz), less "
            "than one frame; give at "
            f"least {least}"
        )


def track_source_f0(executor: Executor, family: VoiceFamily, source: Source, block: int) -> FloatArray:
    """Follow the pitch of a source, read `block` samples at a time, from its start again when the engine
    loses its state.

    Returns:
        Hz per 10 ms frame, 0 where unvoiced.
    """

    def resampled() -> Iterator[FloatArray]:
        resampler = Resampler(source.sample_rate, family.sample_rate)
        for chunk in source.blocks(block):
            yield resampler.push(chunk)
        yield resampler.push(np.zeros(0, np.float32), last=True)

    for _ in range(MAX_RESTARTS):
        try:
            return track_f0(executor, family, resampled())
        except SequenceError as error:
            logger.warning("following the pitch from the start again: %s", error)
    return track_f0(executor, family, resampled())
