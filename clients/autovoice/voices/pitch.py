"""Pitch of a recording, and the shifts between voices."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from autovoice.audio.samples import Resampler, frame_count
from autovoice.audio.source import Source
from autovoice.engines.engine import MAX_RESTARTS, Engine, Sequence, new_sequence_id
from autovoice.errors import PitchError, ReleaseGoneError, SequenceError
from autovoice.results import FloatArray
from autovoice.voices.voice import MAX_SHIFT_SEMITONES, FrameClock

logger = logging.getLogger(__name__)

PITCH_STREAM = "pitch_extractor_stream"
TARGET_PITCH = "target_pitch"


def check_f0(
    source_f0: npt.ArrayLike,
    samples: int,
    sample_rate: int,
    frames_per_second: int,
    f0_min: float,
    f0_max: float,
) -> FloatArray:
    """Return a checked pitch track.

    Args:
        source_f0: Hz per 10 ms frame [F], 0 where unvoiced; frame g is centred at (g + 0.5) * 10 ms.
        samples: length of the source, at
        sample_rate: Hz.
        frames_per_second: frame rate, Hz.
        f0_min: lowest voiced value accepted, Hz.
        f0_max: highest voiced value accepted, Hz.

    Raises:
        PitchError: wrong rank, wrong length, not finite, or voiced values out of range.
    """
    expected = frame_count(samples, sample_rate, frames_per_second)
    try:
        values = np.asarray(source_f0)
    except ValueError:
        values = np.zeros(0, object)  # ragged
    if values.dtype.kind not in "fiu":
        raise PitchError("source_f0 is not an array of numbers; give Hz per 10 ms frame, 0 where unvoiced")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes Inf, which is refused below
        track = values.astype(np.float32)
    if track.shape != (expected,):
        raise PitchError(
            f"source_f0 has shape {track.shape}, but {samples} samples at {sample_rate} Hz have {expected} "
            "frames of 10 ms; give "
            f"shape ({expected},)"
        )
    allowed = (track == 0) | ((track >= f0_min) & (track <= f0_max))
    if not allowed.all():
        frame = int(np.argmin(allowed))
        raise PitchError(
            f"source_f0 is {track[frame]} Hz at frame {frame}; give 0 for unvoiced or {f0_min:g} to "
            f"{f0_max:g} Hz"
        )
    return track


def track_source_f0(engine: Engine, clock: FrameClock, source: Source, block: int) -> FloatArray:
    """Follow the pitch of a source, read `block` samples at a time, from its start again when the engine
    loses its state.

    Returns:
        Hz per 10 ms frame, 0 where unvoiced.
    """

    def resampled() -> Iterator[FloatArray]:
        resampler = Resampler(source.sample_rate, clock.sample_rate)
        for chunk in source.blocks(block):
            yield resampler.push(chunk)
        yield resampler.push(np.zeros(0, np.float32), last=True)

    for _ in range(MAX_RESTARTS):
        try:
            return track_f0(engine, clock, resampled())
        except ReleaseGoneError:
            raise
        except SequenceError as error:
            logger.warning("following the pitch from the start again: %s", error)
    return track_f0(engine, clock, resampled())


def track_f0(engine: Engine, clock: FrameClock, blocks: Iterable[FloatArray]) -> FloatArray:
    """Follow the pitch of audio given in blocks of any size at the clock's rate.

    Returns:
        F0 [F] in Hz, 0 where unvoiced, F = ceil(T / frame).
    """
    frame = clock.frame_samples
    sequence = new_sequence_id()
    pending = np.zeros(0, np.float32)
    tracks: list[FloatArray] = []
    total = 0

    def send(audio: FloatArray, *, end: bool) -> None:
        position = Sequence(sequence, start=not tracks, end=end)
        tracks.append(engine.infer(PITCH_STREAM, {"AUDIO": audio[np.newaxis]}, sequence=position)["F0"][0])

    try:
        for block in blocks:
            total += block.size
            pending = np.concatenate((pending, block))
            whole = pending.size // frame * frame
            if whole:
                send(pending[:whole], end=False)
                pending = pending[whole:]
        frames = -(-total // frame)
        delay = clock.feature_delay_frames
        tail = (-pending.size) % frame + delay * frame
        send(np.concatenate((pending, np.zeros(tail, np.float32))), end=True)
    except BaseException:
        if tracks:
            silence = np.zeros((1, frame), np.float32)
            engine.end_sequence(PITCH_STREAM, {"AUDIO": silence}, sequence)
        raise
    return np.concatenate(tracks)[delay : delay + frames]


def expected_median_f0(engine: Engine, embedding: FloatArray) -> float:
    """Median pitch in Hz that a voice is expected to have, judged by its embedding [1, E] alone."""
    return float(engine.infer(TARGET_PITCH, {"EMBEDDING": embedding})["MEDIAN_F0"][0, 0])


def median_voiced(f0: FloatArray) -> float:
    """Median of the voiced frames in Hz, 0.0 when there are none."""
    voiced = f0[f0 > 0]
    return float(np.median(voiced)) if voiced.size else 0.0


def matching_shift(source_median: float, target_median: float) -> float:
    """Semitones from one median pitch to another, at most two octaves; 0 when either has none (0 Hz)."""
    if source_median <= 0 or target_median <= 0:
        return 0.0
    shift = 12 * math.log2(target_median / source_median)
    return min(max(shift, -MAX_SHIFT_SEMITONES), MAX_SHIFT_SEMITONES)
