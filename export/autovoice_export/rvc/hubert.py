"""HuBERT (Hsu et al. 2021), the network of ContentVec: 16 kHz audio to content features at 50 Hz.

Everything is laid out frames before channels; a strided convolution is then a reshape and a matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from autovoice_export.rvc.geometry import GRID
from autovoice_export.rvc.layers import NORM_EPSILON

CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)
CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)
RECEPTIVE_FIELD = 400
"""Samples that one frame sees."""


@dataclass(frozen=True)
class HubertConfig:
    """Shape of the network; the defaults are HuBERT base, which ContentVec is.

    Attributes:
        channels: width of the convolutions.
        size: width of the transformer.
        hidden: width of its feed-forward layers.
        heads: attention heads.
        layers: transformer layers.
        position_kernel: of the convolution that stands for positions.
        position_groups: its groups.
        projection: width behind ``final_proj``.
    """

    channels: int = 512
    size: int = 768
    hidden: int = 3072
    heads: int = 12
    layers: int = 12
    position_kernel: int = 128
    position_groups: int = 16
    projection: int = 256


class FirstConvolution(nn.Module):
    """Convolution of the waveform, normalised over time channel by channel.

    Args:
        channels: width C.
    """

    KERNEL, STRIDE = CONV_KERNELS[0], CONV_STRIDES[0]

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, channels, self.KERNEL, self.STRIDE, bias=False)
        self.layer_norm = nn.GroupNorm(channels, channels)

    def forward(self, audio: Tensor) -> Tensor:
        """Filters [B, T] to [B, (T - 10) / 5 + 1, C]."""
        steps = audio.reshape(audio.shape[0], -1, self.STRIDE)
        patches = torch.cat([steps[:, :-1], steps[:, 1:]], dim=2)
        # The mean over time of a convolution is the convolution of the mean.
        patches = patches - patches.mean(dim=1, keepdim=True)
        weight = self.conv.weight[:, 0].T
        variance = torch.matmul(patches, weight).square().mean(dim=1, keepdim=True)
        gain = self.layer_norm.weight / torch.sqrt(variance + NORM_EPSILON)
        return torch.matmul(patches, weight * gain) + self.layer_norm.bias


class StridedConvolution(nn.Module):
    """Convolution of stride 2 and kernel 2 or 3 along frames."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Filters [B, F, C] to [B, (F - kernel) // 2 + 1, C]."""
        batch, frames, channels = x.shape
        (kernel,) = self.conv.kernel_size
        weight = self.conv.weight.permute(0, 2, 1).reshape(channels, kernel * channels)
        count = (frames - kernel) // 2 + 1
        pairs = x[:, : 2 * count].reshape(batch, count, 2 * channels)
        if kernel == 3:
            pairs = torch.cat([pairs, x[:, 2::2][:, :count]], dim=2)
        return functional.linear(pairs, weight)


class FeatureExtractor(nn.Module):
    """Seven convolutions from 16 kHz to 50 Hz."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        rest = (StridedConvolution(channels, kernel) for kernel in CONV_KERNELS[1:])
        self.conv_layers = nn.ModuleList([FirstConvolution(channels), *rest])

    def forward(self, audio: Tensor) -> Tensor:
        """Filters [B, T] to [B, G, C]."""
        first, *rest = self.conv_layers
        x = functional.gelu(first(audio))
        for layer in rest:
            x = functional.gelu(layer(x))
        return x


class FeatureProjection(nn.Module):
    """Normalised features to the transformer's width."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(channels)
        self.projection = nn.Linear(channels, size)

    def forward(self, x: Tensor) -> Tensor:
        """Projects [B, G, C] to [B, G, size]."""
        result: Tensor = self.projection(self.layer_norm(x))
        return result


