"""Training of the content encoder: phones, and keys by which the same sound is found in another voice."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from autovoice_export.base.stages.blocks import StateReader
from autovoice_export.base.stages.content_encoder import ContentEncoder
from autovoice_export.base.stages.voice_encoder import SPEECH_RANGE_DB, ReferenceEncoder
from autovoice_training.train.config import ContentConfig
from autovoice_training.train.data import UNKNOWN_PHONE, Batch
from autovoice_training.train.loop import TrainingLoop
from autovoice_training.train.perturbation import perturb_mel

# Frames at the start of a crop whose past the encoder has not heard.
WARM_UP_FRAMES = 10
# Probability that two frames are of one sound from which on the attention should find it.
SAME_SOUND = 0.4


class KeyedEncoder(nn.Module):
    """The content encoder, the reference encoder, and the sharpness with which their keys are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ContentEncoder()
        self.reference = ReferenceEncoder()
        self.sharpness = nn.Parameter(torch.tensor(2.5))

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and phone logits of a source's mel power [B, F + 1, 80], [B, F, .]; zeros are the past."""
        state = mel.new_zeros(mel.shape[0], self.encoder.state_size)
        learnt, logits, _ = self.encoder.classify(mel, StateReader(state))
        return self.encoder.keys(learnt[:, 1:]), logits[:, 1:]


class ContentTraining(TrainingLoop):
    """The encoders have to find, in a reference of the target, the frames that the target has in an item.

    The source is another voice that says the same, or the target itself, perturbed; so keys do not depend
    on who speaks. One distance is that of the envelope looked up with soft attention to the target's own,
    another the share of the attention that falls on other sounds. Where phones are not labelled, those that
    the reference encoder hears count, for it knows what follows (distillation; Hinton et al. 2015).
    """

    config: ContentConfig

    def losses(
        self, module: nn.Module, step: int, split: str, generator: torch.Generator
    ) -> dict[str, Tensor]:
        batch: Batch = self.sampler.batch(step, split).to(self.device)
        analysis = module.encoder.analysis
        with torch.no_grad():
            clean, target = torch.exp(batch.source), torch.exp(batch.target)
            mel = torch.where(batch.perturb[:, None, None], perturb_mel(clean, generator), clean)
            reference = torch.exp(batch.reference)
            wanted, audible = _envelope(analysis, target)
            envelopes, speech = _envelope(analysis, reference)
            altered = torch.rand(len(reference), 1, 1, generator=generator).to(reference.device) < 0.5
            heard = torch.where(altered, perturb_mel(reference, generator), reference)
            with self.autocast():
                guessed = module.reference(target)[1].float()
        with self.autocast():
            keys, logits = module(mel)
            reference_keys, reference_logits = module.reference(heard)
        logits, reference_logits = logits.float(), reference_logits.float()
        scores = torch.matmul(
            keys.float() * torch.exp(module.sharpness), reference_keys.float().transpose(1, 2)
        )
        scores = scores.masked_fill(~speech.unsqueeze(1), -1e4)
        attention = torch.softmax(scores, dim=2)
        weight = audible.float()
        weight[:, :WARM_UP_FRAMES] = 0.0
        found = torch.matmul(attention, envelopes)
        distance = torch.sqrt((found - wanted).square().sum(dim=2) / analysis.cosines.shape[0] + 1e-8)
        distance = _mean(distance, weight)

        labelled = batch.phones != UNKNOWN_PHONE
        phones = _posteriors(batch.phones, guessed)
        trusted = labelled | torch.tensor(step >= self.config.distil_from or split == "valid")
        trusted = trusted.float()
        trusted[:, :WARM_UP_FRAMES] = 0.0
        phone = -(phones * torch.log_softmax(logits, dim=2)).sum(dim=2)
        right = (logits.argmax(dim=2) == batch.phones).float()
        known = labelled.float()
        known[:, :WARM_UP_FRAMES] = 0.0
        of_reference = _posteriors(batch.reference_phones, reference_logits.detach())
        reference_phone = functional.cross_entropy(
            reference_logits.transpose(1, 2),
            batch.reference_phones,
            ignore_index=UNKNOWN_PHONE,
            reduction="sum",
        ) / (batch.reference_phones != UNKNOWN_PHONE).sum().clamp(min=1)
        same = torch.matmul(phones, of_reference.transpose(1, 2)) * speech.unsqueeze(1)
        match = -torch.log((attention * same).sum(dim=2) + 1e-3)
        match = _mean(match, weight * trusted * (same.amax(dim=2) > SAME_SOUND))
        phone = _mean(phone, trusted)
        config = self.config
        total = distance + config.phone_weight * (phone + reference_phone) + config.match_weight * match
        return {
            "total": total,
            "envelope": distance,
            "phone": phone,
            "reference_phone": reference_phone,
            "match": match,
            "accuracy": _mean(right, known),
            "reference_accuracy": _mean((guessed.argmax(dim=2) == batch.phones).float(), known),
            "sharpness": torch.exp(module.sharpness.detach()),
        }


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1.0)


def _posteriors(labels: Tensor, logits: Tensor) -> Tensor:
    """Probabilities of the phones [B, F, 41]: of labels [B, F], and of logits where there is none."""
    certain = functional.one_hot(labels.clamp(min=0), logits.shape[2]).float()
    return torch.where((labels == UNKNOWN_PHONE).unsqueeze(2), torch.softmax(logits, dim=2), certain)


def _envelope(analysis: nn.Module, mel: Tensor) -> tuple[Tensor, Tensor]:
    """Envelopes [B, F, 40] of mel power [B, F, 80], and which frames are speech, [B, F]."""
    log_magnitude, loudness = analysis.level_free(mel)
    audible = loudness > loudness.amax(dim=1, keepdim=True) - SPEECH_RANGE_DB * math.log(10.0) / 20.0
    return analysis.envelope(log_magnitude), audible
