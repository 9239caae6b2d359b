"""Prior of an RVC voice: content and coarse pitch to the latent's distribution, then the reverse flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from autovoice_export.rvc.layers import LayerNorm, RelativeAttention, SameConvolution, WaveNet

PITCHES = 256
WINDOW = 10
FLOW_KERNEL = 5
FLOW_LAYERS = 3
FLOWS = 4


class FeedForward(nn.Module):
    """Two convolutions with a ReLU between them."""

    def __init__(self, channels: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.conv_1 = SameConvolution(channels, hidden, kernel)
        self.conv_2 = SameConvolution(hidden, channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Filters [B, F, C]."""
        result: Tensor = self.conv_2(torch.relu(self.conv_1(x)))
        return result


class Transformer(nn.Module):
    """Layers of attention and feed-forward, normalised after each sum."""

    def __init__(self, channels: int, hidden: int, heads: int, layers: int, kernel: int) -> None:
        super().__init__()
        self.attn_layers = nn.ModuleList(RelativeAttention(channels, heads, WINDOW) for _ in range(layers))
        self.norm_layers_1 = nn.ModuleList(LayerNorm(channels) for _ in range(layers))
        self.ffn_layers = nn.ModuleList(FeedForward(channels, hidden, kernel) for _ in range(layers))
        self.norm_layers_2 = nn.ModuleList(LayerNorm(channels) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Encodes [B, F, C]."""
        for attention, norm_1, feed_forward, norm_2 in zip(
            self.attn_layers, self.norm_layers_1, self.ffn_layers, self.norm_layers_2, strict=True
        ):
            x = norm_1(x + attention(x))
            x = norm_2(x + feed_forward(x))
        return x


class PriorEncoder(nn.Module):
    """Content and pitch to mean and log deviation of the latent.

    Args:
        content: width of the content features.
        channels: width inside.
        hidden: width of the feed-forward layers.
        heads: attention heads.
        layers: transformer layers.
        kernel: of the feed-forward layers.
        latent: channels of the latent.
        has_f0: whether the voice knows the pitch.
    """

    def __init__(
        self,
        content: int,
        channels: int,
        hidden: int,
        heads: int,
        layers: int,
        kernel: int,
        latent: int,
        has_f0: bool,
    ) -> None:
        super().__init__()
        self.scale = math.sqrt(channels)
        self.emb_phone = nn.Linear(content, channels)
        if has_f0:
            self.emb_pitch = nn.Embedding(PITCHES, channels)
        self.encoder = Transformer(channels, hidden, heads, layers, kernel)
        self.proj = SameConvolution(channels, 2 * latent, 1)

    def forward(self, phone: Tensor, coarse: Tensor | None) -> tuple[Tensor, Tensor]:
        """Predicts the distribution of the latent.

        Args:
            phone: content behind `emb_phone`, [B, F, C].
            coarse: coarse pitch in 1..255, [B, F] int64; None for a voice without pitch.

        Returns:
            Mean and log deviation, [B, F, latent] each.
        """
        if coarse is not None:
            phone = phone + self.emb_pitch(coarse)
        x = functional.leaky_relu(phone * self.scale, 0.1)
        mean, deviation = self.proj(self.encoder(x)).chunk(2, dim=2)
        return mean, deviation


class Coupling(nn.Module):
    """One additive coupling layer, run backwards (Dinh et al. 2017, mean only)."""

    def __init__(self, latent: int, channels: int, condition: int) -> None:
        super().__init__()
        self.pre = SameConvolution(latent // 2, channels, 1)
        self.enc = WaveNet(channels, FLOW_KERNEL, FLOW_LAYERS, condition)
        self.post = SameConvolution(channels, latent // 2, 1)

    def forward(self, z: Tensor, speaker: Tensor) -> Tensor:
        """Undoes the coupling of [B, F, latent]: the first half says what to take from the second."""
        known, moved = z.chunk(2, dim=2)
        moved = moved - self.post(self.enc(self.pre(known), speaker))
        return torch.cat([known, moved], dim=2)


class Flow(nn.Module):
    """The normalising flow between the latents of the content and of the voice, run backwards.

    Coupling layers lie at the even places of ``flows``, channel flips, which have no parameters, at the odd.
    """

    def __init__(self, latent: int, channels: int, condition: int) -> None:
        super().__init__()
        self.flows = nn.ModuleDict(
            {str(2 * index): Coupling(latent, channels, condition) for index in range(FLOWS)}
        )

    def forward(self, z: Tensor, speaker: Tensor) -> Tensor:
        """Maps [B, F, latent] of the content to the voice of the speaker [B, 1, condition]."""
        for coupling in reversed(list(self.flows.values())):
            z = coupling(torch.flip(z, [2]), speaker)
        return z
