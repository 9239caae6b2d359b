"""What an embedding says about a voice: who it resembles, and how it says each sound.

EMBEDDING holds, in this order: the identity of the speaker encoder [256], a one, the share of the reference
that each phone takes [41], and the sum over the reference of its envelopes of each phone, divided by its
length [41 x 24]. Shares and sums are statistics that add up: the mean of the embeddings of several recordings
is the embedding of them all, and the one, which a change of length scales along with the rest, undoes such a
change.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from autovoice_export.base.stages import sizes
from autovoice_export.base.stages.mel import ENVELOPE_SIZE
from autovoice_export.base.stages.speaker_encoder import EMBEDDING_SIZE

IDENTITY_SIZE = EMBEDDING_SIZE
PHONES = sizes.PHONES
VOICE_SIZE = IDENTITY_SIZE + 1 + PHONES + PHONES * ENVELOPE_SIZE


class Voice(NamedTuple):
    """The parts of an embedding.

    Attributes:
        identity: of unit length, [B, 256].
        shares: of the phones in the reference, [B, 41].
        sums: of the envelopes, [B, 41, 24].
    """

    identity: Tensor
    shares: Tensor
    sums: Tensor


def pack(identity: Tensor, shares: Tensor, sums: Tensor) -> Tensor:
    """The embedding [B, VOICE_SIZE] of the parts, see `Voice`, of unit length."""
    one = torch.ones_like(identity[:, :1])
    return _unit_length(torch.cat([identity, one, shares, sums.flatten(1)], dim=1))


def unpack(embedding: Tensor) -> Voice:
    """The parts of an embedding of any length but zero, [B, VOICE_SIZE]."""
    identity, one, shares, sums = torch.split(
        embedding, [IDENTITY_SIZE, 1, PHONES, PHONES * ENVELOPE_SIZE], dim=1
    )
    norm = torch.sqrt((identity**2).sum(dim=1, keepdim=True))
    # The mean of several identities is shorter than one, never longer: what does not obey is no embedding.
    scale = 1.0 / torch.clamp(torch.maximum(one, norm), min=1e-6)
    return Voice(
        identity / torch.clamp(norm, min=1e-12),
        torch.clamp(shares * scale, min=0.0),
        (sums * scale).reshape(-1, PHONES, ENVELOPE_SIZE),
    )


def with_identity(embedding: Tensor, identity: Tensor) -> Tensor:
    """The embedding [B, VOICE_SIZE] with another identity [B, 256] of unit length; of unit length again."""
    rest = embedding[:, IDENTITY_SIZE:]
    return _unit_length(torch.cat([identity * rest[:, :1], rest], dim=1))


def _unit_length(vectors: Tensor) -> Tensor:
    norm = torch.sqrt((vectors**2).sum(dim=1, keepdim=True))
    return vectors / torch.clamp(norm, min=1e-12)
