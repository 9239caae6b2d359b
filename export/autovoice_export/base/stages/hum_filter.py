"""Takes mains hum out of audio before its pitch is measured."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAINS_HZ = (50.0, 60.0)

_BLOCKS = 10
"""Blocks of 10 ms in a group: 100 ms are whole periods of both, so each is measured without the other."""

_GROUPS = 5
"""Groups that are compared: half a second of the past."""

_DOUBT = 4.0
"""How often the error of the mean of the groups must fit into it before half a second counts as hum."""

_TINY = 1e-20


class HumFilter(nn.Module):
    """Subtracts the steady part of 50 and 60 Hz.

    In each of the last five tenths of a second, the amplitude and phase of both frequencies are measured. As
    far as the five agree, their mean is hum, which is subtracted; a voice at the same pitch hardly ever does
    so that long. Causal, without delay, and nothing at all is subtracted in the first 200 ms.

    Args:
        sample_rate: samples per second; 10 ms must be a whole number of them.
    """

    measuring: Tensor
    making: Tensor
    turning: Tensor

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.hop = sample_rate // 100
        time = torch.arange(self.hop, dtype=torch.float64) / sample_rate
        angles = [2.0 * math.pi * hz * time for hz in MAINS_HZ]
        waves = torch.stack([wave(angle) for angle in angles for wave in (torch.cos, torch.sin)])
        self.register_buffer("measuring", (waves.T * (2.0 / self.hop)).float(), persistent=False)
        self.register_buffer("making", waves.float(), persistent=False)
        self.register_buffer("turning", _turning(), persistent=False)
        self._past = _BLOCKS * _GROUPS - 1
        self._width = 2 * len(MAINS_HZ) + 1
        self.state_size = self._past * self._width

    def forward(self, audio: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Filters one chunk.

        Args:
            audio: [B, hop F].
            state: [B, state_size], zeros at the start.

        Returns:
            Audio without hum, [B, hop F], and the next state.
        """
        blocks = audio.reshape(audio.shape[0], -1, self.hop)
        measured = torch.matmul(blocks, self.measuring)
        # The last column counts the blocks that were heard.
        measured = torch.cat([measured, torch.ones_like(measured[:, :, :1])], dim=2)
        past = torch.cat([state.reshape(-1, self._past, self._width), measured], dim=1)

        groups = torch.cat(_parts(past, _BLOCKS, 1), dim=2)
        grouped = torch.matmul(groups, self.turning)
        whole = (
            groups[:, :, self._width - 1 :: self._width].sum(dim=2, keepdim=True) > _BLOCKS - 0.5
        ).float()
        amplitudes = torch.stack(_parts(grouped, _GROUPS, _BLOCKS), dim=2)  # [B, F, groups, 4]
        heard = torch.stack(_parts(whole, _GROUPS, _BLOCKS), dim=2)  # [B, F, groups, 1]
        count = heard.sum(dim=2)
        mean = (amplitudes * heard).sum(dim=2) / torch.clamp(count, min=1.0)
        spread = (heard * (amplitudes - mean.unsqueeze(2)) ** 2).sum(dim=2)
        error = _pairs(spread) / torch.clamp(count * (count - 1.0), min=1.0)
        certain = torch.clamp(1.0 - _DOUBT * error / (_pairs(mean * mean) + _TINY), 0.0, 1.0)
        certain = certain * (count > 1.5).float()
        hum = torch.matmul(mean * certain, self.making)
        filtered = (blocks - hum).reshape(audio.shape[0], -1)
        return filtered, past[:, -self._past :].reshape(-1, self.state_size)


def _turning() -> Tensor:
    """Turns ten blocks' amplitudes to the phase of the newest and averages them, [10 * 5, 4].

    Amplitudes are cosine and sine parts relative to the start of their block; the oldest block comes first.
    """
    matrix = torch.zeros(_BLOCKS, 2 * len(MAINS_HZ) + 1, 2 * len(MAINS_HZ), dtype=torch.float64)
    for block in range(_BLOCKS):
        for index, hz in enumerate(MAINS_HZ):
            # cos(w (t + a)) and sin(w (t + a)) in terms of cos(w t) and sin(w t).
            angle = 2.0 * math.pi * hz * 0.01 * (_BLOCKS - 1 - block)
            cos, sin, place = math.cos(angle), math.sin(angle), 2 * index
            matrix[block, place : place + 2, place : place + 2] = torch.tensor([[cos, -sin], [sin, cos]])
    return (matrix.reshape(-1, 2 * len(MAINS_HZ)) / _BLOCKS).float()


def _parts(values: Tensor, count: int, step: int) -> list[Tensor]:
    """For every frame the values at it and `step`, 2 `step` ... before, as `count` tensors; oldest first."""
    last = (count - 1) * step
    return [values[:, start : (start - last) or None] for start in range(0, last + 1, step)]


def _pairs(values: Tensor) -> Tensor:
    """Sums of cosine and sine parts, for both."""
    sums = values[:, :, 0::2] + values[:, :, 1::2]
    return torch.repeat_interleave(sums, 2, dim=2)
