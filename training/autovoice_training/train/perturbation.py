"""Perturbation of the source's mel frames: another voice, another microphone, another room."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from autovoice_export.base.stages.blocks import mel_points
from autovoice_export.base.stages.mel import HIGH_HZ, LOW_HZ

NOISE_DB = (5.0, 55.0)
MOST_WARPED = 0.175
REVERBERANT = 0.3
BAND_LIMITED = 0.2
TAIL_FRAMES = 40


def perturb_mel(mel: Tensor, generator: torch.Generator) -> Tensor:
    """Warps and filters mel power, adds reverberation and noise to it and limits its band.

    Every item gets a vocal-tract-length warp of x0.84 to x1.19 (Jaitly & Hinton 2013), a smooth random
    equaliser of a few dB and noise 5 to 55 dB below its mean; some get the decaying tail of a room, some the
    band of a telephone or of a recording at a low rate.

    Args:
        mel: power [B, F, bands] between 50 Hz and 8 kHz.
        generator: source of the randomness.

    Returns:
        Mel power of the same shape.
    """
    batch, frames, bands = mel.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(mel.device)

    points = mel_points(bands + 2, LOW_HZ, HIGH_HZ)[1:-1].to(mel)
    warp = torch.exp((uniform(batch, 1) * 2.0 - 1.0) * MOST_WARPED)
    wanted = (points * warp).clamp(points[0], points[-1])
    upper = torch.searchsorted(points, wanted.contiguous()).clamp(1, bands - 1)
    share = ((wanted - points[upper - 1]) / (points[upper] - points[upper - 1])).unsqueeze(1)
    index = upper.unsqueeze(1).expand(batch, frames, bands)
    warped = mel.gather(2, index - 1) * (1.0 - share) + mel.gather(2, index) * share

    position = torch.linspace(0.0, torch.pi, bands, device=mel.device)
    shapes = torch.stack([torch.cos(position * order) for order in range(1, 5)])
    curve = ((uniform(batch, 4) * 2.0 - 1.0) * torch.tensor([0.7, 0.5, 0.4, 0.3], device=mel.device)) @ shapes
    warped = warped * torch.exp(curve).unsqueeze(1)

    # Power decays by 60 dB in 0.2 to 0.8 s, from 6 to 20 dB below the direct sound.
    decay = torch.exp(-13.8 / (20.0 + 60.0 * uniform(batch, 1)))
    level = 10.0 ** (-0.1 * (6.0 + 14.0 * uniform(batch, 1))) * (1.0 - decay)
    tail = level * decay ** torch.arange(TAIL_FRAMES - 1, -1, -1, device=mel.device)
    tail = tail * (uniform(batch, 1) < REVERBERANT)
    kernel = torch.cat([tail, torch.ones_like(tail[:, :1])], dim=1)
    padded = functional.pad(warped.permute(2, 0, 1), (TAIL_FRAMES, 0))
    warped = functional.conv1d(padded, kernel.unsqueeze(1), groups=batch).permute(1, 2, 0)

    mean = warped.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)
    least, most = NOISE_DB
    ratio = 10.0 ** (-0.1 * (least + (most - least) * uniform(batch, 1, 1)))
    tilt = torch.exp((uniform(batch, 1, 1) * 2.0 - 1.0) * torch.linspace(1.5, -1.5, bands, device=mel.device))
    hiss = -torch.log(uniform(batch, frames, bands).clamp(min=1e-6))
    noisy = warped + mean * ratio * tilt * hiss

    top = 3400.0 * (HIGH_HZ / 3400.0) ** uniform(batch, 1)
    bottom = torch.where(top < 4000.0, 300.0, 0.0)
    outside = ((points > top) | (points < bottom)) & (uniform(batch, 1) < BAND_LIMITED)
    return noisy * torch.where(outside, 1e-5, 1.0).unsqueeze(1)
