"""What a voice family fixes, as its repository's configs say it."""

from __future__ import annotations

from dataclasses import dataclass

from autovoice.errors import RepositoryError
from autovoice.executor import Executor

OFFLINE = "voice_conversion"
OFFLINE_WITH_F0 = "voice_conversion_with_f0"
STREAM = "voice_conversion_stream"
STREAM_WITH_F0 = "voice_conversion_with_f0_stream"
PITCH_STREAM = "pitch_extractor_stream"
SPEAKER_ENCODER = "speaker_encoder"
TARGET_PITCH = "target_pitch"


@dataclass(frozen=True)
class VoiceFamily:
    """Constants of a family, from the parameters of its `voice_conversion` ensemble.

    Attributes:
        name: `"base"`, ...
        sample_rate: of audio inside the models, Hz.
        frame_samples: samples per frame; streams advance in whole frames.
        lookahead_samples: how far a stream's output trails its input.
        embedding_size: length of a voice embedding.
        max_batch_size: of the ensembles.
    """

    name: str
    sample_rate: int
    frame_samples: int
    lookahead_samples: int
    embedding_size: int
    max_batch_size: int

    @property
    def feature_delay_frames(self) -> int:
        """Whole frames by which features trail the audio they describe."""
        return self.lookahead_samples // self.frame_samples

    @property
    def frames_per_second(self) -> int:
        """Frame rate, Hz."""
        return self.sample_rate // self.frame_samples


def read_family(executor: Executor) -> VoiceFamily:
    """Read the constants of the family that `executor` serves.

    Raises:
        RepositoryError: when the ensemble or one of its parameters is missing or at odds with its inputs.
    """
    spec = executor.spec(OFFLINE)
    embedding_size = spec.integer_parameter("embedding_size")
    if spec.input("TARGET_EMBEDDING").dims != (embedding_size,):
        raise RepositoryError(
            f"model {spec.name} has parameter embedding_size = {embedding_size}, but its TARGET_EMBEDDING "
            f"has dims {list(spec.input('TARGET_EMBEDDING').dims)}; rebuild the repository"
        )
    return VoiceFamily(
        name=spec.parameters.get("family", ""),
        sample_rate=spec.integer_parameter("sample_rate"),
        frame_samples=spec.integer_parameter("frame_samples"),
        lookahead_samples=spec.integer_parameter("lookahead_samples"),
        embedding_size=embedding_size,
        max_batch_size=max(spec.max_batch_size, 1),
    )
