"""What every voice offers: its constants, the check of a request, and a stream that converts."""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from autovoice.audio.source import Source
from autovoice.config import PipelineConfig
from autovoice.engines.engine import Engine
from autovoice.errors import InferenceError, PassthroughWarning, PitchError
from autovoice.results import FloatArray
from autovoice.settings import RvcSettings, is_number

logger = logging.getLogger(__name__)

FRAMES_PER_SECOND = 100
AUTO = "auto"
MAX_SHIFT_SEMITONES = 24.0
PLACE_INPUTS = frozenset(("FIRST_FRAME", "ANCHOR_FRAME", "ANCHOR_PHASE"))  # of a window in its source


@dataclass(frozen=True)
class FrameClock:
    """How the base voice divides time.

    Attributes:
        sample_rate: of the audio its models take and give, Hz.
        frame_samples: samples per 10 ms frame.
        lookahead_samples: how far a stream's output trails its input.
        embedding_size: length of a voice embedding.
        identity_size: values of its first part, the identity.
        embedding_frames: frames of the reference that it holds.
    """

    sample_rate: int
    frame_samples: int
    lookahead_samples: int
    embedding_size: int
    identity_size: int
    embedding_frames: int

    @property
    def frames_per_second(self) -> int:
        """Frame rate, Hz."""
        return self.sample_rate // self.frame_samples

    @property
    def feature_delay_frames(self) -> int:
        """Whole frames by which features trail the audio they describe."""
        return self.lookahead_samples // self.frame_samples


@dataclass(frozen=True)
class VoiceRequest:
    """What a caller asks of a voice, unchecked; the fields are those of `VoiceConversionPipeline.convert`."""

    target_embedding: npt.ArrayLike | None = None
    source_f0: npt.ArrayLike | None = None
    pitch_shift_semitones: float | Literal["auto"] = 0.0
    target_median_f0: float | None = None
    voice_settings: RvcSettings | None = None


@dataclass(frozen=True)
class Target:
    """What to convert to, checked.

    Attributes:
        tensors: what every request carries, [1, ...] by the name of the ensemble's input.
        shift_semitones: pitch shift; None to match the target's median pitch.
        median_f0: of the target, Hz, for the matching; None to judge it by the voice.
        f0: pitch track to use instead of the source's own, Hz per frame [F] from the first frame on; None to
            extract it.
    """

    tensors: Mapping[str, npt.NDArray[Any]]
    shift_semitones: float | None
    median_f0: float | None = None
    f0: FloatArray | None = None

    def inputs(self, audio: FloatArray) -> dict[str, npt.NDArray[Any]]:
        """A request for mono audio [T] at the voice's own rate; the shift has been resolved."""
        assert self.shift_semitones is not None
        shift = np.full((1, 1), self.shift_semitones, np.float32)
        return {"SOURCE_AUDIO": audio[np.newaxis], **self.tensors, "PITCH_SHIFT": shift}


@dataclass(frozen=True)
class Live:
    """How a source that is still going on is converted.

    Attributes:
        core_seconds: audio gathered before it is converted; None for the voice's own.
        passthrough: return the source unconverted from the first failed request on.
        replay_seconds: latest audio kept, to be played again to an engine that lost the stream's state.
    """

    core_seconds: float | None = None
    passthrough: bool = False
    replay_seconds: float = 0.0


class VoiceStream(ABC):
    """Converts one source at the voice's own rates; sample n of the output lies where sample
    `n * sample_rate / output_sample_rate` of the source does.

    Args:
        passthrough: return the source unconverted from the first failed request on.

    Attributes:
        received: samples pushed so far.
        passthrough: True once a failed engine made the stream return its source unconverted.
    """

    def __init__(self, *, passthrough: bool) -> None:
        self._may_pass_through = passthrough
        self.received = 0
        self.passthrough = False

    @property
    @abstractmethod
    def latency_seconds(self) -> float:
        """How far the output trails the input at worst, computing time aside."""

    @abstractmethod
    def push(self, audio: FloatArray) -> FloatArray:
        """Take the next samples [n], return the converted ones that are ready [m].

        Raises:
            InferenceError: when the engine failed.
        """

    @abstractmethod
    def flush(self) -> FloatArray:
        """End the source; return the rest, so that all of it has come out.

        Raises:
            InferenceError: when the engine failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Let the engine forget an unfinished source."""

    def _pass_through(self, error: InferenceError) -> None:
        """Return the source unconverted from now on and warn, or raise `error` where that is not wanted."""
        if not self._may_pass_through:
            raise error
        logger.error("the stream passes its source through from here on: %s", error)
        warnings.warn(PassthroughWarning(f"the rest of the stream is NOT converted: {error}"), stacklevel=6)
        self.passthrough = True


