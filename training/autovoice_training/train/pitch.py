"""``python -m autovoice_training.train.pitch``: trains the pitch extractor, from where it stopped."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from autovoice.atomic import atomic_path
from autovoice_export.base.checkpoint import save_pitch_extractor
from autovoice_export.base.stages.blocks import StateReader
from autovoice_export.base.stages.pitch_extractor import PitchExtractor, pitch_to_bin
from autovoice_export.base.stages.timing import FEATURE_DELAY_FRAMES
from autovoice_plugins.geometry import F0_MIN, PITCH_YIN_STATE_SIZE
from autovoice_training.corpus.reader import Corpus, CorpusError
from autovoice_training.train.device import choose_device
from autovoice_training.train.pitch_data import PitchBank, PitchFeatures, PitchItems, label

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "pitch.toml"
EMA_DECAY = 0.995
PITCH_WEIGHT = 0.25
SAVE_STEPS = 100


@dataclass(frozen=True)
class PitchConfig:
    """One run of the trainer of the pitch extractor.

    Attributes:
        items: drawn once, with their noise; every epoch uses all.
        seed: of the items and the initial weights.
        steps: optimiser steps; the learning rate's schedule spans them.
        batch_size: items in a step.
        crop_frames: frames of 10 ms in an item.
        learning_rate: peak, after the warm-up.
        warmup_steps: linear rise to the peak, then a cosine to zero.
    """

    seed: int = 1
    items: int = 4096
    steps: int = 3500
    batch_size: int = 16
    crop_frames: int = 250
    learning_rate: float = 2e-3
    warmup_steps: int = 100

    @classmethod
    def read(cls, path: Path) -> PitchConfig:
        """Reads a TOML file.

        Raises:
            ValueError: an unknown setting.
        """
        values = tomllib.loads(path.read_text())
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"{path}: unknown setting {', '.join(unknown)}; see PitchConfig for the names")
        return cls(**values)


class PitchTrainer:
    """The network of a pitch extractor and its optimiser.

    Args:
        items: to learn from.
        config: of the run.
        device: to train on.
    """

    def __init__(self, items: PitchFeatures, config: PitchConfig, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.items = items
        self.config = config
        self.device = device
        self.extractor = PitchExtractor().to(device)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.extractor, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
        )
        self.optimizer = torch.optim.AdamW(
            self.extractor.parameters(), lr=config.learning_rate, betas=(0.9, 0.98)
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._learning_rate_factor)
        self.step = 0

    def _learning_rate_factor(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.config.warmup_steps)
        return warm * 0.5 * (1.0 + math.cos(math.pi * step / self.config.steps))

    def batch(self, step: int) -> PitchFeatures:
        """The batch of a step: a permutation of all items in every epoch."""
        numbers = range(step * self.config.batch_size, (step + 1) * self.config.batch_size)
        count = len(self.items.f0)
        chosen = [int(self._order(number // count)[number % count]) for number in numbers]
        return PitchFeatures(*(part[chosen].to(self.device) for part in self.items))

    @lru_cache(maxsize=2)  # noqa: B019 - lives as long as the run
    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.config.seed, epoch)).permutation(len(self.items.f0))

    def update(self) -> dict[str, float]:
        """One optimiser step."""
        losses = pitch_losses(self.extractor, self.batch(self.step))
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values(), torch.zeros((), device=self.device)).backward()
        nn.utils.clip_grad_norm_(self.extractor.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.extractor)
        self.step += 1
        return {name: value.item() for name, value in losses.items()}

    def save(self, path: Path) -> None:
        """Writes all that `resume` needs."""
        parts = ("extractor", "average", "optimizer", "schedule")
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in parts}
        with atomic_path(path) as temporary:
            torch.save({**state, "step": self.step, "config": asdict(self.config)}, temporary)

    def resume(self, path: Path) -> None:
        """Goes on with the run that is stored there, if there is one.

        Raises:
            ValueError: it has other settings.
        """
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["config"] != asdict(self.config):
            raise ValueError(f"{path} was made with other settings: set them back, or name another --run")
        for name in ("extractor", "average", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]


def pitch_losses(extractor: PitchExtractor, batch: PitchFeatures) -> dict[str, Tensor]:
    """Cross-entropies of voicing and, where voiced, of the F0 bins."""
    state = batch.heard.new_zeros(batch.heard.shape[0], extractor.state_size - PITCH_YIN_STATE_SIZE)
    voicing, logits, _ = extractor.classify(
        batch.spectrum.float(), batch.heard, batch.periodicity, StateReader(state)
    )
    late = FEATURE_DELAY_FRAMES
    voicing, logits, f0, voiced = (
        voicing[:, late:],
        logits[:, late:],
        batch.f0[:, :-late],
        batch.voiced[:, :-late],
    )
    place = pitch_to_bin(f0.clamp(min=F0_MIN)).unsqueeze(2)
    wanted = torch.softmax(-0.5 * (extractor.bins - place) ** 2, dim=2)
    distance = -(wanted * torch.log_softmax(logits, dim=2)).sum(dim=2)
    certain = torch.clamp(2.0 * voiced - 1.0, min=0.0)
    return {
        "voicing": functional.binary_cross_entropy_with_logits(voicing, voiced),
        "pitch": PITCH_WEIGHT * (distance * certain).sum() / certain.sum().clamp(min=1.0),
    }


def main(
    data: Annotated[Path, typer.Option(help="Corpus made by autovoice_training.corpus.")] = Path(
        "data/corpus"
    ),
    run: Annotated[Path, typer.Option(help="Folder of the run; resumed if it has a state.")] = Path(
        "data/pitch"
    ),
    weights: Annotated[Path, typer.Option(help="Where the finished weights are written.")] = Path(
        "data/pitch.safetensors"
    ),
    config: Annotated[Path, typer.Option(help="Settings of the run, TOML.")] = DEFAULT_CONFIG,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1; auto: a GPU if there is one.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="PyTorch threads, and processes of swift-f0.")] = 1,
) -> None:
    """Trains the pitch extractor; interrupt it at will and run it again to go on."""
    console = Console()
    torch.set_num_threads(threads)
    try:
        settings = PitchConfig.read(config)
        corpus = Corpus(data)
        label(corpus, run / "labels", threads, console)
        bank = PitchBank(
            PitchItems(corpus, run / "labels", settings.seed, settings.crop_frames),
            run / "items",
            settings.items,
        )
        bank.make(threads, console)
        trainer = PitchTrainer(bank.read(), settings, choose_device(device))
        trainer.resume(run / "state.pt")
    except (CorpusError, ValueError, OSError) as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(2) from None
    running: dict[str, float] = {}
    with Progress(console=console) as progress:
        task = progress.add_task("training", total=settings.steps, completed=trainer.step)
        while trainer.step < settings.steps:
            for name, value in trainer.update().items():
                running[name] = 0.98 * running.get(name, value) + 0.02 * value
            progress.update(task, completed=trainer.step)
            if trainer.step % SAVE_STEPS == 0 or trainer.step == settings.steps:
                trainer.save(run / "state.pt")
                figures = ", ".join(f"{name} {value:.4f}" for name, value in running.items())
                progress.console.print(f"step {trainer.step}: {figures}")
    save_pitch_extractor(weights, trainer.average.module)
    console.print(f"weights in {weights}")


if __name__ == "__main__":
    typer.run(main)
