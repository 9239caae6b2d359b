"""Causal building blocks that carry their past in one flat state tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StateReader:
    """Cuts a flat state [B, S] into the pieces its blocks ask for, in order.

    The writer side is a plain list that the stage concatenates: a block reads as many values as it
    writes, so both sides stay in step without any table of offsets.
    """

    def __init__(self, state: Tensor) -> None:
        self._state = state
        self._position = 0

    def take(self, size: int) -> Tensor:
        """Returns the next ``size`` values of every batch item, [B, size]."""
        piece = self._state[:, self._position : self._position + size]
        self._position += size
        return piece


class FrameConvolution(nn.Conv1d):
    """A convolution along frames, frames before channels, computed as one matrix product over all of them.

    ONNX Runtime runs a Conv node batch item by batch item. In a batch of live streams, which have two frames
    each, that reads all weights again for every stream; one product over the frames of all streams reads them
    once.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Filters [B, F + (kernel - 1) * dilation, in] to [B, F, out]."""
        (kernel,), (dilation,) = self.kernel_size, self.dilation
        last = (kernel - 1) * dilation
        if last:
            starts = range(0, kernel * dilation, dilation)
            x = torch.cat([x[:, start : (start - last) or None] for start in starts], dim=2)
        weight = self.weight.permute(0, 2, 1).reshape(self.out_channels, -1)
        return nn.functional.linear(x, weight, self.bias)


class GatedBlock(nn.Module):
    """Gated dilated causal convolution with a residual connection (van den Oord et al. 2016, WaveNet).

    Args:
        channels: width C.
        dilation: frames between the three taps; the block looks ``2 * dilation`` frames back.
        condition: size of a per-utterance condition added before the gate, or 0 for none.
    """

    KERNEL = 3

    def __init__(self, channels: int, dilation: int, condition: int = 0) -> None:
        super().__init__()
        self.context = (self.KERNEL - 1) * dilation
        self.channels = channels
        self.state_size = self.context * channels
        self.convolution = FrameConvolution(channels, 2 * channels, self.KERNEL, dilation=dilation)
        self.condition = nn.Linear(condition, 2 * channels) if condition else None
        self.output = FrameConvolution(channels, channels, 1)

    def forward(
        self, x: Tensor, state: StateReader, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Filters one chunk.

        Args:
            x: [B, F, C].
            state: positioned at this block's past, the last ``context`` frames of its input.
            condition: [B, condition], when the block was built with one.

        Returns:
            The output [B, F, C] and the new past [B, context * C].
        """
        past = state.take(self.state_size)
        padded = torch.cat([past.reshape(-1, self.context, self.channels), x], dim=1)
        hidden = self.convolution(padded)
        if self.condition is not None and condition is not None:
            hidden = hidden + self.condition(condition).unsqueeze(1)
        signal, gate = hidden.chunk(2, dim=2)
        x = x + self.output(torch.tanh(signal) * torch.sigmoid(gate))
        return x, padded[:, -self.context :].reshape(-1, self.state_size)


def mel_points(count: int, low_hz: float, high_hz: float) -> Tensor:
    """Frequencies in Hz that are evenly spaced on the HTK mel scale, [count], float64."""
    import librosa  # where it is used: importing it takes seconds

    return torch.from_numpy(librosa.mel_frequencies(count, fmin=low_hz, fmax=high_hz, htk=True))


def mel_filterbank(
    bands: int,
    low_hz: float,
    high_hz: float,
    fft_size: int,
    sample_rate: int,
    *,
    htk: bool = True,
    unit_area: bool = False,
) -> Tensor:
    """Triangular mel filters, [fft_size // 2 + 1, bands], float32.

    Args:
        bands: number of filters.
        low_hz: lower edge of the lowest.
        high_hz: upper edge of the highest.
        fft_size: samples of the window.
        sample_rate: of the audio, Hz.
        htk: HTK's mel scale, else Slaney's.
        unit_area: makes the area under each filter the same, else the peak is 1.
    """
    from librosa.filters import mel

    norm = "slaney" if unit_area else None
    bank = mel(sr=sample_rate, n_fft=fft_size, n_mels=bands, fmin=low_hz, fmax=high_hz, htk=htk, norm=norm)
    return torch.from_numpy(bank.T.copy())


def real_dft(size: int) -> Tensor:
    """Matrix of the real DFT: [size, 2 * (size // 2 + 1)], cosines then negative sines, float32."""
    n = torch.arange(size, dtype=torch.float64).unsqueeze(1)
    k = torch.arange(size // 2 + 1, dtype=torch.float64)
    angle = 2.0 * torch.pi * torch.remainder(n * k, size) / size
    return torch.cat([torch.cos(angle), -torch.sin(angle)], dim=1).to(torch.float32)
