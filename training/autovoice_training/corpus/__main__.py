"""``python -m autovoice_training.corpus --out DIR``: render the training corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autovoice_training.corpus.audio import SilentAudioError
from autovoice_training.corpus.build import build
from autovoice_training.corpus.config import SMALL, CorpusConfig
from autovoice_training.corpus.engines import EngineError
from autovoice_training.corpus.voices import MissingVoiceError


def main(
    out: Annotated[Path, typer.Option(help="Folder to write; a stopped build is continued.")] = Path(
        "data/corpus"
    ),
    config: Annotated[
        Path | None, typer.Option(help="TOML file of sizes (see training/corpus.toml).")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    seed: Annotated[int, typer.Option(help="Same seed and sizes, same corpus.")] = 0,
    small: Annotated[bool, typer.Option(help="A few utterances of everything, for tests.")] = False,
) -> None:
    """Render the training corpus of the base voice with the Debian speech engines of training/voices.txt."""
    try:
        sizes = SMALL if small else CorpusConfig.from_toml(config) if config else CorpusConfig()
        build(out, sizes, workers, seed, typer.echo)
    except (MissingVoiceError, EngineError, SilentAudioError, ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
