"""What the tests of imported voices share: their files, a recording, and inputs of their ensembles."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autovoice_export.examples import voice
from autovoice_export.parity import session_run
from autovoice_export.rvc.geometry import SOURCE_RATE

VECTORS, LISTS = 400, 9


@dataclass(frozen=True)
class Files:
    """What the tests import from.

    Attributes:
        sung: voice of version v2 with pitch and three speakers, 40 kHz.
        plain: voice of version v1 without pitch, 48 kHz.
        tracked: voice of version v2 with pitch and one speaker, 32 kHz.
        contentvec: encoder for v2.
        contentvec_v1: encoder for v1.
        index: faiss index for v2.
        rmvpe: pitch tracker.
        repository: holds `sung` with the index, `plain` and `tracked` without one; `tracked` has its pitch
            from RMVPE.
    """

    sung: Path
    plain: Path
    tracked: Path
    contentvec: Path
    contentvec_v1: Path
    index: Path
    rmvpe: Path
    repository: Path

    def run(self, model: str, feeds: dict[str, Any], version: int = 1) -> dict[str, Any]:
        """Outputs of one model in ONNX Runtime."""
        run = session_run(self.repository / model / str(version) / "model.onnx")
        return dict(run({name: np.asarray(value) for name, value in feeds.items()}))


def make_index(path: Path, size: int = 768) -> None:
    """Writes an IVF-Flat index as RVC trains it: L2, one list searched."""
    import faiss

    vectors = np.random.RandomState(4).standard_normal((VECTORS, size)).astype(np.float32)
    index = faiss.index_factory(size, f"IVF{LISTS},Flat")
    index.nprobe = 1
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, os.fspath(path))


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, by size and time of change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def feeds(audio: np.ndarray[Any, Any], *, window: bool = False) -> dict[str, Any]:
    """Inputs of an ensemble for a batch of recordings [B, T]."""
    floats = {"PITCH_SHIFT": 2.0, "INDEX_RATE": 0.5, "PROTECT": 0.3, "RMS_MIX": 1.0}
    places = {"SPEAKER_ID": 0}
    if window:
        floats["ANCHOR_PHASE"] = 0.0
        places |= {"FIRST_FRAME": 0, "ANCHOR_FRAME": 0}
    rows = len(audio)
    return {
        "SOURCE_AUDIO": audio,
        **{name: np.full((rows, 1), value, np.float32) for name, value in floats.items()},
        **{name: np.full((rows, 1), value, np.int64) for name, value in places.items()},
    }


def voice_like(batch: int, samples: int) -> torch.Tensor:
    """Something like voices at 16 kHz, [batch, samples]."""
    return torch.from_numpy(voice((batch, samples), SOURCE_RATE, np.random.default_rng(7)))
