"""Runs checked conversions and keeps the books: times, counters, the pass-through of a failed engine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from autovoice.audio import as_mono, check_sample_rate
from autovoice.batching import BatchItem, convert_batch
from autovoice.config import PipelineConfig
from autovoice.conversion import ArraySource, Conversion, ConversionPlan, Source, StageClock, check_duration
from autovoice.embedding import check_embedding
from autovoice.errors import (
    AudioInputError,
    ConfigurationError,
    InferenceError,
    PassthroughWarning,
    PitchError,
)
from autovoice.executor import Executor
from autovoice.family import VoiceFamily
from autovoice.frames import FrameConverter, Target
from autovoice.pitch import check_f0, check_shift
from autovoice.results import ConversionProfile, FloatArray, ProgressCallback, StatsCounter
from autovoice.streaming import StreamSession

logger = logging.getLogger(__name__)

RESAMPLING_QUALITIES = ("HQ", "LQ")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class ConversionRequest:
    """What a caller asks for, unchecked; the fields are those of `VoiceConversionPipeline.convert`."""

    target_embedding: npt.ArrayLike
    source_f0: npt.ArrayLike | None
    output_sample_rate: int | None
    pitch_shift_semitones: float | Literal["auto"]
    target_median_f0: float | None


@dataclass(frozen=True)
class Outcome:
    """How a conversion went; see `ConversionResult`."""

    sample_rate: int
    pitch_shift_semitones: float
    passthrough: bool
    profile: ConversionProfile


class Runner:
    """Turns requests into conversions.

    Args:
        executor: runs the models.
        family: their constants.
        config: block length, pitch range and fallback.
        counter: where every conversion is counted.
    """

    def __init__(
        self, executor: Executor, family: VoiceFamily, config: PipelineConfig, counter: StatsCounter
    ) -> None:
        self._executor = executor
        self._family = family
        self._config = config
        self._counter = counter

    def array_source(self, audio: npt.ArrayLike, sample_rate: Any, name: str) -> ArraySource:
        """Check audio in memory.

        Raises:
            AudioInputError: no audio, or less than one frame of it.
        """
        rate = check_sample_rate(sample_rate, f"the sample rate of {name}")
        samples = as_mono(audio, name)
        check_duration(samples.size, rate, self._family, name)
        return ArraySource(samples, rate)

    def plan(self, source: Source, request: ConversionRequest) -> ConversionPlan:
        """Check a request against its source.

        Raises:
            EmbeddingError, PitchError, SampleRateError: for what does not fit.
        """
        wanted = request.output_sample_rate
        target_median = request.target_median_f0
        if target_median is not None and not 1.0 <= target_median <= 20_000.0:
            raise PitchError(
                f"target_median_f0 is {target_median!r} Hz; give the median pitch of the target's voice, or "
                "None"
            )
        f0 = None
        if request.source_f0 is not None:
            f0 = check_f0(
                request.source_f0,
                source.frames,
                source.sample_rate,
                self._family,
                self._config.f0_min,
                self._config.f0_max,
            )
        return ConversionPlan(
            embedding=check_embedding(request.target_embedding, self._family.embedding_size),
            shift_semitones=check_shift(request.pitch_shift_semitones),
            target_median_f0=target_median,
            f0=f0,
            output_sample_rate=source.sample_rate
            if wanted is None
            else check_sample_rate(wanted, "output sample rate"),
            block_seconds=self._config.block_seconds,
        )

    def conversion(
        self, source: Source, plan: ConversionPlan, name: str, callback: ProgressCallback | None = None
    ) -> Conversion:
        """Prepare one conversion; its clock starts now."""
        clock = StageClock(self._executor.device, callback)
        return Conversion(self._executor, self._family, source, plan, clock, name)

    def run(
        self,
        source: Source,
        plan: ConversionPlan,
        name: str,
        callback: ProgressCallback | None,
        consume: Callable[[Iterator[FloatArray]], _Made],
    ) -> tuple[_Made, Outcome]:
        """Convert a source block by block.

        Args:
            source: what to convert.
            plan: how.
            name: what to call the source in errors.
            callback: told of progress.
            consume: takes all blocks; called a second time, from the start, when the engine fails and the
                input is passed through.

        Returns:
            What `consume` returned, and how it went.
        """
        conversion = self.conversion(source, plan, name, callback)
        passthrough = False
        try:
            made = consume(conversion.blocks())
        except InferenceError as error:
            self._announce_passthrough(error)
            passthrough = True
            made = consume(conversion.passthrough_blocks())
        conversion.clock.finish()
        profile = conversion.profile()
        self._counter.success(
            profile.total_ms, profile.audio_duration_s, profile.device, passthrough=passthrough
        )
        return made, Outcome(plan.output_sample_rate, conversion.shift_semitones, passthrough, profile)

    def run_batch(self, items: Sequence[BatchItem], callback: ProgressCallback | None) -> list[FloatArray]:
        """Convert items together; see `convert_batch`."""
        clock = StageClock(self._executor.device, callback)
        passthrough = False
        try:
            results = convert_batch(self._executor, self._family, items, clock)
        except InferenceError as error:
            self._announce_passthrough(error)
            passthrough = True
            results = [
                np.concatenate(list(self.conversion(item.source, item.plan, item.name).passthrough_blocks()))
                for item in items
            ]
        clock.finish()
        durations = [item.source.frames / item.source.sample_rate for item in items]
        profile = clock.profile(sum(durations), sum(item.source.frames for item in items))
        for duration in durations:
            self._counter.success(
                profile.total_ms / len(items), duration, profile.device, passthrough=passthrough
            )
        return results

    def open_stream(
        self,
        target_embedding: npt.ArrayLike,
        sample_rate: Any,
        output_sample_rate: Any,
        pitch_shift_semitones: Any,
        resampling_quality: str,
    ) -> StreamSession:
        """Open a live stream; see `VoiceConversionPipeline.stream`."""
        shift = check_shift(pitch_shift_semitones)
        if shift is None:
            raise PitchError(
                "pitch shift 'auto' needs the whole source, which a stream does not have; give semitones"
            )
        if resampling_quality not in RESAMPLING_QUALITIES:
            raise ConfigurationError(f"resampling_quality is {resampling_quality!r}; use 'HQ' or 'LQ'")
        rate = check_sample_rate(sample_rate, "stream sample rate")
        output_rate = (
            rate
            if output_sample_rate is None
            else check_sample_rate(output_sample_rate, "output sample rate")
        )
        target = Target(check_embedding(target_embedding, self._family.embedding_size), shift)
        converter = FrameConverter(
            self._executor,
            self._family,
            target,
            block=self._block_samples(),
            live=True,
            passthrough=self._config.fallback == "passthrough",
            replay=round(self._config.replay_seconds * self._family.sample_rate),
        )
        return StreamSession(
            converter,
            self._family,
            rate,
            output_rate,
            quality=resampling_quality,
            on_finish=self._count_stream,
        )

    def warm_up(self, seconds: float) -> None:
        """Run the models of conversions and of streams once on `seconds` of quiet noise."""
        size = max(int(seconds * self._family.sample_rate), self._family.frame_samples)
        noise = np.random.default_rng(0).standard_normal(size).astype(np.float32) * np.float32(0.01)
        embedding = np.full(self._family.embedding_size, self._family.embedding_size**-0.5, np.float32)
        for live in (False, True):
            converter = FrameConverter(
                self._executor, self._family, Target(embedding, 0.0), block=self._block_samples(), live=live
            )
            converter.push(noise)
            converter.flush()

    @contextmanager
    def counting_failures(self, count: int = 1) -> Iterator[None]:
        """Count `count` failed conversions when the block raises."""
        try:
            yield
        except BaseException:
            self._counter.failure(count)
            raise

    def _count_stream(self, session: StreamSession, succeeded: bool) -> None:
        if not succeeded:
            self._counter.failure()
            return
        seconds = session.samples_in / session.sample_rate
        self._counter.success(
            session.compute_seconds * 1e3, seconds, self._executor.device, passthrough=session.passthrough
        )

    def _block_samples(self) -> int:
        frames = max(1, round(self._config.block_seconds * self._family.frames_per_second))
        return frames * self._family.frame_samples

    def _announce_passthrough(self, error: InferenceError) -> None:
        """Say loudly that the input will be handed back, or raise `error` when nobody asked for that."""
        if self._config.fallback != "passthrough":
            raise error
        logger.error("handing back the level-normalised input: %s", error)
        warnings.warn(
            PassthroughWarning(f"the result is the level-normalised input, NOT converted: {error}"),
            stacklevel=5,
        )


def per_item(values: Any, count: int, name: str, *, shared: bool) -> list[Any]:
    """Spread one shared value over `count` items, or check that there is one value per item.

    Raises:
        AudioInputError: when the counts differ.
    """
    if shared:
        return [values] * count
    if len(values) != count:
        raise AudioInputError(
            f"{name} has {len(values)} entries for {count} sources; give one for all or one per source"
        )
    return list(values)


def is_one_vector(values: Any) -> bool:
    """Whether `values` is a single flat vector rather than one vector per item."""
    try:
        return np.ndim(values[0]) == 0
    except (TypeError, IndexError):
        return True  # no vector at all, which check_embedding says better
