"""``python -m autovoice_training.train``: features, training and the checkpoint, from where it stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from autovoice.errors import VoiceConversionError
from autovoice_export.base.checkpoint import load_pitch_extractor
from autovoice_export.base.stages.synthesizer import Synthesizer
from autovoice_training.corpus.reader import Corpus, CorpusError
from autovoice_training.train.config import DEFAULT_CONFIG, TrainConfig
from autovoice_training.train.content import ContentTraining, KeyedEncoder
from autovoice_training.train.data import Sampler
from autovoice_training.train.device import choose_device
from autovoice_training.train.features import measure
from autovoice_training.train.page import SamplePages
from autovoice_training.train.publish import publish
from autovoice_training.train.synthesizer import SynthesizerLoop

DEFAULT_CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "base.safetensors"


def main(
    data: Annotated[Path, typer.Option(help="Corpus made by autovoice_training.corpus.")] = Path(
        "data/corpus"
    ),
    run: Annotated[Path, typer.Option(help="Folder of the run; resumed if it has a state.")] = Path(
        "data/run"
    ),
    checkpoint: Annotated[
        Path, typer.Option(help="Where the finished voice is written.")
    ] = DEFAULT_CHECKPOINT,
    pitch: Annotated[
        Path, typer.Option(help="What autovoice_training.train.pitch wrote, or a checkpoint.")
    ] = Path("data/pitch.safetensors"),
    config: Annotated[Path, typer.Option(help="Settings of the run, TOML.")] = DEFAULT_CONFIG,
    people: Annotated[
        Path | None,
        typer.Option(
            help="Recordings in LibriSpeech's layout: at every checkpoint a page of samples between its "
            "development readers is written into the run's folder."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1; auto: a GPU if there is one.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="PyTorch threads; 0 takes all cores.")] = 0,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after so long; run again to go on.")
    ] = None,
) -> None:
    """Trains the base voice; interrupt it at will and run it again to go on."""
    console = Console()
    if threads:
        torch.set_num_threads(threads)
    deadline = None if minutes is None else time.monotonic() + 60.0 * minutes
    try:
        settings = TrainConfig.read(config)
        corpus = Corpus(data)
        where = choose_device(device)
        features = data / "features"
        pitch_extractor = load_pitch_extractor(pitch)
        measure(corpus, features, pitch_extractor, console)
        torch.manual_seed(settings.seed)
        content = ContentTraining(
            "content",
            KeyedEncoder(),
            Sampler(
                corpus,
                features,
                settings.content,
                seed=settings.seed,
                reference_frames=settings.content.reference_frames,
            ),
            settings.content,
            settings.seed,
            run,
            where,
        )
        _resume(content, console)
        if not content.train(console, deadline):
            return
        encoders = content.average.module.cpu().eval()
        part = settings.synthesizer
        sampler = Sampler(
            corpus,
            features,
            part,
            seed=settings.seed,
            history=part.history_frames,
            unpaired_items=part.unpaired_items,
            plain_share=part.plain_share,
            reversed_share=part.reversed_share,
            encoder=encoders.reference,
        )
        torch.manual_seed(settings.seed)
        synthesizer = Synthesizer()
        pages = SamplePages(people, run / "samples", pitch_extractor) if people else None
        loop = SynthesizerLoop(encoders, synthesizer, sampler, part, settings.seed, run, where, pages)
        _resume(loop, console)
        if loop.train(console, deadline):
            publish(settings, content, loop, pitch_extractor, checkpoint, console)
    except (CorpusError, FloatingPointError, ValueError, OSError, VoiceConversionError) as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(2) from None


def _resume(loop: ContentTraining | SynthesizerLoop, console: Console) -> None:
    if loop.resume():
        console.print(f"{loop.name} resumed at step {loop.step}")


if __name__ == "__main__":
    typer.run(main)
