"""`FrameClock`: the constants of the base voice that its parts count by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FrameClock:
    """How the base voice divides time.

    Attributes:
        sample_rate: of the audio its models take and give, Hz.
        frame_samples: samples per 10 ms frame.
        lookahead_samples: how far a stream's output trails its input.
        embedding_size: length of a voice embedding.
    """

    sample_rate: int
    frame_samples: int
    lookahead_samples: int
    embedding_size: int

    @property
    def frames_per_second(self) -> int:
        """Frame rate, Hz."""
        return self.sample_rate // self.frame_samples

    @property
    def feature_delay_frames(self) -> int:
        """Whole frames by which features trail the audio they describe."""
        return self.lookahead_samples // self.frame_samples
