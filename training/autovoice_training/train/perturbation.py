"""Perturbation of the source's mel frames, so that content does not depend on who speaks or on the room."""

from __future__ import annotations

import torch
from torch import Tensor

from autovoice_export.base.stages.blocks import mel_points


def perturb_mel(
    mel: Tensor, low_hz: float, high_hz: float, noise_db: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Warps and filters mel power and adds noise to it.

    Every item gets a vocal-tract-length warp of x0.84 to x1.19 (Jaitly & Hinton 2013), a smooth random
    equaliser of a few dB and noise somewhere below its mean.

    Args:
        mel: power [B, F, bands] between ``low_hz`` and ``high_hz``.
        low_hz: lower edge of the bands.
        high_hz: upper edge of the bands.
        noise_db: how far below, least and most.
        generator: source of the randomness.

    Returns:
        Mel power of the same shape.
    """
    batch, frames, bands = mel.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(mel.device)

    points = mel_points(bands + 2, low_hz, high_hz)[1:-1].to(mel)
    warp = torch.exp((uniform(batch, 1) * 2.0 - 1.0) * 0.175)
    wanted = (points * warp).clamp(points[0], points[-1])
    upper = torch.searchsorted(points, wanted.contiguous()).clamp(1, bands - 1)
    share = (wanted - points[upper - 1]) / (points[upper] - points[upper - 1])
    index = upper.unsqueeze(1).expand(batch, frames, bands)
    share = share.unsqueeze(1)
    warped = mel.gather(2, index - 1) * (1.0 - share) + mel.gather(2, index) * share

    position = torch.linspace(0.0, torch.pi, bands, device=mel.device)
    shapes = torch.stack([torch.cos(position * order) for order in range(1, 5)])
    curve = ((uniform(batch, 4) * 2.0 - 1.0) * torch.tensor([0.7, 0.5, 0.4, 0.3], device=mel.device)) @ shapes
    warped = warped * torch.exp(curve).unsqueeze(1)

    level = warped.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)
    least, most = noise_db
    ratio = 10.0 ** (-0.1 * (least + (most - least) * uniform(batch, 1, 1)))
    tilt = torch.exp((uniform(batch, 1, 1) * 2.0 - 1.0) * torch.linspace(1.5, -1.5, bands, device=mel.device))
    hiss = -torch.log(uniform(batch, frames, bands).clamp(min=1e-6))
    return warped + level * ratio * tilt * hiss
