"""Streams: audio pushed in pieces of any length, converted through the explicit state of the models."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from autovoice.audio import RESAMPLING_QUALITY, Resampler, as_mono, output_length, resampling_delay_seconds
from autovoice.errors import InferenceError, PassthroughWarning, StreamClosedError
from autovoice.executor import Executor, Sequence
from autovoice.family import OFFLINE, OFFLINE_WITH_F0, STREAM, STREAM_WITH_F0, VoiceFamily
from autovoice.pitch import new_sequence_id
from autovoice.results import FloatArray

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """What to convert to.

    Attributes:
        embedding: unit vector [E].
        shift_semitones: pitch shift.
        f0: pitch track to use instead of the source's own, Hz per frame [F] from the first frame on; None to
            extract it.
    """

    embedding: FloatArray
    shift_semitones: float
    f0: FloatArray | None = None


class FrameConverter:
    """Converts audio at the family's own rate; output sample n belongs to input sample n.

    Args:
        executor: runs the models.
        family: their constants.
        target: what to convert to.
        block: samples per request at most, a multiple of the frame.
        live: send whole frames at once; otherwise gather full blocks, and send a source that fits one block
            in one piece.
        passthrough: hand on the source, delayed alike, from the first failed request on.
    """

    def __init__(
        self,
        executor: Executor,
        family: VoiceFamily,
        target: Target,
        *,
        block: int,
        live: bool,
        passthrough: bool = False,
    ) -> None:
        self._executor = executor
        self._family = family
        self._block = block
        self._live = live
        self._may_pass_through = passthrough
        self._embedding = target.embedding[np.newaxis]
        self._shift = np.full((1, 1), target.shift_semitones, np.float32)
        self._f0 = target.f0
        self._pending = np.zeros(0, np.float32)
        self._history = np.zeros(
            family.lookahead_samples, np.float32
        )  # what the models still hold back, for a pass-through
        self._sequence = new_sequence_id()
        self._started = False
        self._ended = False
        self._frames_sent = 0
        self._received = 0
        self._returned = (
            -family.lookahead_samples
        )  # the first samples out lie before the source and are dropped
        self.passthrough = False

    @property
    def received(self) -> int:
        """Samples pushed so far."""
        return self._received

    def push(self, audio: FloatArray) -> FloatArray:
        """Take the next samples [n], return the converted ones that are ready [m]."""
        self._received += audio.size
        self._pending = np.concatenate((self._pending, audio))
        ready: list[FloatArray] = []
        least = self._family.frame_samples if self._live else self._block
        while self._pending.size >= least:
            size = min(
                self._pending.size // self._family.frame_samples * self._family.frame_samples, self._block
            )
            block, self._pending = self._pending[:size], self._pending[size:]
            ready.append(self._convert(block, end=False))
        return _join(ready)

    def flush(self) -> FloatArray:
        """End the source; return the rest, so that as many samples have come out as went in."""
        if not self._received:
            return np.zeros(0, np.float32)
        if not self._started and not self._live:
            return self._convert_at_once(self._pending)
        tail = self._family.lookahead_samples
        tail += -(self._received + tail) % self._family.frame_samples
        converted = self._convert(np.concatenate((self._pending, np.zeros(tail, np.float32))), end=True)
        excess = self._returned - self._received
        return converted[: converted.size - excess]

    def close(self) -> None:
        """Let the engine forget the state of an unfinished source."""
        if self._started and not self._ended and not self.passthrough:
            with suppress(InferenceError):
                self._convert(np.zeros(self._family.frame_samples, np.float32), end=True)

    def _convert_at_once(self, audio: FloatArray) -> FloatArray:
        """A source that fits one request needs no state: the offline ensemble, which servers can batch, does
        the same."""
        inputs = self._inputs(audio)
        if self._f0 is not None:
            inputs["SOURCE_F0"] = fit_f0(self._f0, audio.size, self._family)[np.newaxis]
        model = OFFLINE if self._f0 is None else OFFLINE_WITH_F0
        converted: FloatArray = self._executor.infer(model, inputs)["CONVERTED_AUDIO"][0]
        self._returned = audio.size
        return converted

    def _convert(self, block: FloatArray, *, end: bool) -> FloatArray:
        frames = block.size // self._family.frame_samples
        if not self.passthrough:
            converted = self._request(block, frames, end=end)
        joined = np.concatenate((self._history, block))
        self._history = joined[block.size :]
        if self.passthrough:
            converted = joined[: block.size]
        self._frames_sent += frames
        self._started = True
        self._ended = end
        skip = min(max(-self._returned, 0), converted.size)
        self._returned += converted.size
        return converted[skip:]

    def _request(self, block: FloatArray, frames: int, *, end: bool) -> FloatArray:
        inputs = self._inputs(block)
        if self._f0 is not None:
            inputs["SOURCE_F0"] = self._delayed_f0(frames)[np.newaxis]
        model = STREAM if self._f0 is None else STREAM_WITH_F0
        position = Sequence(self._sequence, start=not self._started, end=end)
        try:
            converted: FloatArray = self._executor.infer(model, inputs, sequence=position)["CONVERTED_AUDIO"][
                0
            ]
            return converted
        except InferenceError as error:
            if not self._may_pass_through:
                raise
            logger.error("the stream passes its source through from here on: %s", error)
            warnings.warn(
                PassthroughWarning(f"the rest of the stream is NOT converted: {error}"), stacklevel=5
            )
            self.passthrough = True
            return block

    def _inputs(self, audio: FloatArray) -> dict[str, FloatArray]:
        return {
            "SOURCE_AUDIO": audio[np.newaxis],
            "TARGET_EMBEDDING": self._embedding,
            "PITCH_SHIFT": self._shift,
        }

    def _delayed_f0(self, frames: int) -> FloatArray:
        """F0 for the next `frames`, late by as many frames as the features that the models extract."""
        assert self._f0 is not None
        first = self._frames_sent - self._family.feature_delay_frames
        delayed = np.zeros(frames, np.float32)
        start, stop = max(first, 0), min(first + frames, self._f0.size)
        if stop > start:
            delayed[start - first : stop - first] = self._f0[start:stop]
        return delayed


class StreamSession:
    """One voice stream: `push` any number of samples, `flush` at the end, exactly as many samples out as in.

    Used from one thread at a time, as a context manager or closed by hand. Made by
    `VoiceConversionPipeline.stream`.

    Attributes:
        sample_rate: of what is pushed, Hz.
        output_sample_rate: of what comes back, Hz.
        samples_in: samples pushed so far.
        samples_out: samples returned so far.
        compute_seconds: time spent inside `push` and `flush` so far.
    """

    def __init__(
        self,
        converter: FrameConverter,
        family: VoiceFamily,
        sample_rate: int,
        output_sample_rate: int,
        *,
        quality: str = RESAMPLING_QUALITY,
        on_finish: Callable[[StreamSession, bool], None] | None = None,
    ) -> None:
        self.sample_rate = sample_rate
        self.output_sample_rate = output_sample_rate
        self.samples_in = 0
        self.samples_out = 0
        self.compute_seconds = 0.0
        self._family = family
        self._converter = converter
        self._quality = quality
        self._resampler_in = Resampler(sample_rate, family.sample_rate, quality)
        self._resampler_out = Resampler(family.sample_rate, output_sample_rate, quality)
        self._on_finish = on_finish
        self._open = True

    @property
    def latency_seconds(self) -> float:
        """How far the output trails the input at worst, computing time aside: look-ahead, one frame,
        resampling."""
        family = self._family
        own = (family.lookahead_samples + family.frame_samples) / family.sample_rate
        return (
            own
            + resampling_delay_seconds(self.sample_rate, family.sample_rate, self._quality)
            + resampling_delay_seconds(family.sample_rate, self.output_sample_rate, self._quality)
        )

    @property
    def passthrough(self) -> bool:
        """True once a failed engine made the stream hand on its source unconverted
        (`fallback="passthrough"`)."""
        return self._converter.passthrough

    def push(self, chunk: npt.ArrayLike) -> FloatArray:
        """Take the next samples and return what is ready.

        Args:
            chunk: samples [n], [n, channels] or [channels, n], float in [-1, 1] or int16; may be empty.

        Returns:
            Mono float32 [m] at `output_sample_rate`, m from 0 on.

        Raises:
            AudioInputError: samples that are no audio; the stream stays usable.
            InferenceError: when the engine failed; the stream is closed.
            StreamClosedError: after `flush` or `close`.
        """
        self._check_open()
        samples = np.asarray(chunk)
        if samples.size == 0:
            return np.zeros(0, np.float32)
        mono = as_mono(samples, "stream chunk")
        self.samples_in += mono.size
        with self._working():
            converted = self._converter.push(self._resampler_in.push(mono))
            return self._emit(self._resampler_out.push(converted))

    def flush(self) -> FloatArray:
        """End the stream and return the rest: in all, `samples_in * output_sample_rate / sample_rate`
        samples, rounded.

        Raises:
            InferenceError: when the engine failed.
            StreamClosedError: after `flush` or `close`.
        """
        self._check_open()
        total = output_length(self.samples_in, self.sample_rate, self.output_sample_rate)
        with self._working():
            rest = self._resampler_in.push(np.zeros(0, np.float32), last=True)
            # Rounding may leave the resampled source a sample short of what the output needs: silence
            # follows it.
            missing = (
                samples_needed(total, self._family.sample_rate, self.output_sample_rate)
                - self._converter.received
                - rest.size
            )
            converted = self._converter.push(np.concatenate((rest, np.zeros(max(missing, 0), np.float32))))
            converted = np.concatenate((converted, self._converter.flush()))
            resampled = self._emit(self._resampler_out.push(converted, last=True), total)
        self._open = False
        if self._on_finish is not None:
            self._on_finish(self, True)
        return resampled

    def close(self) -> None:
        """End the stream without its rest; does nothing after `flush` or a second time."""
        if self._open:
            self._open = False
            self._converter.close()

    def __enter__(self) -> StreamSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Add up the time of the block; close the stream when it fails."""
        started = time.perf_counter()
        try:
            yield
        except BaseException:
            self._open = False
            if self._on_finish is not None:
                self._on_finish(self, False)
            raise
        finally:
            self.compute_seconds += time.perf_counter() - started

    def _emit(self, samples: FloatArray, total: int | None = None) -> FloatArray:
        if total is not None:
            samples = fit_length(samples, total - self.samples_out)
        self.samples_out += samples.size
        return samples

    def _check_open(self) -> None:
        if not self._open:
            raise StreamClosedError(
                "this stream has been flushed or closed; open another with VoiceConversionPipeline.stream"
            )


def samples_needed(output_samples: int, rate: int, output_rate: int) -> int:
    """Samples at `rate` from which resampling makes at least `output_samples` at `output_rate`."""
    if rate == output_rate:
        return output_samples
    return -(-output_samples * rate // output_rate) + 1


def fit_length(samples: FloatArray, length: int) -> FloatArray:
    """Cut [T], or extend it with silence, to exactly `length`."""
    if samples.size >= length:
        return samples[:length]
    return np.concatenate((samples, np.zeros(length - samples.size, np.float32)))


def fit_f0(f0: FloatArray, samples: int, family: VoiceFamily) -> FloatArray:
    """Cut a pitch track, or extend it unvoiced, to the frames of `samples` at the family's rate."""
    return fit_length(f0, -(-samples // family.frame_samples))


def _join(parts: list[FloatArray]) -> FloatArray:
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)
