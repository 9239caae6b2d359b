"""Mel analysis: what the stages see of audio."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from autovoice_export.base.stages import sizes
from autovoice_export.base.stages.blocks import mel_filterbank, real_dft
from autovoice_plugins.geometry import HOP, SAMPLE_RATE

WINDOW = 3 * HOP
MEL_BANDS = 80
LOW_HZ = 50.0
HIGH_HZ = 8000.0
"""Up to 8 kHz, so that wideband telephone and studio recordings look alike; rumble and DC stay out."""

ENVELOPE_SIZE = sizes.ENVELOPE_SIZE
"""Cosine coefficients of a log spectrum: formants are kept, the harmonics of any voice are not."""

_RELATIVE_FLOOR = 1e-7
_POWER_FLOOR = 1e-14
LOUDNESS_FLOOR = 1e-12


class MelAnalysis(nn.Module):
    """Mel power of windows of three blocks, and their smooth spectral envelope.

    Args:
        bands: number of mel bands.
        low_hz: lower edge of the lowest.
        high_hz: upper edge of the highest.
        envelope_size: cosine coefficients of an envelope.
    """

    window: Tensor
    dft: Tensor
    filterbank: Tensor
    width: Tensor
    cosines: Tensor

    def __init__(
        self,
        bands: int = MEL_BANDS,
        low_hz: float = LOW_HZ,
        high_hz: float = HIGH_HZ,
        envelope_size: int = ENVELOPE_SIZE,
    ) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("dft", real_dft(WINDOW), persistent=False)
        bank = mel_filterbank(bands, low_hz, high_hz, WINDOW, SAMPLE_RATE)
        self.register_buffer("filterbank", bank, persistent=False)
        self.register_buffer("width", bank.sum(dim=0).clamp(min=1e-3), persistent=False)
        self.register_buffer("cosines", cosine_basis(bands, envelope_size), persistent=False)

    def forward(self, padded: Tensor) -> Tensor:
        """Mel power [B, F, bands] of audio [B, 240 (F + 2)].

        It is normalised so that its sum is about the mean square of the windowed frame.
        """
        blocks = padded.reshape(padded.shape[0], -1, HOP)
        frames = torch.cat([blocks[:, :-2], blocks[:, 1:-1], blocks[:, 2:]], dim=2)
        real, imaginary = torch.matmul(frames * self.window, self.dft).chunk(2, dim=2)
        # Parseval: both halves of the spectrum, the window's energy 3/8, the window length squared.
        power = (real * real + imaginary * imaginary) * (2.0 / (0.375 * WINDOW * WINDOW))
        return torch.matmul(power, self.filterbank)

    def level_free(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Separates spectrum and level.

        Args:
            mel: mel power [B, F, bands].

        Returns:
            Log magnitude of a filter that gives white noise or pulses of unit power this spectrum at unit
            RMS, [B, F, bands], and the natural log of the RMS, [B, F].
        """
        total = mel.sum(dim=2, keepdim=True)
        loudness = 0.5 * torch.log(total + LOUDNESS_FLOOR)
        floor = _RELATIVE_FLOOR * total + _POWER_FLOOR
        log_magnitude = 0.5 * torch.log(mel / self.width + floor) + 0.5 * math.log(WINDOW / 2)
        return log_magnitude - loudness, loudness.squeeze(2)

    def envelope(self, log_magnitude: Tensor) -> Tensor:
        """Cosine coefficients [..., size] of log magnitudes [..., bands]."""
        return torch.matmul(log_magnitude, self.cosines)


def cosine_basis(bands: int, size: int) -> Tensor:
    """The first cosines of the orthonormal DCT-II, [bands, size], float32."""
    n = torch.arange(bands, dtype=torch.float64).unsqueeze(1)
    k = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi * k * (n + 0.5) / bands) * math.sqrt(2.0 / bands)
    basis[:, 0] = math.sqrt(1.0 / bands)
    return basis.to(torch.float32)
