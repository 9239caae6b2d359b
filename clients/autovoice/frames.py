"""From a source at the family's own rate to converted audio, block by block through the models' state."""

from __future__ import annotations

import logging
import warnings
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from autovoice.errors import InferenceError, PassthroughWarning, SequenceError, VoiceConversionError
from autovoice.executor import Executor, Sequence
from autovoice.family import OFFLINE, OFFLINE_WITH_F0, STREAM, STREAM_WITH_F0, VoiceFamily
from autovoice.pitch import new_sequence_id
from autovoice.results import FloatArray

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0  # for the engine to take note that a stream was given up
MAX_RESTARTS = 3  # of one sequence at one place, when the engine keeps losing its state


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

    When the engine loses the state of a live source, its latest `replay` samples are played to it again. That
    restores the state exactly when they are all there was. Later in a source, features are exact again after
    0.6 s of replay, but the phase of the pulses and the place in the noise depend on everything before: the
    sound goes on in the same voice and time, with one jump in phase where the engine changed.

    Args:
        executor: runs the models.
        family: their constants.
        target: what to convert to.
        block: samples per request at most, a multiple of the frame.
        live: send whole frames at once; otherwise gather full blocks, and send a source that fits one block
            in one piece.
        passthrough: hand on the source, delayed alike, from the first failed request on.
        replay: samples kept to be played again.
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
        replay: int = 0,
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
        self._replay = replay if live else 0
        self._recent: deque[FloatArray] = deque()  # what has been converted, `replay` samples of it
        self._recent_samples = 0
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
            self._ended = True
            silence = np.zeros(self._family.frame_samples, np.float32)
            with suppress(VoiceConversionError):
                self._send(self._with_f0(silence), start=False, end=True, timeout=CLOSE_SECONDS)

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
        if not self.passthrough:
            converted = self._request(block, end=end)
        joined = np.concatenate((self._history, block))
        self._history = joined[block.size :]
        if self.passthrough:
            converted = joined[: block.size]
        else:
            self._remember(block)
        self._frames_sent += block.size // self._family.frame_samples
        self._started = True
        self._ended = end
        skip = min(max(-self._returned, 0), converted.size)
        self._returned += converted.size
        return converted[skip:]

    def _request(self, block: FloatArray, *, end: bool) -> FloatArray:
        try:
            return self._send_or_replay(self._with_f0(block), end=end)
        except InferenceError as error:
            if not self._may_pass_through:
                raise
            logger.error("the stream passes its source through from here on: %s", error)
            warnings.warn(
                PassthroughWarning(f"the rest of the stream is NOT converted: {error}"), stacklevel=5
            )
            self.passthrough = True
            return block

    def _send_or_replay(self, inputs: dict[str, FloatArray], *, end: bool) -> FloatArray:
        """Send a block; where the state is lost, play the latest audio to a new sequence first."""
        lost = False
        for left in reversed(range(MAX_RESTARTS + 1)):
            try:
                if lost:
                    self._play_recent()
                return self._send(inputs, start=not (self._started or lost), end=end)
            except SequenceError as error:
                if not left or not self._replay or not self._started:
                    raise
                logger.warning(
                    "playing the last %d samples of a stream again: %s", self._recent_samples, error
                )
                self._sequence = new_sequence_id()
                lost = True
        raise AssertionError("the last attempt returns or raises")

    def _play_recent(self) -> None:
        recent = np.concatenate(self._recent)
        for start in range(0, recent.size, self._block):
            self._send(self._inputs(recent[start : start + self._block]), start=start == 0, end=False)

    def _send(
        self, inputs: dict[str, FloatArray], *, start: bool, end: bool, timeout: float | None = None
    ) -> FloatArray:
        model = STREAM if self._f0 is None else STREAM_WITH_F0
        position = Sequence(self._sequence, start=start, end=end)
        outputs = self._executor.infer(model, inputs, sequence=position, timeout=timeout)
        converted: FloatArray = outputs["CONVERTED_AUDIO"][0]
        return converted

    def _remember(self, block: FloatArray) -> None:
        if not self._replay:
            return
        self._recent.append(block)
        self._recent_samples += block.size
        while self._recent_samples - self._recent[0].size >= self._replay:
            self._recent_samples -= self._recent.popleft().size

    def _inputs(self, audio: FloatArray) -> dict[str, FloatArray]:
        return {
            "SOURCE_AUDIO": audio[np.newaxis],
            "TARGET_EMBEDDING": self._embedding,
            "PITCH_SHIFT": self._shift,
        }

    def _with_f0(self, block: FloatArray) -> dict[str, FloatArray]:
        inputs = self._inputs(block)
        if self._f0 is not None:
            frames = block.size // self._family.frame_samples
            inputs["SOURCE_F0"] = self._delayed_f0(frames)[np.newaxis]
        return inputs

    def _delayed_f0(self, frames: int) -> FloatArray:
        """F0 for the next `frames`, late by as many frames as the features that the models extract."""
        assert self._f0 is not None
        first = self._frames_sent - self._family.feature_delay_frames
        delayed = np.zeros(frames, np.float32)
        start, stop = max(first, 0), min(first + frames, self._f0.size)
        if stop > start:
            delayed[start - first : stop - first] = self._f0[start:stop]
        return delayed


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
