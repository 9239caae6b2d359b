"""Training of the synthesizer, with the content encoder as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from autovoice_export.base.stages.blocks import StateReader
from autovoice_export.base.stages.content_encoder import Content, ContentEncoder
from autovoice_export.base.stages.synthesizer import Synthesizer
from autovoice_export.base.stages.voice import pack, unpack
from autovoice_plugins.geometry import HOP
from autovoice_training.train.config import SynthesizerTraining
from autovoice_training.train.content import KeyedEncoder
from autovoice_training.train.data import Batch, Sampler
from autovoice_training.train.discriminator import Discriminators
from autovoice_training.train.loop import TrainingLoop
from autovoice_training.train.losses import FilterLoss, MelLoss, PhoneLoss, SpeakerLoss
from autovoice_training.train.page import SamplePages
from autovoice_training.train.perturbation import perturb_mel


class SynthesizerLoop(TrainingLoop):
    """Filters near the target's envelopes, audio near the target's spectra, its identity and the source's
    words.

    Args:
        encoders: trained; left as they are.
        synthesizer: to train.
        sampler: with keys of that encoder.
        config: of this part.
        seed: of the perturbations.
        run: folder of the run.
        device: to train on.
        pages: writes a page of samples at every checkpoint; None for none.
    """

    config: SynthesizerTraining

    def __init__(
        self,
        encoders: KeyedEncoder,
        synthesizer: Synthesizer,
        sampler: Sampler,
        config: SynthesizerTraining,
        seed: int,
        run: Path,
        device: torch.device,
        pages: SamplePages | None = None,
    ) -> None:
        super().__init__("synthesizer", synthesizer, sampler, config, seed, run, device)
        encoders = encoders.requires_grad_(False).to(device)
        self.encoders, self.pages = encoders, pages
        self.encoder: ContentEncoder = encoders.encoder
        self.mel_loss = MelLoss().to(device)
        self.filter_loss = FilterLoss(self.encoder.analysis, self.encoder.config.envelope_size).to(device)
        self.speaker_loss = SpeakerLoss().to(device)
        self.phone_loss = PhoneLoss(encoders.reference)
        self.discriminators = Discriminators().to(device)
        self.opponent = torch.optim.AdamW(
            self.discriminators.parameters(), lr=config.discriminator_rate, betas=(0.8, 0.99)
        )

    def losses(
        self, module: nn.Module, step: int, split: str, generator: torch.Generator
    ) -> dict[str, Tensor]:
        batch = self.sampler.batch(step, split).to(self.device)
        paired, frames = batch.paired.float(), batch.target.shape[1]
        embedding = self._embedding(batch)
        with torch.no_grad():
            clean = torch.exp(batch.source)
            converted = self._reversed(module, clean, embedding, batch)
            mel = torch.where(batch.perturb[:, None, None], perturb_mel(converted, generator), converted)
            content, loudness = self._encode(mel)
            with self.autocast():
                words = self.phone_loss.logits(clean[:, -frames - 1 : -1])
        memory = self._memory(module, content, embedding, batch.past, generator)
        now = torch.cat(content, dim=2)[:, -frames:]
        state = torch.cat(
            [
                memory,
                memory.new_zeros(len(memory), module.state_size - module.filter_state - module.memory_size),
            ],
            dim=1,
        )
        f0, periodicity = batch.pitch.unbind(dim=2)
        with self.autocast():
            harmonic, noise, _ = module.filters(
                now, loudness[:, -frames:], f0, periodicity, embedding, StateReader(state)
            )
        harmonic, noise = harmonic.float(), noise.float()
        envelope = self.filter_loss(harmonic, noise, torch.exp(batch.target), batch.native_rate, paired)
        audio, _ = module.render(f0, harmonic, noise, embedding.new_zeros(len(paired), module.filter_state))
        # Frames of the filters are centred on their block; the op's output is half a block late.
        audio, wanted = audio[:, HOP // 2 :], batch.audio[:, : -(HOP // 2)]
        weight = paired.unsqueeze(1).expand(-1, frames)
        mel_distance, relative = self.mel_loss(audio, wanted, batch.native_rate, weight)
        with self.autocast():
            said = self.phone_loss(self._mel(audio), words)
        some = max(self.config.unpaired_items, 1) * 2
        speaker = self.speaker_loss(audio[:some], batch.identity[:some], batch.source_identity[:some])
        config = self.config
        adversarial = matching = audio.new_zeros(())
        if step >= config.adversarial_from or split == "valid":
            judged = slice(step % 2, None, 2)  # every second item: they take as long as all the rest
            of_voice = batch.native_rate[judged], batch.identity[judged], batch.paired[judged]
            parts = wanted[judged], audio[judged], *of_voice
            if split == "train":
                self._train_opponent(wanted[judged], audio[judged].detach(), *of_voice)
            self.discriminators.requires_grad_(False)
            with self.autocast():
                adversarial, matching = self.discriminators.generator_loss(*parts)
            self.discriminators.requires_grad_(True)
        total = (
            mel_distance
            + config.relative_weight * relative
            + config.envelope_weight * envelope
            + config.speaker_weight * speaker
            + config.words_weight * said
            + config.adversarial_weight * adversarial
            + config.matching_weight * matching
        )
        return {
            "total": total,
            "mel": mel_distance,
            "relative": relative,
            "envelope": envelope,
            "speaker": speaker,
            "words": said,
            "adversarial": adversarial,
            "matching": matching,
        }

    def show(self, console: Console) -> None:
        """See `TrainingLoop.show`: a page of samples."""
        if self.pages is not None:
            encoders, voice = (copy.deepcopy(one).cpu() for one in (self.encoders, self.average.module))
            console.print(f"samples: {self.pages.write(self.step, encoders, voice)}", soft_wrap=True)

    def _train_opponent(self, *parts: Tensor) -> None:
        with self.autocast():
            loss = self.discriminators.discriminator_loss(*parts)
        self.opponent.zero_grad(set_to_none=True)
        loss.backward()
        self.opponent.step()

    def state(self) -> dict[str, Any]:
        """See `TrainingLoop.state`; the discriminators too."""
        return {
            **super().state(),
            "discriminators": self.discriminators.state_dict(),
            "opponent": self.opponent.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """See `TrainingLoop.load`."""
        super().load(state)
        self.discriminators.load_state_dict(state["discriminators"])
        self.opponent.load_state_dict(state["opponent"])

    def _encode(self, mel: Tensor) -> tuple[Content, Tensor]:
        """Content and loudness of all frames but the last of mel power [B, F + 1, 80]."""
        state = mel.new_zeros(mel.shape[0], self.encoder.state_size)
        with self.autocast():
            content, loudness, _ = self.encoder.encode(mel, StateReader(state))
        return Content(*(part[:, 1:].float() for part in content)), loudness[:, 1:].float()

    def _mel(self, audio: Tensor) -> Tensor:
        """Mel power of the frames of audio of which the first half block was cut off."""
        mel: Tensor = self.encoder.analysis(functional.pad(audio, (HOP, HOP + HOP // 2)))
        return mel

    def _reversed(self, module: nn.Module, mel: Tensor, embedding: Tensor, batch: Batch) -> Tensor:
        """Mel power of the sources, [B, H + F + 1, 80], those to be reversed in the next item's voice."""
        chosen = batch.reverse.nonzero().squeeze(1)
        if len(chosen) == 0:
            return mel
        others = (chosen + 1) % len(batch.reverse)
        ratio = (batch.usual_f0[others] / batch.usual_f0[chosen]).clamp(0.5, 2.0)
        content, loudness = self._encode(mel[chosen])
        f0, periodicity = batch.melody[chosen].unbind(dim=2)
        f0 = f0 * ratio.unsqueeze(1)
        state = mel.new_zeros(len(chosen), module.state_size)
        with self.autocast():
            harmonic, noise, _ = module.filters(
                torch.cat(content, dim=2),
                loudness,
                f0,
                periodicity,
                embedding[others],
                StateReader(state[:, module.filter_state :]),
            )
        audio, _ = module.render(f0, harmonic.float(), noise.float(), state[:, : module.filter_state])
        made = self._mel(audio[:, HOP // 2 :])
        return mel.index_copy(0, chosen, torch.cat([made, mel[chosen, -1:]], dim=1))

    def _embedding(self, batch: Batch) -> Tensor:
        analysis = self.encoder.analysis
        with torch.no_grad():
            log_magnitude, _ = analysis.level_free(torch.exp(batch.reference))
            return pack(batch.identity, batch.keys, analysis.envelope(log_magnitude))

    def _memory(
        self, module: nn.Module, content: Content, embedding: Tensor, past: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The synthesizer's memory after some of the frames before the crop, [B, memory_size]."""
        history = self.sampler.history
        empty = embedding.new_zeros(len(embedding), module.memory_size)
        if history == 0:
            return empty
        share = torch.rand(len(past), generator=generator).to(past.device)
        heard = torch.minimum(past.float(), torch.floor(share * (history + 1)))
        position = torch.arange(history, device=past.device)
        used = (position.unsqueeze(0) >= history - heard.unsqueeze(1)).float().unsqueeze(2)
        target, _ = module.look_up(content.key[:, :history], unpack(embedding))
        weight = content.speech[:, :history] * used
        _, memory = module.move(content.envelope[:, :history], target, weight, empty)
        return memory
