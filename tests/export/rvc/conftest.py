"""One repository with three small voices, imported once for all test processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import published
import pytest
import torch
from filelock import FileLock

from autovoice.cli.main import run

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
        """Outputs of one model in ONNX Runtime, one thread."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        path = self.repository / model / str(version) / "model.onnx"
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        arrays = {name: np.asarray(value) for name, value in feeds.items()}
        return dict(zip(names, session.run(names, arrays), strict=True))


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


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files and the repository."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "rvc"
    made = Files(
        folder / "sung.pth",
        folder / "plain.pth",
        folder / "tracked.pth",
        folder / "contentvec",
        folder / "contentvec_v1",
        folder / "voice.index",
        folder / "rmvpe.pt",
        folder / "repository",
    )
    with FileLock(f"{folder}.lock"):
        if not made.repository.exists():
            folder.mkdir(exist_ok=True)
            # Attention over a minute is what costs most.
            published.save_voice(made.sung, widths=published.Widths(layers=1))
            widths = published.Widths(decoder=32, branches=2)
            published.save_voice(
                made.plain, version="v1", sample_rate=48000, f0=False, speakers=1, widths=widths, seed=10
            )
            published.save_voice(made.tracked, sample_rate=32000, speakers=1, widths=published.NARROW, seed=3)
            published.save_hubert(made.contentvec)
            published.save_hubert(made.contentvec_v1, published.HUBERT_V1)
            make_index(made.index)
            published.save_rmvpe(made.rmvpe)
            partial = folder / "building"
            imports: list[list[Path | str]] = [
                [made.sung, "--index", made.index, "--contentvec", made.contentvec, "--speaker", "1"],
                [made.plain, "--contentvec", made.contentvec_v1],
                [made.tracked, "--pitch", "rmvpe", "--rmvpe", made.rmvpe],
            ]
            for voice, *options in imports:
                name = Path(voice).stem
                arguments = ["import", "rvc", voice, "--name", name, "--repository", partial, *options]
                assert run([str(argument) for argument in arguments]) == 0
            partial.rename(made.repository)
    return made


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded."""
    return torch.Generator().manual_seed(11)
