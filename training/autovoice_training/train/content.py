"""Training of the content encoder: phones, and keys by which the same sound is found in another voice."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from autovoice_export.base.stages.blocks import StateReader
from autovoice_export.base.stages.content_encoder import ContentEncoder
from autovoice_export.base.stages.voice_encoder import SPEECH_RANGE_DB
from autovoice_training.train.config import ContentConfig
from autovoice_training.train.data import UNKNOWN_PHONE, Batch
from autovoice_training.train.loop import TrainingLoop
from autovoice_training.train.perturbation import perturb_mel

# Frames at the start of a crop whose past the encoder has not heard.
WARM_UP_FRAMES = 10


class KeyedEncoder(nn.Module):
    """The content encoder and the sharpness with which its keys are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ContentEncoder()
        self.sharpness = nn.Parameter(torch.tensor(2.5))

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and phone logits of mel power [B, F + 1, 80], [B, F, .]; zeros are the past."""
        state = mel.new_zeros(mel.shape[0], self.encoder.state_size)
        learnt, logits, _ = self.encoder.classify(mel, StateReader(state))
        return self.encoder.keys(learnt[:, 1:]), logits[:, 1:]


class ContentTraining(TrainingLoop):
    """The encoder has to find, in a reference of the target, the frames that the target has in an item.

    The source is another voice that says the same, or the target itself, perturbed; so keys do not depend
    on who speaks. The distance is that of the envelope looked up with soft attention to the target's own.
    """

    config: ContentConfig

    def losses(
        self, module: nn.Module, step: int, split: str, generator: torch.Generator
    ) -> dict[str, Tensor]:
        batch: Batch = self.sampler.batch(step, split).to(self.device)
        analysis = module.encoder.analysis
        with torch.no_grad():
            clean = torch.exp(batch.source)
            mel = torch.where(batch.perturb[:, None, None], perturb_mel(clean, generator), clean)
            reference = torch.exp(batch.reference)
            wanted, audible = _envelope(analysis, torch.exp(batch.target))
            envelopes, speech = _envelope(analysis, reference)
        with self.autocast():
            keys, logits = module(mel)
            padded = torch.cat([reference, reference[:, -1:]], dim=1)
            reference_keys, _ = module(padded)
        scores = torch.matmul(
            keys.float() * torch.exp(module.sharpness), reference_keys.float().transpose(1, 2)
        )
        scores = scores.masked_fill(~speech.unsqueeze(1), -1e4)
        found = torch.matmul(torch.softmax(scores, dim=2), envelopes)
        weight = audible.float()
        weight[:, :WARM_UP_FRAMES] = 0.0
        distance = torch.sqrt((found - wanted).square().sum(dim=2) / analysis.cosines.shape[0] + 1e-8)
        distance = (distance * weight).sum() / weight.sum().clamp(min=1.0)
        logits = logits.float()[:, WARM_UP_FRAMES:].transpose(1, 2)
        phones = batch.phones[:, WARM_UP_FRAMES:]
        phone = functional.cross_entropy(logits, phones, ignore_index=UNKNOWN_PHONE, reduction="sum")
        known = (phones != UNKNOWN_PHONE).sum().clamp(min=1)
        accuracy = (logits.argmax(dim=1) == phones).sum() / known
        phone = phone / known
        total = distance + self.config.phone_weight * phone
        return {
            "total": total,
            "envelope": distance,
            "phone": phone,
            "accuracy": accuracy,
            "sharpness": torch.exp(module.sharpness.detach()),
        }


def _envelope(analysis: nn.Module, mel: Tensor) -> tuple[Tensor, Tensor]:
    """Envelopes [B, F, 40] of mel power [B, F, 80], and which frames are speech, [B, F]."""
    log_magnitude, loudness = analysis.level_free(mel)
    audible = loudness > loudness.amax(dim=1, keepdim=True) - SPEECH_RANGE_DB * math.log(10.0) / 20.0
    return analysis.envelope(log_magnitude), audible
