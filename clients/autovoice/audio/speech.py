"""The parts of a recording in which somebody speaks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from autovoice.audio.levels import loud_level
from autovoice.audio.samples import reblock
from autovoice.audio.source import Source
from autovoice.results import FloatArray

FRAME_SECONDS = 0.02
LOWEST_HZ, HIGHEST_HZ = 300.0, 4000.0  # mains hum lies below
RANGE_DB = 30.0  # below the loud parts, where speech ends
MARGIN_FRAMES = 5
_BLOCK_FRAMES = 500


class SpeechSource:
    """A `Source` without its pauses, silence and hum: frames of 20 ms whose power between 300 and 4000 Hz is
    far below that of the loud ones are left out, but for 0.1 s around the others.

    Args:
        source: what to take the speech of; it is read once.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._size = max(1, round(source.sample_rate * FRAME_SECONDS))
        self._active = self._find()
        self.frames = int(self._active.sum()) * self._size

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self._source.sample_rate

    @property
    def level(self) -> float:
        """RMS of the loud parts, full scale 1; 0 for silence."""
        return self._source.level

    def blocks(self, frames: int) -> Iterator[FloatArray]:
        """Mono float32 blocks of `frames` samples, the last one shorter."""
        return reblock(self._pieces(), frames)

    def _pieces(self) -> Iterator[FloatArray]:
        position = 0
        for block in self._source.blocks(_BLOCK_FRAMES * self._size):
            count = -(-block.size // self._size)
            kept = np.repeat(self._active[position : position + count], self._size)[: block.size]
            position += count
            yield block[kept]

    def _find(self) -> npt.NDArray[np.bool_]:
        """Which frames to keep."""
        window = np.hanning(self._size + 2)[1:-1].astype(np.float32)
        pitches = np.fft.rfftfreq(self._size, 1 / self._source.sample_rate)
        band = (pitches >= LOWEST_HZ) & (pitches <= HIGHEST_HZ)
        powers = []
        for block in self._source.blocks(_BLOCK_FRAMES * self._size):
            padded = np.pad(block, (0, -block.size % self._size)).reshape(-1, self._size)
            spectra = np.fft.rfft(padded * window, axis=1)[:, band]
            powers.append(np.square(np.abs(spectra)).sum(axis=1))
        power = np.concatenate(powers) if powers else np.zeros(0)
        active = power > loud_level(power) ** 2 * 10 ** (-RANGE_DB / 10)
        near: npt.NDArray[np.bool_] = (
            np.convolve(active, np.ones(2 * MARGIN_FRAMES + 1), "same")[: active.size] > 0.5
        )
        return near