class PositionEmbedding(nn.Module):
    """What a wide grouped convolution says about the place of a frame."""

    def __init__(self, size: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(size, size, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Filters [B, G, size]."""
        conv = self.conv
        reach = conv.kernel_size[0] // 2
        # An even kernel makes one frame too many: the last is not wanted.
        padding = (reach, reach - 1)
        y = functional.pad(x.transpose(1, 2), padding).unsqueeze(2)
        y = functional.conv2d(y, conv.weight.unsqueeze(2), conv.bias, groups=conv.groups)
        return functional.gelu(y.squeeze(2)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Attention of all frames to all frames."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_size = heads, size // heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size) for _ in range(3))
        self.out_proj = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Attends within [B, G, size]."""
        layers = self.q_proj, self.k_proj, self.v_proj
        scale = 1.0 / math.sqrt(self.head_size)
        # One product for all three; the scale of the scores is in the query's part.
        weight = torch.cat([layers[0].weight * scale, layers[1].weight, layers[2].weight])
        bias = torch.cat([layers[0].bias * scale, layers[1].bias, layers[2].bias])
        batch, frames, size = x.shape
        joint = functional.linear(x, weight, bias).reshape(batch, frames, 3, self.heads, self.head_size)
        parts = joint.permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        weights = torch.softmax(torch.matmul(query, key.transpose(2, 3)), dim=3)
        mixed = torch.matmul(weights, value).transpose(1, 2).reshape(batch, frames, size)
        result: Tensor = self.out_proj(mixed)
        return result


class FeedForward(nn.Module):
    """Two projections with a GELU between them."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(size, hidden)
        self.output_dense = nn.Linear(hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        """Projects [B, G, size]."""
        result: Tensor = self.output_dense(functional.gelu(self.intermediate_dense(x)))
        return result


class EncoderLayer(nn.Module):
    """One layer, normalised after each sum."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.size, config.heads)
        self.layer_norm = nn.LayerNorm(config.size)
        self.feed_forward = FeedForward(config.size, config.hidden)
        self.final_layer_norm = nn.LayerNorm(config.size)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes [B, G, size]."""
        x = self.layer_norm(x + self.attention(x))
        result: Tensor = self.final_layer_norm(x + self.feed_forward(x))
        return result


class TransformerEncoder(nn.Module):
    """Positions and layers."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.pos_conv_embed = PositionEmbedding(config.size, config.position_kernel, config.position_groups)
        self.layer_norm = nn.LayerNorm(config.size)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))

    def forward(self, x: Tensor) -> Tensor:
        """Encodes [B, G, size]."""
        x = self.layer_norm(x + self.pos_conv_embed(x))
        for layer in self.layers:
            x = layer(x)
        return x


class Hubert(nn.Module):
    """Content encoder of the RVC family; parameters are named as in the package transformers.

    Args:
        config: shape; for version v1 of RVC with 9 layers, of which the last is projected.
        projects: whether ``final_proj`` follows.
    """

    def __init__(self, config: HubertConfig, *, projects: bool) -> None:
        super().__init__()
        self.config = config
        self.feature_extractor = FeatureExtractor(config.channels)
        self.feature_projection = FeatureProjection(config.channels, config.size)
        self.encoder = TransformerEncoder(config)
        self.final_proj = nn.Linear(config.size, config.projection) if projects else None

    @property
    def content_size(self) -> int:
        """Width of the features."""
        return self.config.projection if self.final_proj is not None else self.config.size

    def forward(self, audio: Tensor) -> Tensor:
        """Encodes recordings, as they are: no normalisation of the waveform.

        Args:
            audio: AUDIO [B, 320 G], 16 kHz.

        Returns:
            CONTENT [B, G, content_size]; frame g sees samples 320 g to 320 g + 400, as in training.
        """
        # What the last frame sees beyond its own 20 ms: one frame for every 320 samples, and no drift.
        x: Tensor = self.feature_extractor(functional.pad(audio, (0, RECEPTIVE_FIELD - GRID)))
        x = self.encoder(self.feature_projection(x))
        if self.final_proj is not None:
            x = self.final_proj(x)
        return x
