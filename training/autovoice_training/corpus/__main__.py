"""``python -m autovoice_training.corpus --people DIR``: gather and render the training corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autovoice_training.corpus.audio import SilentAudioError
from autovoice_training.corpus.build import build
from autovoice_training.corpus.config import CorpusConfig, HeldOut
from autovoice_training.corpus.engines import EngineError
from autovoice_training.corpus.kokoro import KokoroError


def main(
    out: Annotated[Path, typer.Option(help="Folder of the corpus.")] = Path("data/corpus"),
    cache: Annotated[
        Path, typer.Option(help="Folder of what is downloaded and rendered; a stopped run is continued.")
    ] = Path("data/kokoro"),
    people: Annotated[
        Path | None, typer.Option(help="Recordings of people, in LibriSpeech's layout.")
    ] = None,
    config: Annotated[Path, typer.Option(help="TOML file of numbers.")] = Path("training/corpus.toml"),
    sets: Annotated[Path, typer.Option(help="TOML file of who is kept out of training.")] = Path(
        "training/sets.toml"
    ),
    workers: Annotated[int, typer.Option(min=1, help="Processes that render, of one thread each.")] = 1,
    render: Annotated[
        bool, typer.Option(help="Without it, the corpus is made of what has been rendered so far.")
    ] = True,
) -> None:
    """Gather recordings of people and render Kokoro's voices: the corpus of the base voice."""
    try:
        build(
            out,
            cache,
            CorpusConfig.from_toml(config),
            HeldOut.from_toml(sets),
            people,
            workers,
            render,
            typer.echo,
        )
    except (KokoroError, EngineError, SilentAudioError, ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
