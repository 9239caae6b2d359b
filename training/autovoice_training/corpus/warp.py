"""Pseudo-speakers: WORLD analysis, formants and pitch moved, resynthesis (Morise et al. 2016, WORLD)."""

from __future__ import annotations

import numpy as np
import pyworld

from autovoice_training.corpus.audio import SAMPLE_RATE

_FRAME_MS = 5.0
_F0_FLOOR, _F0_CEIL = 55.0, 500.0

# (formant factor, pitch factor): at least 10 % apart in formants or well apart in pitch, from the
# human and from one another; smaller steps are still the same speaker to a speaker encoder.
MALE: tuple[tuple[float, float], ...] = (
    (1.12, 1.20),
    (1.20, 1.55),
    (1.16, 1.75),
    (0.87, 0.88),
    (0.85, 1.15),
    (1.00, 1.45),
    (1.13, 0.90),
    (0.92, 1.30),
)
FEMALE: tuple[tuple[float, float], ...] = (
    (0.85, 0.60),
    (0.88, 0.80),
    (1.12, 1.15),
    (1.18, 1.35),
    (0.91, 1.20),
    (1.14, 0.85),
    (1.00, 0.70),
    (0.85, 1.00),
)


class Analysis:
    """WORLD parameters of one utterance, reused for every warp of it."""

    def __init__(self, audio: np.ndarray) -> None:
        """Analyse int16 audio [T] at 24 kHz."""
        x = audio.astype(np.float64) / 32768.0
        self._samples = len(x)
        coarse, times = pyworld.dio(x, SAMPLE_RATE, _F0_FLOOR, _F0_CEIL, frame_period=_FRAME_MS)
        self.f0 = pyworld.stonemask(x, coarse, times, SAMPLE_RATE)
        self._envelope = pyworld.cheaptrick(x, self.f0, times, SAMPLE_RATE)
        self._aperiodicity = pyworld.d4c(x, self.f0, times, SAMPLE_RATE)

    def resynthesise(self, formant: float, pitch: float) -> np.ndarray:
        """Return float64 audio [T], timing unchanged, formants and pitch multiplied by the given factors."""
        bins = np.arange(self._envelope.shape[1], dtype=np.float64)
        # Content at f comes from f / formant; past the last bin the last value is held.
        position = np.minimum(bins / formant, bins[-1])
        low = np.minimum(position.astype(np.int64), len(bins) - 2)
        share = position - low

        def warp(spectrum: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(spectrum[:, low] * (1.0 - share) + spectrum[:, low + 1] * share)

        envelope = np.exp(warp(np.log(self._envelope)))
        audio = pyworld.synthesize(
            self.f0 * pitch, envelope, warp(self._aperiodicity), SAMPLE_RATE, _FRAME_MS
        )
        return np.pad(audio[: self._samples], (0, max(0, self._samples - len(audio))))
