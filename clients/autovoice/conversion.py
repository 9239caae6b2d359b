"""Conversion of one whole source, block by block in bounded memory, and of a batch of sources."""

from __future__ import annotations

import itertools
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from autovoice.audio.levels import FixedGain, check_gain, usual_gain_db
from autovoice.audio.samples import (
    Resampler,
    check_duration,
    check_sample_rate,
    output_length,
    passthrough_gain,
    resample,
)
from autovoice.audio.source import ScaledSource, Source
from autovoice.config import PipelineConfig
from autovoice.engines.engine import (
    MAX_RESTARTS,
    Engine,
    ReleasePin,
    StepTiming,
    observe_steps,
    on_release,
)
from autovoice.engines.pool import EnginePool
from autovoice.errors import InferenceError, PassthroughWarning, ReleaseGoneError, SequenceError
from autovoice.results import ConversionProfile, FloatArray, Progress, ProgressCallback
from autovoice.settings import RvcSettings
from autovoice.streaming import StreamSession, samples_needed
from autovoice.voices.voice import Voice, VoiceRequest, fit_length

logger = logging.getLogger(__name__)

MAX_BATCH_SECONDS = 60.0  # audio in one request; bounds its memory
PitchShift: TypeAlias = "float | Literal['auto']"
_Made = TypeVar("_Made")


class BatchOptions(TypedDict, total=False):
    """How sources are converted, for one and for many.

    Attributes:
        output_sample_rate: Hz; None for the source's.
        pitch_shift_semitones: -24 to 24, 0 unless given; `"auto"` brings the source's median pitch to the
            target's, which only the base voice can tell.
        target_median_f0: Hz, for `"auto"`; None to judge it by the embedding.
        input_gain_db: gain that brings the source to a usual level, and is taken back in the end;
            `"auto"`, unless given, measures it on the loud parts.
        progress_callback: called after every stage of every block; what it raises ends the conversion.
    """

    output_sample_rate: int | None
    pitch_shift_semitones: PitchShift
    target_median_f0: float | None
    input_gain_db: float | Literal["auto"]
    progress_callback: ProgressCallback | None


class ConversionOptions(BatchOptions, total=False):
    """How one source is converted.

    Attributes:
        voice_settings: of an imported voice; None, and every None in it, for `PipelineConfig.voice_settings`,
            then for the voice's default.
    """

    voice_settings: RvcSettings | None


class StageTimer:
    """Adds up the time of stages and passes progress on. Thread safe; the callback is called once at a time.

    Args:
        device: reported when no model ran.
        callback: told of every stage that ends; what it raises ends the conversion.
    """

    def __init__(self, device: str, callback: ProgressCallback | None = None) -> None:
        self._callback = callback
        self._started = time.perf_counter()
        self._fraction = 0.0
        self._lock = threading.RLock()
        self._of_thread = threading.local()
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
        before = self._thread_seconds()
        yield
        inside = self._thread_seconds() - before
        self._add(name, time.perf_counter() - started - inside)

    def advance(self, fraction: float) -> None:
        """Say which share of the source is converted, 0 to 1."""
        with self._lock:
            self._fraction = max(self._fraction, min(fraction, 1.0))

    def finish(self) -> None:
        """Tell the callback that the conversion has ended."""
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
        self._of_thread.seconds = self._thread_seconds() + seconds
        with self._lock:
            self.stages[name] = self.stages.get(name, 0.0) + seconds * 1e3
            if self._callback is not None:
                self._callback(Progress(name, min(self.chunk, self.chunks), self.chunks, self._fraction))

    def _thread_seconds(self) -> float:
        """Time of the stages that this thread has added."""
        return float(getattr(self._of_thread, "seconds", 0.0))


