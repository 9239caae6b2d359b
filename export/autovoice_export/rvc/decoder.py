"""Decoder of an RVC voice: latent and source to audio (HiFi-GAN, Kong et al. 2020, with a source as in NSF).

Audio-rate tensors are laid out [B, C, 1, T]: ONNX Runtime has its fastest convolutions for two axes only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.1
LAST_SLOPE = 0.01


class Convolution(nn.Conv1d):
    """A Conv1d on [B, C, 1, T]; its parameters keep the shape of one axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Filters."""
        return functional.conv2d(
            x,
            self.weight.unsqueeze(2),
            self.bias,
            stride=(1, self.stride[0]),
            padding=(0, int(self.padding[0])),
            dilation=(1, self.dilation[0]),
        )


class Upsampling(nn.ConvTranspose1d):
    """A ConvTranspose1d on [B, C, 1, T]."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Stretches the time axis by the stride."""
        return functional.conv_transpose2d(
            x,
            self.weight.unsqueeze(2),
            self.bias,
            stride=(1, self.stride[0]),
            padding=(0, int(self.padding[0])),
        )


class ResidualBlock(nn.Module):
    """Pairs of convolutions, the first of each dilated, around residual connections."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            Convolution(channels, channels, kernel, padding=(kernel - 1) * dilation // 2, dilation=dilation)
            for dilation in dilations
        )
        self.convs2 = nn.ModuleList(
            Convolution(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """Filters [B, C, 1, T]."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            y = dilated(functional.leaky_relu(x, SLOPE))
            x = x + plain(functional.leaky_relu(y, SLOPE))
        return x


class SourceGain(nn.Module):
    """The one weight and bias between the sine generator and the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.l_linear = nn.Linear(1, 1)

    def forward(self, excitation: Tensor) -> Tensor:
        """Shapes the excitation [B, T]."""
        return torch.tanh(excitation * self.l_linear.weight[0, 0] + self.l_linear.bias)


class Decoder(nn.Module):
    """Latent, speaker and (for a voice with pitch) source to audio.

    Args:
        latent: channels of the latent.
        channels: after the first convolution; halved by every upsampling.
        rates: upsampling factors; their product is the hop.
        kernels: one for each of them.
        block_kernels: of the residual blocks, which are averaged.
        block_dilations: for each of them.
        condition: width of the speaker vector.
        has_f0: whether there is a source.
    """

    def __init__(
        self,
        latent: int,
        channels: int,
        rates: Sequence[int],
        kernels: Sequence[int],
        block_kernels: Sequence[int],
        block_dilations: Sequence[Sequence[int]],
        condition: int,
        has_f0: bool,
    ) -> None:
        super().__init__()
        self.branches = len(block_kernels)
        self.conv_pre = Convolution(latent, channels, 7, padding=3)
        self.cond = Convolution(condition, channels, 1)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        self.noise_convs = nn.ModuleList()
        if has_f0:
            self.m_source = SourceGain()
        for stage, (rate, kernel) in enumerate(zip(rates, kernels, strict=True)):
            width, remaining = channels >> (stage + 1), math.prod(rates[stage + 1 :])
            self.ups.append(Upsampling(2 * width, width, kernel, rate, padding=(kernel - rate) // 2))
            if has_f0 and remaining > 1:
                self.noise_convs.append(
                    Convolution(1, width, 2 * remaining, remaining, padding=remaining // 2)
                )
            elif has_f0:
                self.noise_convs.append(Convolution(1, width, 1))
            self.resblocks.extend(
                ResidualBlock(width, size, dilations)
                for size, dilations in zip(block_kernels, block_dilations, strict=True)
            )
        self.conv_post = Convolution(channels >> len(rates), 1, 7, padding=3, bias=False)

    def forward(self, latent: Tensor, speaker: Tensor, source: Tensor | None) -> Tensor:
        """Renders audio.

        Args:
            latent: [B, F, latent].
            speaker: [B, 1, condition].
            source: behind `SourceGain`, [B, F hop]; None for a voice without pitch.

        Returns:
            Audio in [-1, 1], [B, F hop].
        """
        x = self.conv_pre(latent.transpose(1, 2).unsqueeze(2))
        x = x + self.cond(speaker.transpose(1, 2).unsqueeze(2))
        if source is not None:
            source = source.unsqueeze(1).unsqueeze(1)
        for stage, upsampling in enumerate(self.ups):
            x = upsampling(functional.leaky_relu(x, SLOPE))
            if source is not None:
                noise_conv = self.noise_convs[stage]
                x = x + noise_conv(source)
            first = stage * self.branches
            branches = [block(x) for block in self.resblocks[first : first + self.branches]]
            # The mean's divisor is in the next layer's weights: a leaky ReLU passes a factor through.
            x = sum(branches[1:], branches[0])
        x = self.conv_post(functional.leaky_relu(x, LAST_SLOPE))
        return torch.tanh(x).reshape(x.shape[0], -1)

    def fold_means(self) -> None:
        """Moves the divisor of the residual blocks' mean into the weights that follow; call it once."""
        with torch.no_grad():
            weights: list[Any] = [upsampling.weight for upsampling in self.ups]
            for weight in (*weights[1:], self.conv_post.weight):
                weight.div_(self.branches)
