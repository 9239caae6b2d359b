"""Conversion by a causal voice: frame by frame through the state of its models."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from autovoice.engines.engine import MAX_RESTARTS, Engine, Sequence, new_sequence_id
from autovoice.errors import InferenceError, SequenceError
from autovoice.results import FloatArray
from autovoice.voices.voice import FrameClock, Target, Voice, VoiceStream, fit_length, join

logger = logging.getLogger(__name__)

OFFLINE_WITH_F0 = "voice_conversion_with_f0"
STREAM = "voice_conversion_stream"
STREAM_WITH_F0 = "voice_conversion_with_f0_stream"


class CausalStream(VoiceStream):
    """Converts audio at the voice's own rate; output sample n belongs to input sample n.

    When the engine loses the state of a live source, its latest `replay` samples are played to it again. That
    restores the state exactly when they are all there was. Later in a source, features are exact again after
    0.6 s of replay, but the phase of the pulses and the place in the noise depend on everything before: the
    sound goes on in the same voice and time, with one jump in phase where the engine changed.

    Args:
        engine: runs the models.
        voice: what they belong to.
        clock: their constants.
        target: what to convert to.
        block: samples per request at most, a multiple of the frame.
        step: samples gathered before they are sent, a multiple of the frame. None for a source that is all
            there: full blocks are gathered, and one that fits a block is sent in one piece.
        passthrough: return the source unconverted, with the same delay, from the first failed request on.
        replay: samples of a live source kept to be played again.
    """

    def __init__(
        self,
        engine: Engine,
        voice: Voice,
        clock: FrameClock,
        target: Target,
        *,
        block: int,
        step: int | None = None,
        passthrough: bool = False,
        replay: int = 0,
    ) -> None:
        super().__init__(passthrough=passthrough)
        self._engine = engine
        self._voice = voice
        self._clock = clock
        self._target = target
        self._live = step is not None
        self._step = min(step or block, block)
        self._block = block
        self._f0 = target.f0
        self._pending = np.zeros(0, np.float32)
        self._history = np.zeros(clock.lookahead_samples, np.float32)  # delays a source passed through
        self._replay = replay
        self._recent: deque[FloatArray] = deque()  # what has been converted, `replay` samples of it
        self._recent_samples = 0
        self._sequence = new_sequence_id()
        self._started = False
        self._ended = False
        self._frames_sent = 0
        self._returned = -clock.lookahead_samples  # what comes first lies before the source and is dropped

    @property
    def latency_seconds(self) -> float:
        """The models' look-ahead and one step."""
        return (self._clock.lookahead_samples + self._step) / self._clock.sample_rate

    def push(self, audio: FloatArray) -> FloatArray:
        """Take the next samples [n], return the converted ones that are ready [m]."""
        self.received += audio.size
        self._pending = np.concatenate((self._pending, audio))
        ready: list[FloatArray] = []
        while self._pending.size >= self._step:
            size = min(
                self._pending.size // self._clock.frame_samples * self._clock.frame_samples, self._block
            )
            block, self._pending = self._pending[:size], self._pending[size:]
            ready.append(self._convert(block, end=False))
        return join(ready)

    def flush(self) -> FloatArray:
        """End the source; return the rest, so that as many samples have come out as went in."""
        if not self.received:
            return np.zeros(0, np.float32)
        if not self._started and not self._live:
            # What fits one request needs no state; the offline ensemble, which servers can batch, gives the
            # same samples.
            inputs = self._voice.offline_inputs(self._target, self._pending)
            self._returned = self._pending.size
            outputs = self._engine.infer(self._voice.offline_model(self._target), inputs)
            whole: FloatArray = outputs["CONVERTED_AUDIO"][0]
            return whole
        tail = self._clock.lookahead_samples
        tail += -(self.received + tail) % self._clock.frame_samples
        converted = self._convert(np.concatenate((self._pending, np.zeros(tail, np.float32))), end=True)
        excess = self._returned - self.received
        return converted[: converted.size - excess]

    def close(self) -> None:
        """Have the engine drop the state of an unfinished source."""
        if not self.passthrough:
            self._drop_state()

    def _convert(self, block: FloatArray, *, end: bool) -> FloatArray:
        if not self.passthrough:
            converted = self._request(block, end=end)
        joined = np.concatenate((self._history, block))
        self._history = joined[block.size :]
        if self.passthrough:
            converted = joined[: block.size]
        else:
            self._remember(block)
        self._frames_sent += block.size // self._clock.frame_samples
        self._started = True
        self._ended = end
        skip = min(max(-self._returned, 0), converted.size)
        self._returned += converted.size
        return converted[skip:]

    def _request(self, block: FloatArray, *, end: bool) -> FloatArray:
        try:
            return self._send_or_replay(self._with_f0(block), end=end)
        except InferenceError as error:
            self._pass_through(error)
            self._drop_state()
            return block

    def _send_or_replay(self, inputs: dict[str, npt.NDArray[Any]], *, end: bool) -> FloatArray:
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
            self._send(self._target.inputs(recent[start : start + self._block]), start=start == 0, end=False)

    def _drop_state(self) -> None:
        if self._started and not self._ended:
            self._ended = True
            silence = self._with_f0(np.zeros(self._clock.frame_samples, np.float32))
            self._engine.end_sequence(self._model, silence, self._sequence)

    @property
    def _model(self) -> str:
        return STREAM if self._f0 is None else STREAM_WITH_F0

    def _send(self, inputs: dict[str, npt.NDArray[Any]], *, start: bool, end: bool) -> FloatArray:
        position = Sequence(self._sequence, start=start, end=end)
        outputs = self._engine.infer(self._model, inputs, sequence=position)
        converted: FloatArray = outputs["CONVERTED_AUDIO"][0]
        return converted

    def _remember(self, block: FloatArray) -> None:
        if not self._replay:
            return
        self._recent.append(block.copy())  # a view would hold all of the push that it was cut from
        self._recent_samples += block.size
        while self._recent_samples - self._recent[0].size >= self._replay:
            self._recent_samples -= self._recent.popleft().size

    def _with_f0(self, block: FloatArray) -> dict[str, npt.NDArray[Any]]:
        inputs = self._target.inputs(block)
        if self._f0 is not None:
            frames = block.size // self._clock.frame_samples
            inputs["SOURCE_F0"] = self._delayed_f0(frames)[np.newaxis]
        return inputs

    def _delayed_f0(self, frames: int) -> FloatArray:
        """F0 for the next `frames`, late by as many frames as the features that the models extract."""
        assert self._f0 is not None
        first = self._frames_sent - self._clock.feature_delay_frames
        delayed = np.zeros(frames, np.float32)
        start, stop = max(first, 0), min(first + frames, self._f0.size)
        if stop > start:
            delayed[start - first : stop - first] = self._f0[start:stop]
        return delayed


def fit_f0(f0: FloatArray, samples: int, clock: FrameClock) -> FloatArray:
    """Cut a pitch track, or extend it unvoiced, to the frames of `samples` at the clock's rate."""
    return fit_length(f0, -(-samples // clock.frame_samples))
