"""Training of the synthesizer, with the content encoder as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autovoice_export.base.stages.blocks import StateReader
from autovoice_export.base.stages.content_encoder import Content, ContentEncoder
from autovoice_export.base.stages.synthesizer import Synthesizer
from autovoice_export.base.stages.voice import pack, unpack
from autovoice_plugins.geometry import HOP
from autovoice_training.train.config import SynthesizerTraining
from autovoice_training.train.data import Batch, Sampler
from autovoice_training.train.discriminator import Discriminators
from autovoice_training.train.loop import TrainingLoop
from autovoice_training.train.losses import FilterLoss, MelLoss, PhoneLoss, SpeakerLoss
from autovoice_training.train.perturbation import perturb_mel


class SynthesizerLoop(TrainingLoop):
    """Filters near the target's envelopes, audio near the target's spectra, its identity and the source's
    words.

    Args:
        encoder: trained; left as it is.
        synthesizer: to train.
        sampler: with keys of that encoder.
        config: of this part.
        seed: of the perturbations.
        run: folder of the run.
        device: to train on.
    """

    config: SynthesizerTraining

    def __init__(
        self,
        encoder: ContentEncoder,
        synthesizer: Synthesizer,
        sampler: Sampler,
        config: SynthesizerTraining,
        seed: int,
        run: Path,
        device: torch.device,
    ) -> None:
        super().__init__("synthesizer", synthesizer, sampler, config, seed, run, device)
        self.encoder = encoder.requires_grad_(False).to(device)
        self.mel_loss = MelLoss().to(device)
        self.filter_loss = FilterLoss(encoder.analysis, encoder.config.envelope_size).to(device)
        self.speaker_loss = SpeakerLoss().to(device)
        self.phone_loss = PhoneLoss(self.encoder)
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
            mel = torch.where(batch.perturb[:, None, None], perturb_mel(clean, generator), clean)
            state = mel.new_zeros(mel.shape[0], self.encoder.state_size)
            with self.autocast():
                content, loudness, _ = self.encoder.encode(mel, StateReader(state))
                words = self.phone_loss.logits(clean)[:, -frames:]
            content = Content(*(part[:, 1:].float() for part in content))
            loudness = loudness[:, 1:].float()
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
        heard = self.encoder.analysis(functional.pad(audio, (HOP, HOP + HOP // 2)))
        with self.autocast():
            said = self.phone_loss(heard, words)
        some = max(self.config.unpaired_items, 1) * 2
        speaker = self.speaker_loss(audio[:some], batch.identity[:some], batch.source_identity[:some])
        config = self.config
        adversarial = matching = audio.new_zeros(())
        if step >= config.adversarial_from or split == "valid":
            if split == "train":
                self._train_opponent(wanted, audio.detach(), batch)
            self.discriminators.requires_grad_(False)
            adversarial, matching = self.discriminators.generator_loss(
                wanted, audio, batch.native_rate, batch.paired
            )
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

    def _train_opponent(self, real: Tensor, result: Tensor, batch: Batch) -> None:
        loss = self.discriminators.discriminator_loss(real, result, batch.native_rate, batch.paired)
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

    def _embedding(self, batch: Batch) -> Tensor:
        analysis = self.encoder.analysis
        with torch.no_grad():
            log_magnitude, _ = analysis.level_free(torch.exp(batch.reference))
            return pack(batch.identity, batch.keys, analysis.envelope(log_magnitude))

    def _memory(
        self, module: nn.Module, content: Content, embedding: Tensor, past: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The synthesizer's memory after some of the frames before the crop, [B, 41]."""
        history = self.sampler.history
        empty = embedding.new_zeros(len(embedding), module.memory_size)
        if history == 0:
            return empty
        share = torch.rand(len(past), generator=generator).to(past.device)
        heard = torch.minimum(past.float(), torch.floor(share * (history + 1)))
        position = torch.arange(history, device=past.device)
        used = (position.unsqueeze(0) >= history - heard.unsqueeze(1)).float().unsqueeze(2)
        target = module.look_up(content.key[:, :history], unpack(embedding))
        difference = target - content.envelope[:, :history]
        _, memory = module.mean_difference(difference, content.speech[:, :history] * used, empty)
        return memory
