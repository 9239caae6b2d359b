"""Discriminators of spectrograms: what tells a recording from a result."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from autovoice_export.base.stages.sizes import IDENTITY_SIZE
from autovoice_plugins.geometry import SAMPLE_RATE
from autovoice_training.train.losses import SAME_VOICE

RESOLUTIONS = ((512, 240), (1024, 240))
"""Window and hop in samples: one sees the envelope, one the harmonics."""

CHANNELS = 20
MAGNITUDE_FLOOR = 1e-3
SLOPE = 0.1
# Weight of recordings of other voices.
MISMATCH_WEIGHT = 0.5


class SpectrogramDiscriminator(nn.Module):
    """Convolutions over a log-magnitude spectrogram (multi-resolution discriminator; Jang et al. 2021,
    UnivNet) that know whose voice it should be (projection; Miyato & Koyama 2018).

    Args:
        window: samples.
        hop: samples.
    """

    shape: Tensor
    hz: Tensor

    def __init__(self, window: int, hop: int) -> None:
        super().__init__()
        self.window, self.hop = window, hop
        self.register_buffer("shape", torch.hann_window(window), persistent=False)
        self.register_buffer("hz", torch.linspace(0.0, SAMPLE_RATE / 2, window // 2 + 1), persistent=False)
        widths = (1, CHANNELS, CHANNELS, CHANNELS, CHANNELS)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, (3, 5), stride=(1, 2), padding=(1, 2))
            for before, after in pairwise(widths)
        )
        self.last = nn.Conv2d(CHANNELS, 1, 3, padding=1)
        self.voice = nn.Linear(IDENTITY_SIZE, CHANNELS)

    def forward(self, audio: Tensor, native_rate: Tensor) -> list[Tensor]:
        """Features of every layer of audio [B, T], heard up to its native Nyquist."""
        spectrum = torch.stft(
            audio, self.window, self.hop, window=self.shape, center=False, return_complex=True
        )
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9) * (2.0 / self.window)
        heard = self.hz < 0.475 * native_rate.unsqueeze(1)
        # The level is no criterion: all items count from their own mean.
        magnitude = magnitude / magnitude.mean(dim=(1, 2), keepdim=True).clamp(min=1e-6) * heard.unsqueeze(2)
        x = torch.log(magnitude + MAGNITUDE_FLOOR).transpose(1, 2).unsqueeze(1) * 0.3
        features = []
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return features

    def scores(self, feature: Tensor, identity: Tensor) -> Tensor:
        """How much audio with this last feature is like a recording of the voice of an identity [B, 256]."""
        likeness = (feature.mean(dim=(2, 3)) * self.voice(identity * IDENTITY_SIZE**0.5)).sum(dim=1)
        scores: Tensor = self.last(feature) + likeness.reshape(-1, 1, 1, 1)
        return scores


class Discriminators(nn.ModuleList):
    """One discriminator for each resolution; least-squares losses (Mao et al. 2017)."""

    def __init__(self) -> None:
        super().__init__(SpectrogramDiscriminator(window, hop) for window, hop in RESOLUTIONS)
        self.to(memory_format=torch.channels_last)

    def discriminator_loss(
        self, real: Tensor, result: Tensor, native_rate: Tensor, identity: Tensor, paired: Tensor
    ) -> Tensor:
        """What the discriminators minimise; recordings are those of the paired items [B], results all.

        A recording of another voice than was asked for is no better than a result.
        """
        total = real.new_zeros(())
        for one in self:
            total = total + one.scores(one(result, native_rate)[-1], identity).square().mean()
            if not paired.any():
                continue
            feature, voices = one(real[paired], native_rate[paired])[-1], identity[paired]
            others = voices.roll(1, dims=0)
            total = total + (one.scores(feature, voices) - 1.0).square().mean()
            other = one.scores(feature, others).square().mean(dim=(1, 2, 3))
            same = (voices * others).sum(dim=1) > SAME_VOICE
            total = total + MISMATCH_WEIGHT * other.masked_fill(same, 0.0).mean()
        return total / len(self)

    def generator_loss(
        self, real: Tensor, result: Tensor, native_rate: Tensor, identity: Tensor, paired: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the generator minimises: adversarial loss and, of paired items, feature matching (L1)."""
        adversarial, matching = real.new_zeros(()), real.new_zeros(())
        for one in self:
            found = one(result, native_rate)
            adversarial = adversarial + (one.scores(found[-1], identity) - 1.0).square().mean()
            if not paired.any():
                continue
            with torch.no_grad():
                wanted = one(real[paired], native_rate[paired])
            for first, second in zip(found, wanted, strict=True):
                scale = second.abs().mean().clamp(min=1e-4)
                matching = matching + (first[paired] - second).abs().mean() / scale / len(found)
        return adversarial / len(self), matching / len(self)
