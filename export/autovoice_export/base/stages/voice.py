"""What an embedding says about a voice: who it resembles, and frames of its speech.

EMBEDDING holds, in this order: the identity of the speaker encoder [256], a one, and 192 frames taken
evenly from the speech of the reference: of each its key, which says what sound it is [24], and its spectral
envelope [40]. The one, which a change of length scales along with the rest, undoes such a change.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from autovoice_export.base.stages import sizes

IDENTITY_SIZE = sizes.IDENTITY_SIZE
TOKENS = sizes.TOKENS
KEY_SIZE = sizes.KEY_SIZE
ENVELOPE_SIZE = sizes.ENVELOPE_SIZE
VOICE_SIZE = IDENTITY_SIZE + 1 + TOKENS * (KEY_SIZE + ENVELOPE_SIZE)


class Voice(NamedTuple):
    """The parts of an embedding.

    Attributes:
        identity: of unit length, [B, 256].
        keys: of the reference's frames, each of unit length, [B, 192, 24].
        envelopes: of the same frames, cosines of level-free log spectra, [B, 192, 40].
    """

    identity: Tensor
    keys: Tensor
    envelopes: Tensor


def pack(identity: Tensor, keys: Tensor, envelopes: Tensor) -> Tensor:
    """The embedding [B, VOICE_SIZE] of the parts, see `Voice`, of unit length."""
    one = torch.ones_like(identity[:, :1])
    frames = torch.cat([keys, envelopes], dim=2).flatten(1)
    vectors = torch.cat([identity, one, frames], dim=1)
    return vectors / torch.clamp(_length(vectors), min=1e-12)


def unpack(embedding: Tensor) -> Voice:
    """The parts of an embedding of any length but zero, [B, VOICE_SIZE]."""
    identity, one, frames = torch.split(
        embedding, [IDENTITY_SIZE, 1, TOKENS * (KEY_SIZE + ENVELOPE_SIZE)], dim=1
    )
    norm = _length(identity)
    # Identities have unit length before the embedding is scaled: what does not obey is no embedding.
    scale = 1.0 / torch.clamp(torch.maximum(one, norm), min=1e-6)
    frames = (frames * scale).reshape(-1, TOKENS, KEY_SIZE + ENVELOPE_SIZE)
    keys, envelopes = torch.split(frames, [KEY_SIZE, ENVELOPE_SIZE], dim=2)
    return Voice(identity / torch.clamp(norm, min=1e-12), torch.clamp(keys, -1.0, 1.0), envelopes)


def _length(vectors: Tensor) -> Tensor:
    return torch.sqrt((vectors**2).sum(dim=1, keepdim=True))
