"""The base voice: small, causal, and of any speaker that an embedding names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from autovoice.config import PipelineConfig
from autovoice.embedding import check_embedding
from autovoice.errors import ConfigurationError, EmbeddingError, RepositoryError
from autovoice.executor import Executor
from autovoice.family import BASE_VOICE, Live, Target, VoiceFamily, VoiceRequest
from autovoice.frames import OFFLINE_WITH_F0, FrameConverter, fit_f0
from autovoice.model_config import ModelSpec
from autovoice.pitch import (
    check_f0,
    check_median,
    check_shift,
    expected_median_f0,
    matching_shift,
    median_voiced,
    track_source_f0,
)
from autovoice.results import FloatArray
from autovoice.rvc_settings import RvcSettings
from autovoice.sources import Source

MAX_PADDING = 0.25  # share of a batch's row that may be padding


@dataclass(frozen=True)
class BaseFamily(VoiceFamily):
    """The base voice; see `VoiceFamily`.

    Attributes:
        lookahead_samples: how far a stream's output trails its input.
        embedding_size: length of a voice embedding.
    """

    takes_embedding: ClassVar[bool] = True

    lookahead_samples: int
    embedding_size: int

    @property
    def feature_delay_frames(self) -> int:
        """Whole frames by which features trail the audio they describe."""
        return self.lookahead_samples // self.frame_samples

    def check_settings(self, settings: RvcSettings | None) -> None:
        """See `VoiceFamily.check_settings`; it has none."""
        if settings is not None:
            raise ConfigurationError(
                "speaker, index_rate, protect and rms_mix are settings of imported voices, which "
                f"{self.voice!r} is not; name another voice or leave them out"
            )

    def check_shift(self, shift: Any, *, live: bool = False) -> float | None:
        """See `VoiceFamily.check_shift`."""
        return check_shift(shift, live=live)

    def target(self, request: VoiceRequest, source: Source | None, config: PipelineConfig) -> Target:
        """See `VoiceFamily.target`."""
        self.check_settings(request.voice_settings)
        if request.target_embedding is None:
            raise EmbeddingError(
                f"target embedding is missing, and {self.voice!r} speaks only as one tells it; pass one made "
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
        """See `VoiceFamily.neutral_target`."""
        return Target(_tensors(np.full(self.embedding_size, self.embedding_size**-0.5, np.float32)), 0.0)

    def resolve(self, executor: Executor, target: Target, source: Source, block: int) -> Target:
        """See `VoiceFamily.resolve`; takes a first pass over the source."""
        if target.shift_semitones is not None:
            return target
        f0 = target.f0
        if f0 is None:
            f0 = track_source_f0(executor, self, source, block)
        median = target.median_f0
        if median is None:
            median = expected_median_f0(executor, target.tensors["TARGET_EMBEDDING"])
        return replace(target, shift_semitones=matching_shift(median_voiced(f0), median))

    def converter(
        self, executor: Executor, target: Target, *, block_seconds: float, live: Live | None = None
    ) -> FrameConverter:
        """See `VoiceFamily.converter`."""
        block = self._whole(block_seconds, self.frame_samples)
        if live is None:
            return FrameConverter(executor, self, target, block=block)
        return FrameConverter(
            executor,
            self,
            target,
            block=block,
            step=self._whole(live.core_seconds or 0.0, self.frame_samples),
            passthrough=live.passthrough,
            replay=round(live.replay_seconds * self.sample_rate),
        )

    def offline_model(self, target: Target) -> str:
        """See `VoiceFamily.offline_model`."""
        return self.voice if target.f0 is None else OFFLINE_WITH_F0

    def offline_inputs(self, target: Target, audio: FloatArray) -> dict[str, npt.NDArray[Any]]:
        """See `VoiceFamily.offline_inputs`."""
        inputs = target.inputs(audio)
        if target.f0 is not None:
            inputs["SOURCE_F0"] = fit_f0(target.f0, audio.size, self)[np.newaxis]
        return inputs

    def may_share(self, samples: int, longest: int) -> bool:
        """See `VoiceFamily.may_share`: causal models do not hear the padding, so only its cost counts."""
        return samples >= (1 - MAX_PADDING) * longest


def read_base_family(executor: Executor) -> BaseFamily:
    """Read the constants of the base voice that `executor` serves.

    Raises:
        RepositoryError: when the ensemble or one of its parameters is missing or at odds with its inputs.
    """
    spec: ModelSpec = executor.spec(BASE_VOICE)
    embedding_size = spec.integer_parameter("embedding_size")
    if spec.input("TARGET_EMBEDDING").dims != (embedding_size,):
        raise RepositoryError(
            f"model {spec.name} has parameter embedding_size = {embedding_size}, but its TARGET_EMBEDDING "
            f"has dims {list(spec.input('TARGET_EMBEDDING').dims)}; rebuild the repository"
        )
    sample_rate = spec.integer_parameter("sample_rate")
    return BaseFamily(
        name=spec.parameters.get("family", ""),
        voice=spec.name,
        sample_rate=sample_rate,
        output_sample_rate=sample_rate,
        frame_samples=spec.integer_parameter("frame_samples"),
        max_batch_size=max(spec.max_batch_size, 1),
        lookahead_samples=spec.integer_parameter("lookahead_samples"),
        embedding_size=embedding_size,
    )


def _tensors(embedding: FloatArray) -> dict[str, npt.NDArray[Any]]:
    return {"TARGET_EMBEDDING": embedding[np.newaxis]}