@dataclass(frozen=True)
class Voice(ABC):
    """One voice as its repository's config describes it; what does not depend on the family is here.

    Attributes:
        family: `"base"`, `"rvc"`, ...
        name: of the ensemble that converts whole sources.
        sample_rate: of the audio it takes, Hz.
        output_sample_rate: of the audio it gives, Hz.
        frame_samples: samples per 10 ms frame at `sample_rate`.
        max_batch_size: of its ensembles.
        takes_embedding: whether a target embedding names the speaker.
        bounded: whether results stay within full scale however loud the source is.
    """

    takes_embedding: ClassVar[bool]
    bounded: ClassVar[bool] = False

    family: str
    name: str
    sample_rate: int
    output_sample_rate: int
    frame_samples: int
    max_batch_size: int

    @property
    def frames_per_second(self) -> int:
        """Frame rate, Hz."""
        return self.sample_rate // self.frame_samples

    def converted_samples(self, samples: int) -> int:
        """Samples at the output's rate that cover `samples` of the source, the last one perhaps partly."""
        return -(-samples * self.output_sample_rate // self.sample_rate)

    def source_samples(self, converted: int) -> int:
        """Samples of the source from which at least `converted` are made."""
        return -(-converted * self.sample_rate // self.output_sample_rate)

    def level_share(self, target: Target) -> float:
        """How much the level of the result follows that of the source, 0 to 1."""
        return 1.0

    @abstractmethod
    def check_settings(self, settings: RvcSettings | None) -> None:
        """Refuse settings that this voice does not have.

        Raises:
            ConfigurationError: naming the first of them.
        """

    @abstractmethod
    def check_shift(self, shift: Any, *, live: bool = False) -> float | None:
        """Return a pitch shift in semitones, or None for `"auto"`.

        Raises:
            PitchError: beyond two octaves, or nothing that this voice can do.
        """

    @abstractmethod
    def target(self, request: VoiceRequest, source: Source | None, config: PipelineConfig) -> Target:
        """Check a request; `source` is None for a live one.

        Raises:
            EmbeddingError, PitchError, ConfigurationError: for what does not fit the voice.
        """

    @abstractmethod
    def neutral_target(self) -> Target:
        """Some target, for warming up."""

    @abstractmethod
    def resolve(self, engine: Engine, target: Target, source: Source, block: int) -> Target:
        """Find the pitch shift where the target leaves it open, reading `block` samples at a time."""

    @abstractmethod
    def open_stream(
        self, engine: Engine, target: Target, *, block_seconds: float, live: Live | None = None
    ) -> VoiceStream:
        """Begin a conversion.

        Args:
            engine: runs the models.
            target: what to convert to.
            block_seconds: audio per request at most.
            live: None for a source that is all there; one within a block then makes a single request.
        """

    @abstractmethod
    def offline_model(self, target: Target) -> str:
        """The ensemble that takes a whole source."""

    @abstractmethod
    def offline_inputs(self, target: Target, audio: FloatArray) -> dict[str, npt.NDArray[Any]]:
        """A request to `offline_model` for mono audio [T] at `sample_rate`."""

    @abstractmethod
    def may_share(self, samples: int, longest: int) -> bool:
        """Whether a source may be padded on the right to `longest` samples and still come out the same."""

    def _whole(self, seconds: float, step: int) -> int:
        """The multiple of `step` samples that is nearest to `seconds`, one step at least."""
        return max(1, round(seconds * self.sample_rate / step)) * step


def fit_length(samples: FloatArray, length: int) -> FloatArray:
    """Cut [T], or extend it with silence, to exactly `length`."""
    if samples.size >= length:
        return samples[:length]
    return np.concatenate((samples, np.zeros(length - samples.size, np.float32)))


def join(parts: list[FloatArray]) -> FloatArray:
    """Concatenate pieces of audio, perhaps none."""
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def check_shift(shift: Any, *, live: bool = False) -> float | None:
    """Return a pitch shift in semitones, or None for `"auto"`.

    Raises:
        PitchError: not a number, or beyond two octaves; `"auto"` for a `live` source.
    """
    if isinstance(shift, str) and shift == AUTO:
        if live:
            raise PitchError(
                "pitch shift 'auto' needs the whole source, which a stream does not have; give semitones"
            )
        return None
    if not is_number(shift):
        raise PitchError(f"pitch shift is {shift!r}; give semitones from -24 to 24, or 'auto'")
    if not abs(shift) <= MAX_SHIFT_SEMITONES:  # also refuses NaN
        raise PitchError(
            f"pitch shift is {shift!r} semitones; give at most two octaves, -24 to 24, or 'auto'"
        )
    return float(shift)


def check_median(median_f0: Any) -> float | None:
    """Return a target's median pitch in Hz.

    Raises:
        PitchError: it is none that a voice could have.
    """
    if median_f0 is not None and not (is_number(median_f0) and 1.0 <= median_f0 <= 20_000.0):
        raise PitchError(
            f"target_median_f0 is {median_f0!r} Hz; give the median pitch of the target's voice, or None"
        )
    return None if median_f0 is None else float(median_f0)
