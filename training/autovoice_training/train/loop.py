"""What the parts of the training share: optimiser, averaged weights, log, checkpoints that resume."""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from autovoice.atomic import atomic_path
from autovoice_training.train.config import StageConfig
from autovoice_training.train.data import Sampler
from autovoice_training.train.device import mixes_precision

VALIDATION_BATCHES = 3
# What may differ when a run is resumed; the rest decides what the weights so far have learnt from.
CHANGEABLE = ("steps", "checkpoint_steps", "share_shift")


class TrainingLoop(ABC):
    """Trains one module; the state after each checkpoint lies in the run's folder.

    Args:
        name: of the part; names its files.
        module: to train.
        sampler: source of batches.
        config: of this part.
        seed: of the perturbations.
        run: folder of the run; ``NAME.pt`` (resume) and ``NAME.jsonl`` (log) lie there.
        device: to train on; bfloat16 where that is faster.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        sampler: Sampler,
        config: StageConfig,
        seed: int,
        run: Path,
        device: torch.device,
    ) -> None:
        self.name, self.sampler, self.config, self.seed = name, sampler, config, seed
        self.run, self.device = run, device
        self.module = module.to(device)
        self.average = torch.optim.swa_utils.AveragedModel(
            module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema_decay)
        )
        self.optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._learning_rate_factor)
        self.step = 0
        self.seconds = 0.0

    @abstractmethod
    def losses(
        self, module: nn.Module, step: int, split: str, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Losses of the batch of a step; ``total`` is what is minimised."""

    def _learning_rate_factor(self, step: int) -> float:
        if step < self.config.warmup_steps:
            return (step + 1) / self.config.warmup_steps
        progress = (step - self.config.warmup_steps) / max(1, self.config.steps - self.config.warmup_steps)
        return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    def autocast(self) -> torch.autocast:
        """Mixed precision where it is faster."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixes_precision(self.device))

    def train(self, console: Console, deadline: float | None = None) -> bool:
        """Runs to the last step, or until the deadline (of `time.monotonic`).

        Returns:
            Whether the last step was reached.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        columns = (
            TextColumn(self.name),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
        )
        running: dict[str, float] = {}
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=self.config.steps, completed=self.step, losses="")
            while self.step < self.config.steps:
                tick = time.monotonic()
                for name, value in self.update().items():
                    running[name] = 0.98 * running.get(name, value) + 0.02 * value
                self.seconds += time.monotonic() - tick
                text = " ".join(f"{name} {value:.3f}" for name, value in running.items())
                progress.update(task, completed=self.step, losses=text)
                late = deadline is not None and time.monotonic() > deadline
                if self.step % self.config.checkpoint_steps == 0 or self.step == self.config.steps or late:
                    self.log({"train": running, "validation": self.validate()}, console)
                    self.save()
                    self.show(console)
                if late and self.step < self.config.steps:
                    console.print(f"stopped at the deadline, step {self.step}; run again to go on")
                    return False
        return True

    def show(self, console: Console) -> None:
        """Shows what the part can do at a checkpoint, if there is something to show."""
        del console

    def update(self) -> dict[str, float]:
        """One optimiser step; the batch depends on the seed and the step alone."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        losses = self.losses(self.module, self.step, "train", generator)
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.gradient_clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient of step {self.step} is not finite; lower {self.name}.learning_rate and start "
                "again"
            )
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.module)
        self.step += 1
        return {name: value.item() for name, value in losses.items()} | {"norm": norm.item()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean losses of the averaged weights on fixed batches of the validation sentences."""
        totals: dict[str, float] = {}
        for index in range(VALIDATION_BATCHES):
            generator = torch.Generator().manual_seed(index)
            for name, value in self.losses(self.average.module, index, "valid", generator).items():
                totals[name] = totals.get(name, 0.0) + value.item() / VALIDATION_BATCHES
        return totals

    def log(self, record: dict[str, Any], console: Console) -> None:
        """Appends a line to the log and prints it."""
        record = {"step": self.step, "seconds": round(self.seconds, 1), **record}
        with (self.run / f"{self.name}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        console.print(json.dumps(record))

    @property
    def path(self) -> Path:
        """Where the state lies."""
        return self.run / f"{self.name}.pt"

    def save(self) -> None:
        """Writes everything that resuming needs, whole or not at all."""
        with atomic_path(self.path) as temporary:
            torch.save(self.state(), temporary)

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs."""
        return {
            "module": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "config": asdict(self.config),
            "seed": self.seed,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""
        self.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.seconds = state["step"], state["seconds"]

    def resume(self) -> bool:
        """Takes up the run's last state, if there is one.

        Raises:
            ValueError: it was made with other settings.
        """
        if not self.path.exists():
            return False
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        now = {**asdict(self.config), "seed": self.seed}
        for name, before in {**state["config"], "seed": state["seed"]}.items():
            if now.get(name) != before and name not in CHANGEABLE:
                raise ValueError(
                    f"{self.path} was made with {self.name}.{name} = {before!r}, and now it is "
                    f"{now.get(name)!r}: set it back, or name another folder with --run"
                )
        self.load(state)
        return True
