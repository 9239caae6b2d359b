"""Streams: audio pushed in pieces of any length, converted as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import numpy as np
import numpy.typing as npt

from autovoice.audio.levels import FixedGain, FollowedGain
from autovoice.audio.samples import (
    RESAMPLING_QUALITY,
    Resampler,
    as_array,
    as_mono,
    channel_axis,
    output_length,
    resampling_delay_seconds,
)
from autovoice.engines.engine import ReleasePin, on_release
from autovoice.errors import StreamClosedError
from autovoice.results import FloatArray
from autovoice.voices.voice import Voice, VoiceStream, fit_length


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
        stream: VoiceStream,
        voice: Voice,
        sample_rate: int,
        output_sample_rate: int,
        *,
        gain: FixedGain | FollowedGain | None = None,
        quality: str = RESAMPLING_QUALITY,
        pin: ReleasePin | None = None,
        on_finish: Callable[[StreamSession, bool], None] | None = None,
    ) -> None:
        self.sample_rate = sample_rate
        self.output_sample_rate = output_sample_rate
        self.samples_in = 0
        self.samples_out = 0
        self.compute_seconds = 0.0
        self._voice = voice
        self._stream = stream
        self._gain = FixedGain(0.0) if gain is None else gain
        self._quality = quality
        self._pin = ReleasePin() if pin is None else pin
        self._resampler_in = Resampler(sample_rate, voice.sample_rate, quality)
        self._resampler_out = Resampler(voice.output_sample_rate, output_sample_rate, quality)
        self._on_finish = on_finish
        self._channels: int | None = None  # the axis that counts them
        self._open = True

    @property
    def latency_seconds(self) -> float:
        """How far the output trails the input at worst, computing time aside: what the voice gathers and
        looks ahead, and resampling."""
        voice = self._voice
        return (
            self._stream.latency_seconds
            + resampling_delay_seconds(self.sample_rate, voice.sample_rate, self._quality)
            + resampling_delay_seconds(voice.output_sample_rate, self.output_sample_rate, self._quality)
        )

    @property
    def passthrough(self) -> bool:
        """True once a failed engine made the stream return its source unconverted
        (`fallback="passthrough"`)."""
        return self._stream.passthrough

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
        samples = as_array(chunk, "stream chunk")
        if samples.size == 0:
            return np.zeros(0, np.float32)
        if samples.ndim == 2:  # chunks of a few samples are laid out as the longer ones before them
            known = channel_axis(samples.shape)
            self._channels = self._channels if known is None else known
        mono = as_mono(samples, "stream chunk", channels=self._channels)
        self.samples_in += mono.size
        with self._working():
            converted = self._stream.push(self._resampler_in.push(self._gain.apply(mono)))
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
            needed = samples_needed(total, self._voice, self.output_sample_rate)
            missing = needed - self._stream.received - rest.size
            converted = self._stream.push(np.concatenate((rest, np.zeros(max(missing, 0), np.float32))))
            converted = np.concatenate((converted, self._stream.flush()))
            resampled = self._emit(self._resampler_out.push(converted, last=True), total)
        self._open = False
        if self._on_finish is not None:
            self._on_finish(self, True)
        return resampled

    def close(self) -> None:
        """End the stream without its rest; does nothing after `flush` or a second time."""
        if self._open:
            self._open = False
            with on_release(self._pin):
                self._stream.close()

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
            with on_release(self._pin):
                yield
        except BaseException:
            self.close()
            if self._on_finish is not None:
                self._on_finish(self, False)
            raise
        finally:
            self.compute_seconds += time.perf_counter() - started

    def _emit(self, samples: FloatArray, total: int | None = None) -> FloatArray:
        if total is not None:
            samples = fit_length(samples, total - self.samples_out)
        self.samples_out += samples.size
        return self._gain.restore(samples)

    def _check_open(self) -> None:
        if not self._open:
            raise StreamClosedError(
                "this stream has been flushed or closed; open another with VoiceConversionPipeline.stream"
            )


def samples_needed(output_samples: int, voice: Voice, output_rate: int) -> int:
    """Samples for the voice from which it and resampling make at least `output_samples` at `output_rate`."""
    rate = voice.output_sample_rate
    if rate != output_rate:
        output_samples = -(-output_samples * rate // output_rate) + 1
    return voice.source_samples(output_samples)
