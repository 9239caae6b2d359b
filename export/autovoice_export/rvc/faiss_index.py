"""Feature indexes of RVC voices: faiss files read into plain arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autovoice_export.build_errors import ImportFailure

NEAREST = 8
"""Neighbours that are blended."""


@dataclass(frozen=True)
class FeatureIndex:
    """The vectors of a voice, sorted by the list they lie in.

    Attributes:
        centroids: of the lists, [L, C].
        vectors: [N, C].
        lists: list of every vector, [N] int64, ascending.
        probes: lists that a search looks through, those with the nearest centroids.
    """

    centroids: Tensor
    vectors: Tensor
    lists: Tensor
    probes: int


def load_index(path: Path, size: int) -> FeatureIndex:
    """Reads an index.

    Args:
        path: file of a faiss IVF-Flat or Flat index with squared Euclidean distances, as RVC trains.
        size: width of the voice's content features.

    Raises:
        ImportFailure: no such file, faiss is not installed, not such an index, or of another width.
    """
    if not path.is_file():
        raise ImportFailure(f"index {path} does not exist or is no file: name another, or leave --index out")
    try:
        import faiss
    except ImportError as error:
        raise ImportFailure(
            f"{path} is read with the package faiss-cpu, which is missing: pip install 'autovoice[rvc]'"
        ) from error
    try:
        index = faiss.read_index(os.fspath(path))
    except RuntimeError as error:
        raise ImportFailure(f"{path} is no faiss index, or is truncated: get it again") from error
    if index.d != size:
        raise ImportFailure(
            f"{path} holds features of {index.d} values, the voice has {size}: it belongs to a voice of "
            f"version {'v1' if index.d == 256 else 'v2'}"
        )
    if index.ntotal == 0 or index.metric_type != faiss.METRIC_L2:
        raise ImportFailure(f"{path} is empty or has no Euclidean distances: RVC trains IVF-Flat with L2")
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is None:
        vectors = _flat(faiss, index, path)
        return FeatureIndex(
            torch.from_numpy(vectors[:1].copy()),
            torch.from_numpy(vectors),
            torch.zeros(len(vectors)).long(),
            1,
        )
    return _inverted(faiss, inverted, path)


def _flat(faiss: Any, index: Any, path: Path) -> Any:
    if not isinstance(faiss.downcast_index(index), faiss.IndexFlat):
        raise ImportFailure(f"{path} is a {type(index).__name__}: IVF-Flat and Flat indexes can be imported")
    return np.ascontiguousarray(index.reconstruct_n(0, index.ntotal))


def _inverted(faiss: Any, index: Any, path: Path) -> FeatureIndex:
    if not isinstance(faiss.downcast_index(index), faiss.IndexIVFFlat):
        raise ImportFailure(f"{path} is a {type(index).__name__}: IVF-Flat and Flat indexes can be imported")
    centroids = np.ascontiguousarray(index.quantizer.reconstruct_n(0, index.nlist))
    pieces, lists = [], []
    for number in range(index.nlist):
        count = index.invlists.list_size(number)
        if count:
            codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), count * index.code_size)
            pieces.append(codes.view(np.float32).reshape(count, index.d).copy())
            lists.append(np.full(count, number, dtype=np.int64))
    vectors = np.concatenate(pieces)
    if not (np.isfinite(vectors).all() and np.isfinite(centroids).all()):
        raise ImportFailure(f"{path} holds values that are not finite: get it again")
    return FeatureIndex(
        torch.from_numpy(centroids),
        torch.from_numpy(vectors),
        torch.from_numpy(np.concatenate(lists)),
        min(index.nprobe, index.nlist),
    )
