"""What is converted: mono audio that can be read again and again, in memory or in a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from autovoice.audio.samples import slices
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
