"""Runs checked conversions and keeps the books: times, counters, the pass-through of a failed engine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from autovoice.audio.samples import as_mono, check_sample_rate
from autovoice.audio.source import ArraySource, Source, check_duration
from autovoice.config import PipelineConfig
from autovoice.conversion import BatchItem, Conversion, ConversionPlan, StageClock, convert_batch
from autovoice.engines.engine import Engine
from autovoice.errors import AudioInputError, ConfigurationError, InferenceError, PassthroughWarning
from autovoice.results import ConversionProfile, FloatArray, ProgressCallback, StatsCounter
from autovoice.streaming import StreamSession
from autovoice.voices.voice import Live, Voice, VoiceRequest

logger = logging.getLogger(__name__)

RESAMPLING_QUALITIES = ("HQ", "LQ")
CORE_SECONDS_RANGE = (0.01, 60.0)
_Made = TypeVar("_Made")


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
        engine: runs the models.
        voice: their constants.
        config: block length, pitch range and fallback.
        counter: where every conversion is counted.
    """

    def __init__(self, engine: Engine, voice: Voice, config: PipelineConfig, counter: StatsCounter) -> None:
        self._engine = engine
        self._voice = voice
        self._config = config
        self._counter = counter

    def array_source(self, audio: npt.ArrayLike, sample_rate: Any, name: str) -> ArraySource:
        """Check audio in memory.

        Raises:
            AudioInputError: no audio, or less than one frame of it.
        """
        rate = check_sample_rate(sample_rate, f"the sample rate of {name}")
        samples = as_mono(audio, name)
        check_duration(samples.size, rate, self._voice.frames_per_second, name)
        return ArraySource(samples, rate)

    def plan(self, source: Source, request: VoiceRequest, output_sample_rate: Any) -> ConversionPlan:
        """Check a request against its source.

        Raises:
            ConfigurationError, EmbeddingError, PitchError, SampleRateError: for what does not fit.
        """
        return ConversionPlan(
            target=self._voice.target(request, source, self._config),
            output_sample_rate=_output_rate(output_sample_rate, source.sample_rate),
            block_seconds=self._config.block_seconds,
        )

    def conversion(
        self, source: Source, plan: ConversionPlan, name: str, callback: ProgressCallback | None = None
    ) -> Conversion:
        """Prepare one conversion; its clock starts now."""
        clock = StageClock(self._engine.device, callback)
        return Conversion(self._engine, self._voice, source, plan, clock, name)

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
        clock = StageClock(self._engine.device, callback)
        passthrough = False
        try:
            results = convert_batch(self._engine, self._voice, items, clock)
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
        request: VoiceRequest,
        sample_rate: Any,
        output_sample_rate: Any,
        resampling_quality: str,
        core_seconds: Any,
    ) -> StreamSession:
        """Open a live stream; see `VoiceConversionPipeline.stream`."""
        target = self._voice.target(request, None, self._config)
        if resampling_quality not in RESAMPLING_QUALITIES:
            raise ConfigurationError(f"resampling_quality is {resampling_quality!r}; use 'HQ' or 'LQ'")
        low, high = CORE_SECONDS_RANGE
        if core_seconds is not None and not (_is_number(core_seconds) and low <= core_seconds <= high):
            raise ConfigurationError(
                f"core_seconds is {core_seconds!r}; give seconds from {low:g} to {high:g}, or None"
            )
        if sample_rate is None:
            rate, usual = self._voice.sample_rate, self._voice.output_sample_rate
        else:
            rate = usual = check_sample_rate(sample_rate, "stream sample rate")
        converter = self._voice.open_stream(
            self._engine,
            target,
            block_seconds=self._config.block_seconds,
            live=Live(core_seconds, self._config.fallback == "passthrough", self._config.replay_seconds),
        )
        return StreamSession(
            converter,
            self._voice,
            rate,
            _output_rate(output_sample_rate, usual),
            quality=resampling_quality,
            on_finish=self._count_stream,
        )

    def warm_up(self, seconds: float) -> None:
        """Run the models of conversions and of streams once on `seconds` of quiet noise."""
        size = max(int(seconds * self._voice.sample_rate), self._voice.frame_samples)
        noise = np.random.default_rng(0).standard_normal(size).astype(np.float32) * np.float32(0.01)
        target = self._voice.neutral_target()
        for live in (None, Live()):
            converter = self._voice.open_stream(
                self._engine, target, block_seconds=self._config.block_seconds, live=live
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
            session.compute_seconds * 1e3, seconds, self._engine.device, passthrough=session.passthrough
        )

    def _announce_passthrough(self, error: InferenceError) -> None:
        """Say loudly that the input will be handed back, or raise `error` when nobody asked for that."""
        if self._config.fallback != "passthrough":
            raise error
        logger.error("handing back the level-normalised input: %s", error)
        warnings.warn(
            PassthroughWarning(f"the result is the level-normalised input, NOT converted: {error}"),
            stacklevel=5,
        )


def _output_rate(wanted: Any, usual: int) -> int:
    return usual if wanted is None else check_sample_rate(wanted, "output sample rate")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
    """Whether `values` is a single flat vector, or none, rather than one vector per item."""
    try:
        return np.ndim(values[0]) == 0
    except (TypeError, IndexError):
        return True  # no vector at all, which the voice asks for or says better
