"""The least time an op can take on a device: bytes that must move, and operations that must be done."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from autovoice_plugins.geometry import BANDS, FFT_SIZE, HOP, SAMPLE_RATE
from autovoice_plugins.pitch_yin.reference import LOWPASS_SECONDS

FLOAT_BYTES = 4
SPECIAL = 8
"""Operations that a sine, exponential, root or quotient counts for: GPUs do up to eight times fewer."""


@dataclass(frozen=True)
class Work:
    """What one frame of one sequence costs at least.

    Attributes:
        bytes: read once and written once.
        operations: additions and multiplications of a fast method, special functions as `SPECIAL`.
    """

    bytes: float
    operations: float

    def times(self, count: int) -> Work:
        """The work of so many frames."""
        return Work(self.bytes * count, self.operations * count)


@dataclass(frozen=True)
class Device:
    """What a device was measured to do.

    Attributes:
        bandwidth: bytes per second, read and written, while copying.
        rate: FP32 operations per second while multiplying matrices, without tensor cores.
    """

    bandwidth: float
    rate: float

    def __post_init__(self) -> None:
        if not (self.bandwidth > 0 and self.rate > 0):
            raise ValueError(f"bandwidth {self.bandwidth} and rate {self.rate} must be positive")

    def least_seconds(self, work: Work) -> float:
        """Time below which the work cannot be done, whichever limit is the higher."""
        return max(work.bytes / self.bandwidth, work.operations / self.rate)

    def share(self, work: Work, seconds: float) -> float:
        """Part of the roofline that a measured time reaches, 1 at best."""
        return self.least_seconds(work) / seconds

    def limit(self, work: Work) -> str:
        """Which of the two limits holds."""
        return "bandwidth" if work.bytes / self.bandwidth >= work.operations / self.rate else "operations"


def real_fft(size: int) -> float:
    """Operations of a real DFT by a split-radix FFT: half of 4 N log2 N - 6 N + 8."""
    return 0.5 * (4 * size * math.log2(size) - 6 * size + 8)


def pitch_yin(hop: int = HOP, sample_rate: int = SAMPLE_RATE) -> Work:
    """Each block's spectrum once, one product with its neighbours, one way back; then lag by lag."""
    lags, taps = 2 * hop, round(LOWPASS_SECONDS * sample_rate)
    prefilter = hop * (2 * taps + 4)  # the moving average as a running sum
    spectra = 2 * real_fft(3 * hop)
    product = (3 * hop // 2 + 1) * (6 + 4)
    energies = 3 * hop
    normalised = lags * (3 + 7 + 2 + SPECIAL)  # difference, four blocks' sum, running mean, quotient
    pick = lags * 6
    return Work(FLOAT_BYTES * (hop + 2), prefilter + spectra + product + energies + normalised + pick)


def harmonic_source(hop: int = HOP) -> Work:
    """Per sample: the phase, two sines, two cosines (one is in the tangent), a root and two quotients."""
    return Work(FLOAT_BYTES * (hop + 1), hop * (30 + 7 * SPECIAL))


def spectral_synth(hop: int = HOP, fft_size: int = FFT_SIZE, bands: int = BANDS) -> Work:
    """Two filters a frame, their minimum phase by cepstra; two faded blocks of two signals; the way back."""
    bins = fft_size // 2 + 1
    envelope = bins * 3 + 2 * real_fft(fft_size) + bins * 3 * SPECIAL
    blocks = 2 * (2 * hop + 2 * real_fft(fft_size) + bins * 14)
    back = real_fft(fft_size) + fft_size
    return Work(FLOAT_BYTES * (3 * hop + 2 * bands), 2 * envelope + blocks + back)


WORK: dict[str, Callable[[], Work]] = {
    "pitch_yin": pitch_yin,
    "harmonic_source": harmonic_source,
    "spectral_synth": spectral_synth,
}
