"""One repository with three small voices, imported once for all test processes."""

from __future__ import annotations

import os
from pathlib import Path

import published
import pytest
import torch
from filelock import FileLock
from imported_voices import Files, make_index

from autovoice.cli.main import run


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
            published.save_voice(
                made.plain,
                version="v1",
                sample_rate=48000,
                f0=False,
                speakers=1,
                widths=published.NARROW,
                seed=10,
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
