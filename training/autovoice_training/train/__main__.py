"""``python -m autovoice_training.train``: features, training and the checkpoint, from where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from autovoice.errors import VoiceConversionError
from autovoice_export.base.checkpoint import load_pitch_extractor
from autovoice_training.corpus.reader import Corpus, CorpusError
from autovoice_training.train.config import CHANGEABLE, DEFAULT_CONFIG, TrainConfig
from autovoice_training.train.data import PairSampler
from autovoice_training.train.features import extract
from autovoice_training.train.phones import train_classifier
from autovoice_training.train.publish import publish
from autovoice_training.train.trainer import VoiceConversionTrainer

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
    config: Annotated[Path, typer.Option(help="Settings of the run, TOML.")] = DEFAULT_CONFIG,
    pitch: Annotated[
        Path, typer.Option(help="A checkpoint, or what autovoice_training.train.pitch wrote.")
    ] = DEFAULT_CHECKPOINT,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1; auto: a GPU if there is one.")] = "auto",
    start_from: Annotated[
        Path | None, typer.Option(help="A new run begins with the weights of this checkpoint that fit.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="PyTorch threads; 0 takes all cores.")] = 0,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING",
            help=f"Resume although this setting was changed: {', '.join(CHANGEABLE)}. May be repeated.",
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after so long; run again to go on.")
    ] = None,
) -> None:
    """Trains the base voice; interrupt it at will and run it again to go on."""
    console = Console()
    if threads:
        torch.set_num_threads(threads)
    try:
        settings = TrainConfig.read(config)
        corpus = Corpus(data)
        where = choose_device(device)
        classifier = train_classifier(
            corpus, run / "phones.pt", settings.classifier_steps, settings.seed, where, console, start_from
        )
        features = data / "features"
        pitch_extractor = load_pitch_extractor(pitch)
        extract(corpus, features, classifier, pitch_extractor, console)
        sampler = PairSampler(
            corpus,
            features,
            seed=settings.seed,
            batch_size=settings.batch_size,
            unpaired_items=settings.unpaired_items,
            crop_frames=settings.crop_frames,
            human_share=settings.human_share,
            self_share=settings.self_share,
            recorded_share=settings.recorded_share,
            altered=settings.altered,
        )
        trainer = VoiceConversionTrainer(sampler, settings, run, classifier, where)
        resumed = trainer.resume(accept or (), start_from)
    except (CorpusError, ValueError, OSError, VoiceConversionError) as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(2) from None
    if resumed:
        console.print(f"resumed at step {trainer.step}")
    elif start_from is not None:
        console.print(f"{trainer.start_from(start_from)} tensors taken from {start_from}")
    trainer.train(console, None if minutes is None else 60.0 * minutes)
    publish(trainer, pitch_extractor, checkpoint, console)


def choose_device(name: str) -> torch.device:
    """The device called ``name``; for ``auto`` a GPU where there is one.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is none PyTorch knows; say cpu, cuda or auto") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: PyTorch finds no CUDA GPU here; say cpu or auto")
    return device


if __name__ == "__main__":
    typer.run(main)
