"""What is converted: mono audio that can be read again and again, in memory or in a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from autovoice.audio.levels import FixedGain, level_of, usual_gain_db
from autovoice.audio.samples import slices
from autovoice.results import FloatArray


class Source(Protocol):
    """Mono audio that can be read from the start any number of times."""

    @property
    def sample_rate(self) -> int:
        """Hz."""

    @property
    def frames(self) -> int:
        """Samples."""

    @property
    def level(self) -> float:
        """RMS of the loud parts, full scale 1; 0 for silence."""

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

    @cached_property
    def level(self) -> float:
        """RMS of the loud parts, full scale 1; 0 for silence."""
        return level_of(self.audio, self.sample_rate)

    def blocks(self, frames: int) -> Iterator[FloatArray]:
        """Views of `frames` samples, the last one shorter."""
        return slices(self.audio, frames)


@dataclass(frozen=True)
class ScaledSource:
    """A `Source` at another level.

    Attributes:
        source: what is scaled.
        gain_db: dB.
    """

    source: Source
    gain_db: float

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.source.sample_rate

    @property
    def frames(self) -> int:
        """Samples."""
        return self.source.frames

    @property
    def level(self) -> float:
        """RMS of the loud parts, full scale 1; 0 for silence."""
        return self.source.level * 10 ** (self.gain_db / 20)

    def blocks(self, frames: int) -> Iterator[FloatArray]:
        """Mono float32 blocks of `frames` samples, the last one shorter."""
        gain = FixedGain(self.gain_db)
        return map(gain.apply, self.source.blocks(frames))


def at_usual_level(source: Source) -> ScaledSource:
    """The same audio with its loud parts at the level that the voices were trained on."""
    return ScaledSource(source, usual_gain_db(source.level))
