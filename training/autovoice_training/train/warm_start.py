"""Weights of another voice, which may be of another version, as the start of a new run."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn


@torch.no_grad()
def take_matching(module: nn.Module, path: Path, prefix: str = "") -> int:
    """Takes what it can of the weights of a checkpoint into a module.

    Of tensors whose shape differs the common corner is taken, and the rest of them is zero.

    Args:
        module: its tensors are overwritten.
        path: checkpoint, safetensors.
        prefix: of the names in the checkpoint.

    Returns:
        The number of tensors taken.
    """
    taken = 0
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        for name, value in module.state_dict().items():
            if prefix + name not in names:
                continue
            stored = file.get_tensor(prefix + name)
            if stored.ndim == value.ndim:
                corner = tuple(slice(min(a, b)) for a, b in zip(value.shape, stored.shape, strict=True))
                value.zero_()
                value[corner] = stored[corner].to(value)
                taken += 1
    return taken
