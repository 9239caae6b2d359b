"""Retrieval: content moved towards what the voice's own recordings sounded like."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autovoice_export.rvc.faiss_index import NEAREST, FeatureIndex

_OUT_OF_REACH = 1e30
"""Distance of vectors in lists that are not searched."""

_SMALLEST_SCORE = 1e-6
"""Squared distances below this count as this: a vector met exactly would weigh infinitely much."""


class Retrieval(nn.Module):
    """Blends every frame with its eight nearest vectors, weighted by the inverse of their squared score.

    The search looks through the lists that faiss would look through, but compares without approximation.

    Args:
        index: the vectors.
    """

    vectors: Tensor
    norms: Tensor
    lists: Tensor
    centroids: Tensor
    centroid_norms: Tensor

    def __init__(self, index: FeatureIndex) -> None:
        super().__init__()
        # As many as are asked for must exist, and far ones weigh nothing.
        missing = max(0, NEAREST - index.vectors.shape[0])
        self.probes, self.searches_all = index.probes, index.probes == index.centroids.shape[0]
        filler = index.vectors[:1].expand(missing, -1)
        self.register_buffer("vectors", torch.cat([index.vectors, filler]), persistent=False)
        self.register_buffer(
            "lists", torch.cat([index.lists, index.lists.new_zeros(missing)]), persistent=False
        )
        self.real = index.vectors.shape[0]
        norms = self.vectors.square().sum(dim=1)
        norms[self.real :] = _OUT_OF_REACH
        self.register_buffer("norms", norms, persistent=False)
        self.register_buffer("centroids", index.centroids, persistent=False)
        self.register_buffer("centroid_norms", index.centroids.square().sum(dim=1), persistent=False)

    def forward(self, content: Tensor, index_rate: Tensor) -> Tensor:
        """Blends a batch.

        Args:
            content: CONTENT [B, G, C].
            index_rate: INDEX_RATE [B, 1] in [0, 1], the share of what is retrieved.

        Returns:
            RETRIEVED [B, G, C].
        """
        # Vectors times frames, so that one copy of the vectors serves the product and the look-up below. The
        # frame's own square is the same for all vectors and is left out.
        frames = -2.0 * content.transpose(1, 2)
        distance = torch.matmul(self.vectors, frames) + self.norms.unsqueeze(1)
        if not self.searches_all:
            distance = distance + self._penalty(frames)[:, self.lists]
        best, place = torch.topk(distance, NEAREST, dim=1, largest=False)
        best = best.transpose(1, 2)
        neighbours = self.vectors[place.transpose(1, 2)]
        # The differences themselves: the form above cancels where a vector is met almost exactly.
        score = (neighbours - content.unsqueeze(2)).square().sum(dim=3).clamp(min=_SMALLEST_SCORE)
        reached = best < 0.5 * _OUT_OF_REACH
        score = torch.where(reached, score, _OUT_OF_REACH)
        # Relative to the nearest, so that nothing over- or underflows.
        weight = torch.where(reached, score.amin(dim=2, keepdim=True) / score, 0.0).square()
        total = weight.sum(dim=2, keepdim=True)
        weight = weight / torch.where(total > 0.0, total, 1.0)
        retrieved = torch.matmul(weight.unsqueeze(2), neighbours).squeeze(2)
        rate = torch.where(total > 0.0, index_rate.unsqueeze(2), 0.0)
        return rate * retrieved + (1.0 - rate) * content

    def _penalty(self, frames: Tensor) -> Tensor:
        """0 for the lists whose centroids are nearest, out of reach for the others, [B, L, G]."""
        distance = torch.matmul(self.centroids, frames) + self.centroid_norms.unsqueeze(1)
        farthest = torch.topk(distance, self.probes, dim=1, largest=False).values[:, -1:]
        return torch.where(distance <= farthest, 0.0, _OUT_OF_REACH)
