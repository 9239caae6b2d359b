"""How natural a recording sounds, as far as signals tell: to be read beside the same of natural voices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovoice_training.evaluate.cepstrum import FRAME_SECONDS
from autovoice_training.evaluate.dataset import JUDGE_RATE, Audio

MODULATION_CEPSTRA = 12
MODULATION_BAND_HZ = (4.0, 25.0)
HIGH_BAND_HZ = 4000.0
_TINY = 1e-20


@dataclass(frozen=True)
class Naturalness:
    """Proxies of one recording.

    Attributes:
        f0_roughness: mean absolute second difference of the melody, cents at 16 ms; high where pitch jitters.
        cepstral_delta: mean step of the mel-cepstrum from one 5 ms frame to the next, dB; low where speech is
            smeared, high where it flutters.
        modulation: mean power of the mel-cepstra's movement at 4 to 25 Hz, dB; low where speech is smeared.
        high_band: power above 4 kHz, dB of the whole; high where it hisses.
        click: largest second difference of neighbouring samples over their root mean square.
        offset: mean, dB of full scale.
        peak: dB of full scale.
    """

    f0_roughness: float
    cepstral_delta: float
    modulation: float
    high_band: float
    click: float
    offset: float
    peak: float


def measure(audio: Audio, f0: NDArray[np.float64], cepstra: NDArray[np.float64]) -> Naturalness:
    """Measures a recording.

    Args:
        audio: samples [T] at JUDGE_RATE.
        f0: of `pitch.f0_track`, Hz every 16 ms, 0 where unvoiced, [F].
        cepstra: of `cepstrum.mel_cepstrum`, every 5 ms, [frames, 24].
    """
    samples = audio.astype(np.float64)
    power = np.abs(np.fft.rfft(samples)) ** 2
    high = np.fft.rfftfreq(len(samples), 1.0 / JUDGE_RATE) >= HIGH_BAND_HZ
    bends = np.diff(samples, 2)
    steps = np.diff(cepstra, axis=0)
    return Naturalness(
        f0_roughness=_roughness(f0),
        cepstral_delta=10.0 / np.log(10.0) * float(np.sqrt(2.0 * (steps**2).sum(axis=1)).mean()),
        modulation=_modulation(cepstra),
        high_band=_decibels(float(power[high].sum() / max(power.sum(), _TINY))),
        click=float(np.abs(bends).max() / max(np.sqrt(np.mean(bends**2)), _TINY)),
        offset=_decibels(float(samples.mean()) ** 2),
        peak=_decibels(float(np.abs(samples).max()) ** 2),
    )


def _roughness(f0: NDArray[np.float64]) -> float:
    """Over frames voiced on both sides; 0 where there are none."""
    triples = (f0[:-2] > 0) & (f0[1:-1] > 0) & (f0[2:] > 0)
    cents = 1200.0 * np.log2(np.maximum(f0, 1.0))
    bends = np.abs(cents[:-2] - 2.0 * cents[1:-1] + cents[2:])[triples]
    return float(bends.mean()) if len(bends) else 0.0


def _modulation(cepstra: NDArray[np.float64]) -> float:
    movement = cepstra[:, :MODULATION_CEPSTRA] - cepstra[:, :MODULATION_CEPSTRA].mean(axis=0)
    window = np.hanning(len(movement))[:, None]
    power = np.abs(np.fft.rfft(movement * window, axis=0)) ** 2 / max(float((window**2).sum()), _TINY)
    rate = np.fft.rfftfreq(len(movement), FRAME_SECONDS)
    low, top = MODULATION_BAND_HZ
    return _decibels(float(power[(rate >= low) & (rate <= top)].mean()))


def _decibels(power: float) -> float:
    return 10.0 * float(np.log10(max(power, _TINY)))
