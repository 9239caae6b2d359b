"""The training loop: parallel pairs in, checkpoints out, resumable at any step."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Collection
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
from torch.nn import functional

from autovoice.atomic import atomic_path
from autovoice_export.base.stages.blocks import StateReader
from autovoice_export.base.stages.content_encoder import ContentEncoder
from autovoice_export.base.stages.synthesizer import Synthesizer, SynthesizerConfig
from autovoice_export.base.stages.voice import unpack, with_identity
from autovoice_export.base.stages.voice_encoder import PhoneClassifier
from autovoice_plugins.geometry import HOP
from autovoice_training.train.config import TrainConfig
from autovoice_training.train.data import DELAY_SAMPLES, Batch, PairSampler
from autovoice_training.train.features import average_voice
from autovoice_training.train.losses import EnvelopeLoss, MelLoss, PhoneLoss, SpeakerLoss
from autovoice_training.train.perturbation import perturb_mel
from autovoice_training.train.warm_start import take_matching


class VoiceConversionTrainer:
    """Content encoder and synthesizer, trained together.

    Args:
        sampler: source of batches.
        config: of the run.
        run: folder of the run; ``state.pt`` (resume) and ``log.jsonl`` live there.
        classifier: of the voice encoder; it made the sampler's embeddings and hears what is said.
        device: to train on.
    """

    def __init__(
        self,
        sampler: PairSampler,
        config: TrainConfig,
        run: Path,
        classifier: PhoneClassifier,
        device: torch.device,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.sampler = sampler
        self.run = run
        self.classifier = classifier
        self.device = device
        self.started_from = ""
        synthesizer = Synthesizer(SynthesizerConfig(formant_factors=config.formant_factors))
        self.modules = nn.ModuleDict({"content_encoder": ContentEncoder(), "synthesizer": synthesizer})
        average = average_voice(sampler.features[name] for name in sorted(sampler.targets))
        synthesizer.average_voice.copy_(average)
        self.modules.to(device)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.modules, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema_decay)
        )
        self.loss = MelLoss().to(device)
        self.speaker_loss = SpeakerLoss().to(device)
        self.phone_loss = PhoneLoss(classifier).to(device)
        self.envelope_loss = EnvelopeLoss(classifier.analysis).to(device)
        self.optimizer = torch.optim.AdamW(
            self.modules.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._learning_rate_factor)
        self.step = 0
        self.seconds = 0.0

    def _learning_rate_factor(self, step: int) -> float:
        if step < self.config.warmup_steps:
            return (step + 1) / self.config.warmup_steps
        progress = (step - self.config.warmup_steps) / max(1, self.config.steps - self.config.warmup_steps)
        return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    def losses(
        self, modules: nn.ModuleDict, batch: Batch, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        """Losses of one batch; the source is perturbed when a generator is given."""
        encoder, synthesizer = modules["content_encoder"], modules["synthesizer"]
        items = batch.source.shape[0]
        with torch.no_grad():
            clean, _ = encoder.mel(batch.source, batch.source.new_zeros(items, encoder.audio_state))
            mel = clean
            if generator is not None:
                perturbed = perturb_mel(
                    mel, encoder.config.low_hz, encoder.config.high_hz, self.config.noise_db, generator
                )
                mel = torch.where(batch.perturb[:, None, None], perturbed, mel)
        with self.autocast():
            content, loudness, _ = encoder.encode(mel, StateReader(mel.new_zeros(items, encoder.state_size)))
            logits = synthesizer.classify(content).float().transpose(1, 2)
        phone = functional.cross_entropy(logits, batch.phones, ignore_index=-1)
        unaltered = unpack(batch.embedding).identity
        identity = self.speaker_loss.altered_identity(unaltered, batch.sample, batch.altered)
        embedding = with_identity(batch.embedding, identity)
        audio = self.synthesize(synthesizer, content.float(), loudness, batch, embedding)
        late = DELAY_SAMPLES
        mel, relative = self.loss(audio[:, late:], batch.target[:, :-late], batch.native_rate, batch.weight)
        some = self.config.speaker_items
        voices = (identity, unpack(batch.source_embedding).identity, unaltered)
        speaker = self.speaker_loss(audio[:some, late:], *(voice[:some] for voice in voices))
        # Frame j of the source is the clean mel's index j + 1; the last frames of the result are cut short.
        heard = self.classifier.mel(audio[:, late:])[:, :-1]
        with torch.no_grad():
            wanted = self.classifier.mel(batch.target[:, :-late])[:, :-1]
        envelope = self.envelope_loss(heard, wanted, batch.weight[:, : heard.shape[1]])
        with self.autocast():
            words = self.phone_loss(heard, clean[:, 1 : 1 + heard.shape[1]])
        accuracy = (logits.argmax(dim=1) == batch.phones)[batch.phones >= 0].float().mean()
        return {
            "mel": mel,
            "relative": relative,
            "envelope": envelope,
            "speaker": speaker,
            "phone": phone,
            "words": words,
            "accuracy": accuracy,
        }

    def autocast(self) -> torch.autocast:
        """Mixed precision for the convolutions."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16)

    def synthesize(
        self, synthesizer: Synthesizer, content: Tensor, loudness: Tensor, batch: Batch, embedding: Tensor
    ) -> Tensor:
        """Audio [B, 240 F] of a batch, 600 samples late; phase and filters stay in float32."""
        state = StateReader(content.new_zeros(content.shape[0], synthesizer.state_size))
        past = state.take(synthesizer.filter_state)
        with self.autocast():
            harmonic, noise, _ = synthesizer.filters(
                content, loudness, batch.f0, batch.periodicity, embedding, state
            )
        audio, _ = synthesizer.render(batch.f0, harmonic.float(), noise.float(), past)
        return audio

    def train(self, console: Console, deadline_seconds: float | None = None) -> None:
        """Runs to the last step, or until the deadline, writing checkpoints on the way."""
        self.run.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        columns = (
            TextColumn("training"),
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
                out_of_time = deadline_seconds is not None and time.monotonic() - started > deadline_seconds
                if (
                    self.step % self.config.checkpoint_steps == 0
                    or self.step == self.config.steps
                    or out_of_time
                ):
                    self.log({"train": running, "validation": self.validate()}, console)
                    self.save()
                if out_of_time:
                    console.print(f"stopped at the deadline, step {self.step}; run again to go on")
                    return

    def update(self) -> dict[str, float]:
        """One optimiser step; the batch depends on the seed and the step alone."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        losses = self.losses(self.modules, self.sampler.batch(self.step).to(self.device), generator)
        total = (
            losses["mel"]
            + self.config.relative_weight * losses["relative"]
            + self.config.envelope_weight * losses["envelope"]
            + self.config.speaker_weight * losses["speaker"]
            + self.config.phone_weight * losses["phone"]
            + self.config.words_weight * losses["words"]
        )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.modules.parameters(), self.config.gradient_clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient of step {self.step} is not finite; lower learning_rate and resume with "
                "--accept learning_rate"
            )
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.modules)
        self.step += 1
        return {name: value.item() for name, value in losses.items()} | {"norm": norm.item()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean losses of the averaged weights on the fixed validation batches."""
        totals: dict[str, float] = {}
        batches = self.config.validation_batches
        for index in range(batches):
            for name, value in self.losses(
                self.average.module, self.sampler.validation_batch(index).to(self.device), None
            ).items():
                totals[name] = totals.get(name, 0.0) + value.item() / batches
        return totals

    def log(self, record: dict[str, Any], console: Console) -> None:
        """Appends a line to ``log.jsonl`` and prints it."""
        record = {"step": self.step, "seconds": round(self.seconds, 1), **record}
        with (self.run / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        console.print(json.dumps(record))

    def save(self) -> None:
        """Writes everything that resuming needs, atomically."""
        state = {
            "modules": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "config": asdict(self.config),
            "started_from": self.started_from,
        }
        with atomic_path(self.run / "state.pt") as temporary:
            torch.save(state, temporary)

    def resume(self, accepted: Collection[str] = (), start_from: Path | None = None) -> bool:
        """Takes up the run's last state, if there is one.

        Args:
            accepted: settings that may differ from those of the state, see `TrainConfig.check_saved`.
            start_from: checkpoint that the run must have begun with; None for whatever it was.

        Raises:
            ValueError: other settings, or another beginning.
        """
        path = self.run / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.config.check_saved(state["config"], path, accepted)
        if start_from is not None and _digest(start_from) != state["started_from"]:
            raise ValueError(
                f"{path} did not begin with the weights of {start_from}: leave --start-from out, or name "
                "another folder with --run"
            )
        self.modules.load_state_dict(state["modules"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.started_from = state["started_from"]
        # The optimizer and its schedule hold the learning rate that they were saved with.
        self.schedule.base_lrs = [self.config.learning_rate] * len(self.schedule.base_lrs)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = self.config.learning_rate
            group["lr"] = self.config.learning_rate * self._learning_rate_factor(self.step)
        return True

    def start_from(self, path: Path) -> int:
        """Begins with the weights of another voice, see `take_matching`; returns how many tensors it took."""
        taken = take_matching(self.modules, path)
        self.average.module.load_state_dict(self.modules.state_dict())
        self.started_from = _digest(path)
        return taken

    @property
    def device_name(self) -> str:
        """What it is trained on, in words."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    @property
    def audio_hours(self) -> float:
        """Hours of audio that the optimiser has seen."""
        return self.step * self.config.batch_size * self.config.crop_frames * HOP / 24000 / 3600


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
