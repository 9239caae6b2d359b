"""What the judges of naturalness hardly hear: clicks, an offset, clipping, missing highs, tones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter, uniform_filter1d
from scipy.signal import stft

from autovoice_training.evaluate.audio import RATE, Audio

HIGH_BAND_HZ = 8000.0
# Below, a steady voice has lines of its own, its harmonics; above, resampling filters begin.
LINE_BAND_HZ = (1500.0, 11000.0)
LINE_WIDTH_HZ = 50.0
LINE_NEIGHBOURS_HZ = 500.0
_FFT = 4096
_RANGE_DB = 50.0
_TINY = 1e-20


@dataclass(frozen=True)
class Artifacts:
    """Signs of one recording that something is wrong with it.

    Attributes:
        click: largest second difference of neighbouring samples over their root mean square.
        offset: mean, dB of full scale.
        peak: dB of full scale.
        high_band: power above 8 kHz, dB of the whole.
        line: by how much the strongest line at one fixed frequency stands out, dB; natural voices have some
            3, see `strongest_line`.
        line_hz: that frequency.
    """

    click: float
    offset: float
    peak: float
    high_band: float
    line: float
    line_hz: float


def find_artifacts(audio: Audio) -> Artifacts:
    """Measures a recording, samples [T] at RATE."""
    samples = audio.astype(np.float64)
    bends = np.diff(samples, 2)
    power = np.abs(np.fft.rfft(samples)) ** 2
    high = np.fft.rfftfreq(len(samples), 1.0 / RATE) >= HIGH_BAND_HZ
    line, line_hz = strongest_line(audio)
    return Artifacts(
        click=float(np.abs(bends).max() / max(np.sqrt(np.mean(bends**2)), _TINY)),
        offset=_decibels(float(samples.mean()) ** 2),
        peak=_decibels(float(np.abs(samples).max()) ** 2),
        high_band=_decibels(float(power[high].sum() / max(power.sum(), _TINY))),
        line=line,
        line_hz=line_hz,
    )


def strongest_line(audio: Audio) -> tuple[float, float]:
    """The bright or dark line at one fixed frequency that stands out most over a whole recording.

    Formants and harmonics move; what is left in the mean over time of log spectra, held against the median of
    its neighbourhood, is no speech. A tone is a bright line, ripple of the filters a dark one.

    Args:
        audio: samples [T] at RATE.

    Returns:
        By how much it stands out, dB, above 0 also for a dark one, and its frequency in Hz.
    """
    frequencies, _, spectrum = stft(audio, RATE, nperseg=_FFT, noverlap=_FFT * 3 // 4)
    power: NDArray[np.float64] = np.abs(spectrum) ** 2
    frames = power.sum(axis=0)
    power = power[:, frames >= frames.max() * 10.0 ** (-_RANGE_DB / 10.0)]
    # The floor lies below any 16 bits: it keeps the empty top of a resampled recording from looking lively.
    level = 10.0 * np.log10(power + 1e-10 * max(float(power.max(initial=0.0)), _TINY))
    profile = uniform_filter1d(level.mean(axis=1), round(LINE_WIDTH_HZ * _FFT / RATE))
    neighbours = 1 + 2 * round(LINE_NEIGHBOURS_HZ * _FFT / RATE)
    low, high = LINE_BAND_HZ
    inside = (frequencies >= low) & (frequencies < high)
    excess = np.abs(profile - median_filter(profile, size=neighbours, mode="nearest")) * inside
    strongest = int(excess.argmax())
    return float(excess[strongest]), float(frequencies[strongest])


def _decibels(power: float) -> float:
    return 10.0 * float(np.log10(max(power, _TINY)))
