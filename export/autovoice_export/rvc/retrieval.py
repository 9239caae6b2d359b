"""Retrieval: content moved towards what the voice's own recordings sounded like."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autovoice_export.rvc.faiss_index import NEAREST, FeatureIndex

_OUT_OF_REACH = 1e30
"""Distance of vectors in lists that are not searched."""

_SMALLEST_SCORE = 1e-6
"""Squared distances below this count as this: a vector met exactly would weigh infinitely much."""

_SPARE = 8
"""Candidates beyond those wanted, from which the differences themselves choose."""


class Retrieval(nn.Module):
    """Blends every frame with its eight nearest vectors, weighted by the inverse of their squared score.

    The search looks through the lists that faiss would look through, but compares without approximation.
    Squared distances by ``||v||^2 - 2 v x`` lose the digits that the norms have more than the distances: the
    vectors are centred, and of a few candidates more than needed the nearest are found by their differences.

    Args:
        index: the vectors.
    """

    centre: Tensor
    vectors: Tensor
    norms: Tensor
    lists: Tensor
    centroids: Tensor
    centroid_norms: Tensor

    def __init__(self, index: FeatureIndex) -> None:
        super().__init__()
        # As many as are asked for must exist, and far ones weigh nothing.
        real = index.vectors.shape[0]
        missing = max(0, NEAREST + _SPARE - real)
        self.probes, self.searches_all = index.probes, index.probes == index.centroids.shape[0]
        centre = index.vectors.double().mean(dim=0).float()
        vectors = torch.cat([index.vectors, index.vectors[:1].expand(missing, -1)]) - centre
        norms = vectors.square().sum(dim=1)
        norms[real:] = _OUT_OF_REACH
        centroids = index.centroids - centre
        self.register_buffer("centre", centre, persistent=False)
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("norms", norms, persistent=False)
        self.register_buffer(
            "lists", torch.cat([index.lists, index.lists.new_zeros(missing)]), persistent=False
        )
        self.register_buffer("centroids", centroids, persistent=False)
        self.register_buffer("centroid_norms", centroids.square().sum(dim=1), persistent=False)

    def forward(self, content: Tensor, index_rate: Tensor) -> Tensor:
        """Blends a batch.

        Args:
            content: CONTENT [B, G, C].
            index_rate: INDEX_RATE [B, 1] in [0, 1], the share of what is retrieved.

        Returns:
            RETRIEVED [B, G, C].
        """
        centred = content - self.centre
        distance = _distances(self.vectors, self.norms, centred)
        if not self.searches_all:
            distance = distance + self._penalty(centred)[:, self.lists]
        near = _Candidates(self.vectors, distance, centred, NEAREST)
        score = torch.where(near.reached, near.score.clamp(min=_SMALLEST_SCORE), _OUT_OF_REACH)
        nearest, place = torch.topk(score, NEAREST, dim=2, largest=False)
        # Relative to the nearest, so that nothing over- or underflows.
        weight = torch.where(nearest < 0.5 * _OUT_OF_REACH, nearest[..., :1] / nearest, 0.0).square()
        total = weight.sum(dim=2, keepdim=True)
        weight = weight / torch.where(total > 0.0, total, 1.0)
        weight = torch.zeros_like(score).scatter(2, place, weight)
        retrieved = torch.matmul(weight.unsqueeze(2), near.points).squeeze(2) + self.centre
        rate = torch.where(total > 0.0, index_rate.unsqueeze(2), 0.0)
        return rate * retrieved + (1.0 - rate) * content

    def _penalty(self, centred: Tensor) -> Tensor:
        """0 for the lists whose centroids are nearest, out of reach for the others, [B, L, G]."""
        distance = _distances(self.centroids, self.centroid_norms, centred)
        near = _Candidates(self.centroids, distance, centred, self.probes)
        nearest = torch.topk(near.score, self.probes, dim=2, largest=False).indices
        chosen = torch.gather(near.places, 2, nearest).transpose(1, 2)
        return torch.full_like(distance, _OUT_OF_REACH).scatter(1, chosen, 0.0)


class _Candidates:
    """The points nearest by approximate distances, with their true ones.

    Args:
        points: [N, C].
        distance: approximate, squared, less what is the same for all points, [B, N, G].
        content: [B, G, C].
        count: how many are wanted; some more are candidates.

    Attributes:
        places: rows of `points`, [B, G, K].
        points: [B, G, K, C].
        score: squared distances, [B, G, K].
        reached: whether a point is in reach, [B, G, K].
    """

    def __init__(self, points: Tensor, distance: Tensor, content: Tensor, count: int) -> None:
        best, places = torch.topk(distance, min(count + _SPARE, points.shape[0]), dim=1, largest=False)
        self.places = places.transpose(1, 2)
        self.points = points[self.places]
        self.score = (self.points - content.unsqueeze(2)).square().sum(dim=3)
        self.reached = best.transpose(1, 2) < 0.5 * _OUT_OF_REACH


def _distances(points: Tensor, squares: Tensor, content: Tensor) -> Tensor:
    """Squared distances of points [N, C] from content [B, G, C], less its own squares, [B, N, G].

    Points times frames, so that one copy of the points serves the product and the look-up.
    """
    return torch.matmul(points, -2.0 * content.transpose(1, 2)) + squares.unsqueeze(1)
