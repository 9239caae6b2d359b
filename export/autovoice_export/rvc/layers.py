"""Building blocks of the RVC networks.

Everything at frame rate is laid out frames before channels, [B, F, C], as matrix products and LayerNorm want
it. Parameters have the names and shapes of the published checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPSILON = 1e-5


class LayerNorm(nn.Module):
    """Layer normalisation whose parameters are called gamma and beta."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last axis."""
        return functional.layer_norm(x, self.gamma.shape, self.gamma, self.beta, NORM_EPSILON)


class SameConvolution(nn.Conv1d):
    """A convolution along the frames of [B, F, C], zero-padded so that F stays; its kernel is odd."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Filters [B, F, in] to [B, F, out]."""
        if self.kernel_size == (1,):
            return functional.linear(x, self.weight[..., 0], self.bias)
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class RelativeAttention(nn.Module):
    """Self-attention with learned keys and values for the offsets -window..window (Shaw et al. 2018).

    Args:
        channels: width C.
        heads: attention heads; they share the relative embeddings.
        window: largest offset that has an embedding; farther frames see each other without one.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.size = channels // heads
        self.conv_q = SameConvolution(channels, channels, 1)
        self.conv_k = SameConvolution(channels, channels, 1)
        self.conv_v = SameConvolution(channels, channels, 1)
        self.conv_o = SameConvolution(channels, channels, 1)
        self.emb_rel_k = nn.Parameter(torch.zeros(1, 2 * window + 1, self.size))
        self.emb_rel_v = nn.Parameter(torch.zeros(1, 2 * window + 1, self.size))

    def forward(self, x: Tensor) -> Tensor:
        """Attends within [B, F, C]."""
        query = self._split(self.conv_q(x)) / math.sqrt(self.size)
        key, value = self._split(self.conv_k(x)), self._split(self.conv_v(x))
        near = torch.matmul(query, self.emb_rel_k.transpose(1, 2).unsqueeze(0))
        scores = torch.matmul(query, key.transpose(2, 3)) + self._widen(near)
        weights = torch.softmax(scores, dim=3)
        mixed = torch.matmul(weights, value)
        mixed = mixed + torch.matmul(self._narrow(weights), self.emb_rel_v.unsqueeze(0))
        result: Tensor = self.conv_o(mixed.transpose(1, 2).reshape(x.shape))
        return result

    def _split(self, x: Tensor) -> Tensor:
        batch, frames, _ = x.shape
        return x.reshape(batch, frames, self.heads, self.size).transpose(1, 2)

    def _widen(self, near: Tensor) -> Tensor:
        """Puts the column of offset d of row i, [B, H, F, 2 window + 1], at column i + d of [B, H, F, F].

        Rows one longer than the padded width shift by one against each other when they are read again as
        rows of that width.
        """
        batch, heads, frames, offsets = near.shape
        width = frames + offsets - 1
        rows = functional.pad(near, (0, frames)).reshape(batch, heads, frames * (width + 1))
        rows = rows[:, :, : frames * width].reshape(batch, heads, frames, width)
        return rows[..., self.window : self.window + frames]

    def _narrow(self, weights: Tensor) -> Tensor:
        """The inverse of `_widen`: what every row holds at the offsets -window..window."""
        batch, heads, frames, _ = weights.shape
        width = frames + 2 * self.window
        rows = functional.pad(weights, (self.window, self.window)).reshape(batch, heads, frames * width)
        rows = functional.pad(rows, (0, frames)).reshape(batch, heads, frames, width + 1)
        return rows[..., : 2 * self.window + 1]


class WaveNet(nn.Module):
    """Gated convolutions with a speaker condition; skip connections are summed (van den Oord et al. 2016).

    Args:
        channels: width H.
        kernel: frames.
        layers: how many, all of dilation 1.
        condition: width of the speaker vector.
    """

    def __init__(self, channels: int, kernel: int, layers: int, condition: int) -> None:
        super().__init__()
        self.channels = channels
        self.cond_layer = SameConvolution(condition, 2 * channels * layers, 1)
        self.in_layers = nn.ModuleList(SameConvolution(channels, 2 * channels, kernel) for _ in range(layers))
        # The last layer has no residual output.
        self.res_skip_layers = nn.ModuleList(
            SameConvolution(channels, 2 * channels if layer < layers - 1 else channels, 1)
            for layer in range(layers)
        )

    def forward(self, x: Tensor, speaker: Tensor) -> Tensor:
        """Filters [B, F, H] for the speaker [B, 1, condition]."""
        conditions = self.cond_layer(speaker).chunk(len(self.in_layers), dim=2)
        skipped = None
        for convolution, output, condition in zip(
            self.in_layers, self.res_skip_layers, conditions, strict=True
        ):
            signal, gate = (convolution(x) + condition).chunk(2, dim=2)
            y = output(torch.tanh(signal) * torch.sigmoid(gate))
            if y.shape[2] > self.channels:
                x, y = x + y[..., : self.channels], y[..., self.channels :]
            skipped = y if skipped is None else skipped + y
        assert skipped is not None
        result: Tensor = skipped
        return result
