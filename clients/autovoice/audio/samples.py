"""Audio samples in memory: checking, mixing down, resampling, levels."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from autovoice.audio.channels import MAX_CHANNELS
from autovoice.errors import AudioInputError, SampleRateError
from autovoice.results import FloatArray

MIN_SAMPLE_RATE = 4_000
MAX_SAMPLE_RATE = 768_000
USUAL_CHANNELS = 8  # at most, in recordings
MAX_PEAK = 100.0  # floats above this are integers that nobody scaled, not loud audio
INT16_SCALE = 32768.0
PASSTHROUGH_RMS = 0.1  # -20 dB of full scale, the level of ordinary speech recordings
PASSTHROUGH_PEAK = 0.99
RESAMPLING_QUALITY = "HQ"


def check_sample_rate(sample_rate: Any, name: str = "sample rate") -> int:
    """Return `sample_rate` in Hz as an int.

    Raises:
        SampleRateError: when it is not a whole number from 4000 to 768000.
    """
    try:
        if isinstance(sample_rate, float) and sample_rate.is_integer():
            rate = int(sample_rate)
        else:
            rate = operator.index(sample_rate)
    except TypeError:
        raise SampleRateError(f"{name} is {sample_rate!r}; give a whole number of Hz") from None
    if isinstance(sample_rate, bool) or not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise SampleRateError(
            f"{name} is {sample_rate!r} Hz; AutoVoice takes {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz, so "
            "resample first"
        )
    return rate


def as_mono(audio: npt.ArrayLike, name: str = "source audio", *, channels: int | None = None) -> FloatArray:
    """Return checked mono float32 samples [T], full scale 1; several channels are averaged.

    Args:
        audio, name, channels: see `as_channels`.

    Raises:
        AudioInputError: see `as_channels`.
    """
    rows = as_channels(audio, name, channels=channels)
    if len(rows) == 1:
        return np.asarray(rows[0])
    mixed: FloatArray = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mixed


def as_channels(
    audio: npt.ArrayLike, name: str = "source audio", *, channels: int | None = None
) -> FloatArray:
    """Return checked float32 samples [channels, T], full scale 1.

    Args:
        audio: samples [T], [T, channels] or [channels, T] (the shorter axis is the channels). Floats are
            taken as they are; int16, and wider signed integers within the 16-bit range, are divided by 32768.
        name: what to call it in errors.
        channels: the axis of the channels, where it is known; None to see by the shape.

    Raises:
        AudioInputError: empty, wrong rank, not finite, not numbers, out of range.
    """
    array = as_array(audio, name)
    samples = _as_float(array, name)
    if samples.ndim not in (1, 2):
        raise AudioInputError(
            f"{name} has shape {array.shape}, rank {array.ndim}; give mono samples [T] or channels [T, C]"
        )
    if samples.size == 0:
        raise AudioInputError(f"{name} is empty, shape {array.shape}; give at least one frame of 10 ms")
    rows = samples[np.newaxis] if samples.ndim == 1 else _channels_first(samples, name, channels)
    for row in rows:
        check_block(row, name)
    return np.ascontiguousarray(rows)


def as_array(audio: npt.ArrayLike, name: str) -> npt.NDArray[Any]:
    """Return `audio` as an array, unchecked.

    Raises:
        AudioInputError: when its entries differ in length.
    """
    try:
        return np.asarray(audio)
    except ValueError:
        raise AudioInputError(f"{name} is a ragged sequence; give one array of samples per call") from None


def check_block(samples: FloatArray, name: str, offset: int = 0) -> None:
    """Refuse samples that are not finite or that cannot be audio at full scale 1.

    Args:
        samples: mono float32 [T].
        name: what to call it in errors.
        offset: index of `samples[0]` in the whole, for the message.

    Raises:
        AudioInputError: naming the first offending sample.
    """
    if not samples.size:
        return
    peak = float(np.abs(samples).max())
    if not np.isfinite(peak):
        index = int(np.argmin(np.isfinite(samples)))
        raise AudioInputError(
            f"{name} holds {samples[index]} at sample {offset + index}; replace NaN and Inf before converting"
        )
    if peak > MAX_PEAK:
        index = int(np.argmax(np.abs(samples)))
        raise AudioInputError(
            f"{name} reaches {samples[index]:.6g} at sample {offset + index}, but float audio lies in [-1, "
            "1]; divide integer "
            f"samples by their full scale (32768 for 16 bits)"
        )


def _as_float(array: npt.NDArray[Any], name: str) -> FloatArray:
    if np.issubdtype(array.dtype, np.floating):
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes Inf, which check_block names
            return array.astype(np.float32, copy=False)
    if np.issubdtype(array.dtype, np.signedinteger):
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        if low < -32768 or high > 32767:
            raise AudioInputError(
                f"{name} is {array.dtype} from {low} to {high}, outside the 16-bit range; divide by its "
                "full scale into float32 "
                f"in [-1, 1]"
            )
        return (array / INT16_SCALE).astype(np.float32)
    raise AudioInputError(f"{name} has dtype {array.dtype}; give float samples in [-1, 1] or int16")


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """Which axis of samples of rank 2 counts the channels, None where the shape does not tell.

    A recording has more samples than channels, so the shorter axis counts the channels as soon as the other
    one is longer than any number of channels.
    """
    if max(shape) <= MAX_CHANNELS:
        return None
    return 0 if shape[0] < shape[1] else 1


def _channels_first(samples: FloatArray, name: str, axis: int | None) -> FloatArray:
    if axis is None:
        axis = channel_axis(samples.shape)
    if axis is None:  # a few samples: [T, C], as sound libraries give them, where C is a usual number
        axis = 0 if USUAL_CHANNELS < samples.shape[1] > samples.shape[0] else 1
    channels = samples.shape[axis]
    if channels > MAX_CHANNELS:
        raise AudioInputError(
            f"{name} has shape {samples.shape}, which would be {channels} channels; give [T], or [T, C] "
            f"with at most {MAX_CHANNELS}"
        )
    return samples if axis == 0 else samples.T


class Resampler:
    """Resampling of a stream in chunks of any size; the same samples for any chunking.

    Args:
        source_rate: of what is pushed, Hz.
        target_rate: of what comes back, Hz.
        quality: a soxr quality, `"HQ"` or, for less delay, `"LQ"`.
    """

    def __init__(self, source_rate: int, target_rate: int, quality: str = RESAMPLING_QUALITY) -> None:
        self._stream: Any = None
        if source_rate != target_rate:
            import soxr

            self._stream = soxr.ResampleStream(source_rate, target_rate, 1, dtype="float32", quality=quality)

    def push(self, samples: FloatArray, *, last: bool = False) -> FloatArray:
        """Take the next samples [n], return those ready [m]; with `last` also everything still inside."""
        if self._stream is None:
            return samples
        resampled: FloatArray = self._stream.resample_chunk(samples, last=last)
        return resampled


def resample(audio: FloatArray, source_rate: int, target_rate: int) -> FloatArray:
    """Resample whole mono audio [T]; returns the same samples as `Resampler` in any chunking."""
    return Resampler(source_rate, target_rate).push(audio, last=True)


@lru_cache(maxsize=64)
def resampling_delay_seconds(source_rate: int, target_rate: int, quality: str = RESAMPLING_QUALITY) -> float:
    """How far the output of a `Resampler` trails its input at worst, measured on 0.5 s in steps of 1 ms."""
    if source_rate == target_rate:
        return 0.0
    resampler = Resampler(source_rate, target_rate, quality)
    step = source_rate // 1000
    pushed = ready = 0
    worst = 0.0
    for _ in range(500):
        pushed += step
        ready += resampler.push(np.zeros(step, np.float32)).size
        worst = max(worst, pushed / source_rate - ready / target_rate)
    return worst


def output_length(samples: int, source_rate: int, target_rate: int) -> int:
    """Length of converted audio at `target_rate`: `samples * target / source`, halves rounded up."""
    return (2 * samples * target_rate + source_rate) // (2 * source_rate)


def frame_count(samples: int, sample_rate: int, frames_per_second: int = 100) -> int:
    """Number of 10 ms frames that cover `samples`, the last one perhaps partly."""
    return -(-samples * frames_per_second // sample_rate)


def slices(audio: FloatArray, size: int) -> Iterator[FloatArray]:
    """Cut [T] into consecutive views of `size` samples, the last one shorter."""
    for start in range(0, audio.size, size):
        yield audio[start : start + size]


def reblock(pieces: Iterable[FloatArray], size: int) -> Iterator[FloatArray]:
    """Put pieces of audio [n] together and yield blocks of `size` samples, the last one shorter."""
    pending: list[FloatArray] = []
    held = 0
    for piece in pieces:
        pending.append(piece)
        held += piece.size
        if held >= size:
            joined = np.concatenate(pending)
            whole = held // size * size
            yield from slices(joined[:whole], size)
            pending = [joined[whole:]]
            held -= whole
    if held:
        yield np.concatenate(pending)


def passthrough_gain(peak: float, mean_square: float) -> float:
    """Gain that brings audio to -20 dB RMS without its peak passing 0.99; 1 for silence."""
    if peak <= 0.0 or mean_square <= 0.0:
        return 1.0
    return min(PASSTHROUGH_RMS / math.sqrt(mean_square), PASSTHROUGH_PEAK / peak)


def check_duration(samples: int, sample_rate: int, frames_per_second: int, name: str) -> None:
    """Refuse a source shorter than one frame.

    Raises:
        AudioInputError: naming its length.
    """
    if samples * frames_per_second < sample_rate:
        least = frame_count(sample_rate, frames_per_second, 1)
        raise AudioInputError(
            f"{name} has {samples} samples ({1e3 * samples / sample_rate:.2f} ms at {sample_rate} Hz), less "
            "than one frame; give at "
            f"least {least}"
        )
