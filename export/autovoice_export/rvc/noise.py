"""The noise of RVC voices: fixed tables read at absolute positions, so that every cutting gives the same.

The original draws both at random for every call: one normal value for each channel and frame of the latent,
and one for each sample of the source.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

PRIOR_SCALE = 0.66666
"""What the original multiplies the prior's noise with."""

PRIOR_FRAMES = 1021
SOURCE_FRAMES = 509
"""Rows of the tables. Both are prime: together they repeat after 86 minutes."""

_PRIOR_SEED = 20230401
_SOURCE_SEED = 20230402


def prior_noise_table(channels: int) -> Tensor:
    """Unit-variance noise of the latent, [1021, channels], the same on every machine."""
    return _table(_PRIOR_SEED, PRIOR_FRAMES, channels)


def source_noise_table(hop: int) -> Tensor:
    """Unit-variance noise of the source, [509, hop], the same on every machine."""
    return _table(_SOURCE_SEED, SOURCE_FRAMES, hop)


def rows_at(table: Tensor, first_frame: Tensor, frames: int) -> Tensor:
    """Reads a table at absolute frames.

    Args:
        table: [N, width].
        first_frame: FIRST_FRAME [B, 1] int64, may be negative.
        frames: how many.

    Returns:
        [B, frames, width].
    """
    steps = torch.arange(frames, dtype=torch.int64, device=first_frame.device)
    return table[torch.remainder(first_frame + steps, table.shape[0])]


def _table(seed: int, rows: int, width: int) -> Tensor:
    # The stream of NumPy's legacy generator is frozen.
    values = np.random.RandomState(seed).standard_normal((rows, width))
    return torch.from_numpy(values.astype(np.float32))
