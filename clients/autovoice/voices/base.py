"""The base voice: small, causal, and of any speaker that an embedding names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from autovoice.audio.source import Source
from autovoice.audio.speech import SpeechSource
from autovoice.config import BASE_VOICE, PipelineConfig
from autovoice.engines.engine import Engine
from autovoice.errors import ConfigurationError, EmbeddingError, RepositoryError
from autovoice.repository.model_config import ModelSpec
from autovoice.results import FloatArray
from autovoice.settings import RvcSettings
from autovoice.voices.base_stream import OFFLINE_WITH_F0, CausalStream, fit_f0
from autovoice.voices.embedding import check_embedding
from autovoice.voices.pitch import (
    check_f0,
    expected_median_f0,
    matching_shift,
    median_voiced,
    track_source_f0,
)
from autovoice.voices.voice import FrameClock, Live, Target, Voice, VoiceRequest, check_median, check_shift

MAX_PADDING = 0.25  # share of a batch's row that may be padding


@dataclass(frozen=True)
class BaseVoice(Voice):
    """The base voice; see `Voice`.

    Attributes:
        lookahead_samples: how far a stream's output trails its input.
        embedding_size: length of a voice embedding.
        identity_size: values of its first part, the identity.
        embedding_frames: frames of the reference that it holds.
    """

    takes_embedding: ClassVar[bool] = True

    lookahead_samples: int
    embedding_size: int
    identity_size: int
    embedding_frames: int

    @property
    def clock(self) -> FrameClock:
        """The constants that its parts count by."""
        return FrameClock(
            self.sample_rate,
            self.frame_samples,
            self.lookahead_samples,
            self.embedding_size,
            self.identity_size,
            self.embedding_frames,
        )

    def check_settings(self, settings: RvcSettings | None) -> None:
        """See `Voice.check_settings`; it has none."""
        if settings is not None:
            raise ConfigurationError(
                "speaker, index_rate, protect and rms_mix are settings of imported voices, which "
                f"{self.name!r} is not; name another voice or leave them out"
            )

    def check_shift(self, shift: Any, *, live: bool = False) -> float | None:
        """See `Voice.check_shift`."""
        return check_shift(shift, live=live)

    def target(self, request: VoiceRequest, source: Source | None, config: PipelineConfig) -> Target:
        """See `Voice.target`."""
        self.check_settings(request.voice_settings)
        if request.target_embedding is None:
            raise EmbeddingError(
                f"target embedding is missing, and {self.name!r} has no speaker of its own; pass one made "
                "by embed()"
            )
        median = check_median(request.target_median_f0)
        f0 = None
        if request.source_f0 is not None and source is not None:
            f0 = check_f0(
                request.source_f0,
                source.frames,
                source.sample_rate,
                self.frames_per_second,
                config.f0_min,
                config.f0_max,
            )
        embedding = check_embedding(request.target_embedding, self.embedding_size)
        shift = self.check_shift(request.pitch_shift_semitones, live=source is None)
        return Target(_tensors(embedding), shift, median, f0)

    def neutral_target(self) -> Target:
        """See `Voice.neutral_target`."""
        return Target(_tensors(np.full(self.embedding_size, self.embedding_size**-0.5, np.float32)), 0.0)

    def resolve(self, engine: Engine, target: Target, source: Source, block: int) -> Target:
        """See `Voice.resolve`; takes a first pass over the source."""
        if target.shift_semitones is not None:
            return target
        f0 = target.f0
        if f0 is None:
            f0 = track_source_f0(engine, self.clock, SpeechSource(source), block)
        median = target.median_f0
        if median is None:
            median = expected_median_f0(engine, target.tensors["TARGET_EMBEDDING"])
        return replace(target, shift_semitones=matching_shift(median_voiced(f0), median))

    def open_stream(
        self, engine: Engine, target: Target, *, block_seconds: float, live: Live | None = None
    ) -> CausalStream:
        """See `Voice.open_stream`."""
        block = self._whole(block_seconds, self.frame_samples)
        if live is None:
            return CausalStream(engine, self, self.clock, target, block=block)
        return CausalStream(
            engine,
            self,
            self.clock,
            target,
            block=block,
            step=self._whole(live.core_seconds or 0.0, self.frame_samples),
            passthrough=live.passthrough,
            replay=round(live.replay_seconds * self.sample_rate),
        )

    def offline_model(self, target: Target) -> str:
        """See `Voice.offline_model`."""
        return self.name if target.f0 is None else OFFLINE_WITH_F0

    def offline_inputs(self, target: Target, audio: FloatArray) -> dict[str, npt.NDArray[Any]]:
        """See `Voice.offline_inputs`."""
        inputs = target.inputs(audio)
        if target.f0 is not None:
            inputs["SOURCE_F0"] = fit_f0(target.f0, audio.size, self.clock)[np.newaxis]
        return inputs

    def may_share(self, samples: int, longest: int) -> bool:
        """See `Voice.may_share`: causal models do not hear the padding, so only its cost counts."""
        return samples >= (1 - MAX_PADDING) * longest


def read_base_voice(engine: Engine) -> BaseVoice:
    """Read the constants of the base voice that `engine` serves.

    Raises:
        RepositoryError: when the ensemble or one of its parameters is missing or at odds with its inputs.
    """
    spec: ModelSpec = engine.spec(BASE_VOICE)
    embedding_size = spec.integer_parameter("embedding_size")
    if spec.input("TARGET_EMBEDDING").dims != (embedding_size,):
        raise RepositoryError(
            f"model {spec.name} has parameter embedding_size = {embedding_size}, but its TARGET_EMBEDDING "
            f"has dims {list(spec.input('TARGET_EMBEDDING').dims)}; rebuild the repository"
        )
    sample_rate = spec.integer_parameter("sample_rate")
    return BaseVoice(
        family=spec.parameters.get("family", ""),
        name=spec.name,
        sample_rate=sample_rate,
        output_sample_rate=sample_rate,
        frame_samples=spec.integer_parameter("frame_samples"),
        max_batch_size=max(spec.max_batch_size, 1),
        lookahead_samples=spec.integer_parameter("lookahead_samples"),
        embedding_size=embedding_size,
        identity_size=spec.integer_parameter("identity_size"),
        embedding_frames=spec.integer_parameter("embedding_frames"),
    )


def _tensors(embedding: FloatArray) -> dict[str, npt.NDArray[Any]]:
    return {"TARGET_EMBEDDING": embedding[np.newaxis]}