class Conversion:
    """One source on its way to one voice; the request is checked here.

    Args:
        engine: runs the models.
        voice: what to convert with.
        config: block length, pitch range and fallback.
        source: what to convert.
        name: what to call the source in errors.
        target_embedding: speaker to convert to [E].
        source_f0: pitch to use instead of the source's own.
        timer: times the stages of a batch; None for a timer of this conversion's own.
        pin: holds a batch to one release; None for a pin of this conversion's own.
        voice_settings, output_sample_rate, pitch_shift_semitones, target_median_f0, input_gain_db,
            progress_callback: see `ConversionOptions`.

    Attributes:
        engine: runs the models.
        device: where the last of them ran.
        release: number of the release that answered last, where a server said so.
        source: what is converted.
        name: what it is called in errors.
        output_sample_rate: Hz.
        target: what it is converted to.
        input_gain_db: gain of the source before it is converted, taken back afterwards.
        samples: of the source read so far.
        timer: times the stages.
        passthrough: True once the unconverted source is the result.

    Raises:
        ConfigurationError, EmbeddingError, PitchError, SampleRateError: for what does not fit the voice.
    """

    def __init__(
        self,
        engine: Engine,
        voice: Voice,
        config: PipelineConfig,
        source: Source,
        name: str,
        target_embedding: npt.ArrayLike | None = None,
        source_f0: npt.ArrayLike | None = None,
        timer: StageTimer | None = None,
        pin: ReleasePin | None = None,
        *,
        voice_settings: RvcSettings | None = None,
        output_sample_rate: int | None = None,
        pitch_shift_semitones: PitchShift = 0.0,
        target_median_f0: float | None = None,
        input_gain_db: float | Literal["auto"] = "auto",
        progress_callback: ProgressCallback | None = None,
    ) -> None:
        request = VoiceRequest(
            target_embedding, source_f0, pitch_shift_semitones, target_median_f0, voice_settings
        )
        self.target = self._asked = voice.target(request, source, config)
        self.output_sample_rate = (
            source.sample_rate
            if output_sample_rate is None
            else check_sample_rate(output_sample_rate, "output sample rate")
        )
        gain = check_gain(input_gain_db)
        self.input_gain_db = usual_gain_db(source.level) if gain == "auto" else gain
        self.source = source
        self.name = name
        self.samples = 0
        self.passthrough = False
        self.timer = timer if timer is not None else StageTimer(engine.device, progress_callback)
        self.engine = engine
        self.device = engine.device
        self.release: int | None = None
        self._pin = ReleasePin() if pin is None else pin
        self._voice = voice
        self._config = config
        self._block = max(1, round(config.block_seconds * source.sample_rate))
        self.timer.chunks = max(1, -(-source.frames // self._block))

    @property
    def output_samples(self) -> int:
        """Length of the result, as far as the length of the source is known."""
        return output_length(self.source.frames, self.source.sample_rate, self.output_sample_rate)

    @property
    def shift_semitones(self) -> float:
        """The pitch shift applied, 0 as long as it has not been found."""
        return self.target.shift_semitones or 0.0

    @property
    def fits_a_block(self) -> bool:
        """Whether the whole source goes to the engine in one request."""
        return self.source.frames <= self._config.block_seconds * self.source.sample_rate

    def run(self, consume: Callable[[Iterator[FloatArray]], _Made]) -> _Made:
        """Convert the source and return what `consume` makes of its blocks.

        Args:
            consume: takes all blocks; called again, from the start, when the release that began is gone, or
                when the engine fails and the unconverted input is the result.

        Raises:
            InferenceError: when the engine failed and `fallback` is not `"passthrough"`.

        Warns:
            PassthroughWarning: when the unconverted input is the result.
        """
        for left in reversed(range(MAX_RESTARTS + 1)):
            try:
                made = consume(self.blocks())
                break
            except InferenceError as error:
                if left and isinstance(error, ReleaseGoneError):
                    self.begin_again(error)
                    continue
                self.allow_passthrough(error)
                made = consume(self.passthrough_blocks())
                break
        self.timer.finish()
        return made

    def begin_again(self, error: ReleaseGoneError) -> None:
        """Forget what the release that is gone has found out."""
        logger.warning("converting %s from its start again, on another release: %s", self.name, error)
        self.target = self._asked

    def allow_passthrough(self, error: InferenceError) -> None:
        """Warn that the unconverted input is the result.

        Raises:
            InferenceError: `error` itself, unless `fallback` is `"passthrough"`.
        """
        if self._config.fallback != "passthrough":
            raise error
        logger.error("returning the level-normalised input: %s", error)
        warnings.warn(
            PassthroughWarning(f"the result is the level-normalised input, NOT converted: {error}"),
            stacklevel=5,
        )
        self.passthrough = True

    def gain(self) -> FixedGain:
        """Brings the source to the level for the voice, and what is made of it back."""
        share = self._voice.level_share(self.target)
        return FixedGain(self.input_gain_db, share, bounded=self._voice.bounded)

    def blocks(self) -> Iterator[FloatArray]:
        """Yield converted audio at the output's rate; in all exactly as long as the source.

        When the engine loses its state, the source is converted from its start again, and what was yielded
        before is left out: the samples are the same as without the loss.

        Raises:
            AudioInputError: when the source holds less than one frame.
            InferenceError: when the engine failed.
            ReleaseGoneError: the release that made what was yielded is gone.
        """
        self.resolve()
        yielded = 0
        for left in reversed(range(MAX_RESTARTS + 1)):
            position = self.samples = 0
            stream = self._voice.open_stream(
                self.engine, self.target, block_seconds=self._config.block_seconds
            )
            try:
                with StreamSession(
                    stream,
                    self._voice,
                    self.source.sample_rate,
                    self.output_sample_rate,
                    gain=self.gain(),
                    pin=self._pin,
                ) as session:
                    for chunk in itertools.chain(self.source.blocks(self._block), [None]):
                        self._advance(chunk)
                        with observe_steps(self.on_step), self.timer.stage("resample"):
                            converted = session.flush() if chunk is None else session.push(chunk)
                        fresh = converted[max(yielded - position, 0) :]
                        position += converted.size
                        if fresh.size:
                            yielded = position
                            yield fresh
                return
            except SequenceError as error:
                if not left or isinstance(error, ReleaseGoneError):
                    raise
                logger.warning("converting %s from its start again: %s", self.name, error)

    def _advance(self, chunk: FloatArray | None) -> None:
        """Note that `chunk` is converted next; None is the end of the source."""
        if chunk is None:
            check_duration(self.samples, self.source.sample_rate, self._voice.frames_per_second, self.name)
            return
        self.samples += chunk.size
        self.timer.chunk = -(-self.samples // self._block)
        self.timer.advance(0.99 * self.samples / max(self.source.frames, self.samples))

    def on_step(self, timing: StepTiming) -> None:
        """Record a model run."""
        self.device, self.release = timing.device, timing.release
        self.timer.on_step(timing)

    def resolve(self) -> None:
        """Find the target's pitch shift where the request leaves it open."""
        with observe_steps(self.on_step), on_release(self._pin):
            source = ScaledSource(self.source, self.input_gain_db)
            self.target = self._voice.resolve(self.engine, self.target, source, self._block)

    def passthrough_blocks(self) -> Iterator[FloatArray]:
        """Yield the unconverted source at -20 dB RMS and the output's rate."""
        peak = square_sum = 0.0
        self.samples = 0
        for chunk in self.source.blocks(self._block):
            self.samples += chunk.size
            peak = max(peak, float(np.abs(chunk).max()))
            square_sum += float(np.square(chunk, dtype=np.float64).sum())
        self._advance(None)
        gain = np.float32(passthrough_gain(peak, square_sum / self.samples))
        total = output_length(self.samples, self.source.sample_rate, self.output_sample_rate)
        resampler = Resampler(self.source.sample_rate, self.output_sample_rate)
        made = 0
        for chunk in self.source.blocks(self._block):
            ready = resampler.push(chunk * gain)[: total - made]
            made += ready.size
            yield ready
        if self.source.sample_rate != self.output_sample_rate:
            yield fit_length(resampler.push(np.zeros(0, np.float32), last=True), total - made)

    def profile(self) -> ConversionProfile:
        """Timings so far."""
        return self.timer.profile(self.samples / self.source.sample_rate, self.samples)


@dataclass(frozen=True)
class _Row:
    """A source at the voice's rate, ready to share a request.

    Attributes:
        position: of its conversion in the batch.
        conversion: how it is converted.
        audio: samples [T] at the voice's rate.
    """

    position: int
    conversion: Conversion
    audio: FloatArray


def convert_batch(
    pool: EnginePool, voice: Voice, conversions: Sequence[Conversion], timer: StageTimer, pin: ReleasePin
) -> list[FloatArray]:
    """Convert sources together; each result equals that of its own conversion.

    Sources longer than a block are streamed, one by one on each engine, so that memory stays bounded. Which
    sources share a request does not depend on the number of engines.

    Args:
        pool: engines that run the models.
        voice: what all are converted with.
        conversions: of sources in memory.
        timer: times the stages.
        pin: holds all requests to one release; that of the conversions.

    Returns:
        Converted audio per source, each exactly as long as its source at its output rate.
    """
    results: list[FloatArray] = [np.zeros(0, np.float32)] * len(conversions)
    ready: list[_Row | None] = [None] * len(conversions)

    def begin(engine: Engine, position: int) -> None:
        conversion = conversions[position]
        conversion.engine = engine
        if conversion.fits_a_block:
            conversion.resolve()
            ready[position] = _Row(position, conversion, _at_voice_rate(conversion, voice, timer))
        else:
            results[position] = np.concatenate(list(conversion.blocks()))

    pool.share(begin, range(len(conversions)))
    rows = [row for row in ready if row is not None]
    streamed = len(conversions) - len(rows)
    buckets = make_buckets(
        [row.audio.size for row in rows], voice, [voice.offline_model(row.conversion.target) for row in rows]
    )
    timer.chunks = streamed + len(buckets)

    def convert(engine: Engine, bucket: tuple[int, list[int]]) -> None:
        number, members = bucket[0], [rows[index] for index in bucket[1]]
        timer.chunk = number
        timer.advance(number / timer.chunks)

        def on_step(timing: StepTiming) -> None:
            timer.on_step(timing)
            for row in members:
                row.conversion.device = timing.device

        with observe_steps(on_step), on_release(pin):
            converted = _infer(engine, voice, members)
        with timer.stage("resample"):
            for row, audio in zip(members, converted, strict=True):
                trimmed = audio[: voice.converted_samples(row.audio.size)]
                trimmed = resample(trimmed, voice.output_sample_rate, row.conversion.output_sample_rate)
                restored = row.conversion.gain().restore(trimmed)
                results[row.position] = fit_length(restored, row.conversion.output_samples)

    pool.share(convert, enumerate(buckets, start=streamed + 1))
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


def _at_voice_rate(conversion: Conversion, voice: Voice, timer: StageTimer) -> FloatArray:
    """The whole source at the voice's rate, with what silence the last output samples need."""
    source = conversion.source
    with timer.stage("resample"):
        (whole,) = source.blocks(source.frames)
        audio = resample(conversion.gain().apply(whole), source.sample_rate, voice.sample_rate)
    needed = samples_needed(conversion.output_samples, voice, conversion.output_sample_rate)
    return fit_length(audio, max(needed, audio.size))


def _infer(engine: Engine, voice: Voice, rows: Sequence[_Row]) -> npt.NDArray[Any]:
    longest = max(row.audio.size for row in rows)
    requests = [voice.offline_inputs(row.conversion.target, fit_length(row.audio, longest)) for row in rows]
    inputs = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
    return engine.infer(voice.offline_model(rows[0].conversion.target), inputs)["CONVERTED_AUDIO"]
