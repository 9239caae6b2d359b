"""What is converted: mono audio that can be read again and again, in memory or in a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from autovoice.audio.samples import frame_count, slices
from autovoice.errors import AudioInputError
from autovoice.results import FloatArray


class Source(Protocol):
    """Mono audio that can be read from the start any number of times."""

    @property
    def sample_rate(self) -> int:
        """Hz."""

    @property
    def frames(self) -> int:
        """Samples, perhaps estimated."""

    def blocks(self, frames: int) -> Iterator[FloatArray]:
        """Mono float32 blocks of `frames` samples, the last one shorter."""


@dataclass(frozen=True)
class ArraySource:
    """A `Source` in memory.

    Attributes:
        audio: mono float32 [T].
        sample_rate: Hz.
    """

    audio: FloatArray
    sample_rate: int

    @property
    def frames(self) -> int:
        """Samples."""
        return self.audio.size

    def blocks(self, frames: int) -> Iterator[FloatArray]:
        """Views of `frames` samples, the last one shorter."""
        return slices(self.audio, frames)


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
