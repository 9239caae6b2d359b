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
from autovoice_export.rvc.file_kinds import FAISS_INDEX, other_kind

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
    if path.is_dir():
        raise ImportFailure(f"index {path} is a folder: name the added_*.index inside")
    if not path.is_file():
        raise ImportFailure(f"index {path} does not exist or is no file: name another, or leave --index out")
    kind = other_kind(path)
    if kind and kind != FAISS_INDEX:
        raise ImportFailure(f"{path} is no faiss index, it {kind}")
    try:
        import faiss
    except ImportError as error:
        raise ImportFailure(
            f"{path} is read with the package faiss-cpu, which is missing: pip install 'autovoice[rvc]'"
        ) from error
    try:
        # It owns what lies inside it.
        read = index = faiss.read_index(os.fspath(path))
    except (RuntimeError, MemoryError) as error:
        raise ImportFailure(f"{path} is no faiss index, or is truncated: get it again") from error
    if isinstance(read, faiss.IndexIDMap):
        index = faiss.downcast_index(read.index)
    if not isinstance(index, (faiss.IndexFlat, faiss.IndexIVFFlat)):
        raise ImportFailure(
            f"{path} is of the kind {type(index).__name__}, whose vectors are compressed or searched "
            "otherwise: IVF-Flat and Flat indexes can be imported, as RVC trains them; leave --index out to "
            "do without"
        )
    if index.d != size:
        known = {256: "it belongs to a voice of version v1", 768: "it belongs to a voice of version v2"}
        raise ImportFailure(
            f"{path} holds features of {index.d} values, the voice has {size}: "
            f"{known.get(index.d, 'it belongs to no voice of RVC')}"
        )
    if index.ntotal == 0:
        raise ImportFailure(
            f"{path} is empty, as RVC's trained_*.index is: pass the added_*.index beside it, or leave "
            "--index out"
        )
    if index.metric_type != faiss.METRIC_L2:
        raise ImportFailure(
            f"{path} has no Euclidean distances, which RVC's indexes have: leave --index out to do without"
        )
    made = _inverted(faiss, index) if isinstance(index, faiss.IndexIVFFlat) else _flat(index)
    if not (bool(torch.isfinite(made.vectors).all()) and bool(torch.isfinite(made.centroids).all())):
        raise ImportFailure(f"{path} holds values that are not finite: get it again")
    return made


def _flat(index: Any) -> FeatureIndex:
    vectors = torch.from_numpy(np.ascontiguousarray(index.reconstruct_n(0, index.ntotal)))
    return FeatureIndex(vectors[:1].clone(), vectors, torch.zeros(len(vectors)).long(), 1)


def _inverted(faiss: Any, index: Any) -> FeatureIndex:
    centroids = np.ascontiguousarray(index.quantizer.reconstruct_n(0, index.nlist))
    pieces, lists = [], []
    for number in range(index.nlist):
        count = index.invlists.list_size(number)
        if count:
            codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), count * index.code_size)
            pieces.append(codes.view(np.float32).reshape(count, index.d).copy())
            lists.append(np.full(count, number, dtype=np.int64))
    return FeatureIndex(
        torch.from_numpy(centroids),
        torch.from_numpy(np.concatenate(pieces)),
        torch.from_numpy(np.concatenate(lists)),
        min(index.nprobe, index.nlist),
    )
