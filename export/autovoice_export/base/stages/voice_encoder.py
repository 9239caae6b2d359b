"""Voice encoder: a reference recording in, the embedding of its voice out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autovoice_export.base.stages.mel import MEL_BANDS, MelAnalysis
from autovoice_export.base.stages.speaker_encoder import SpeakerEncoder
from autovoice_export.base.stages.voice import PHONES, pack
from autovoice_plugins.geometry import HOP

CHANNELS = 96
KERNEL = 5
LAYERS = 5
_TINY_POWER = 1e-14


class PhoneClassifier(nn.Module):
    """Which phone each frame of a recording is, for a whole recording at once.

    Residual convolutions over level-free log-mel frames; they see a quarter of a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self.analysis = MelAnalysis()
        self.input = nn.Conv1d(MEL_BANDS + 1, CHANNELS, 1)
        self.layers = nn.ModuleList(
            [nn.Conv1d(CHANNELS, CHANNELS, KERNEL, padding=KERNEL // 2) for _ in range(LAYERS)]
        )
        self.output = nn.Conv1d(CHANNELS, PHONES, 1)

    def mel(self, audio: Tensor) -> Tensor:
        """Mel power [B, ceil(T / 240), 80] of audio [B, T]."""
        before, after = audio.new_zeros(audio.shape[0], HOP), audio.new_zeros(audio.shape[0], 2 * HOP - 1)
        padded = torch.cat([before, audio, after], dim=1)
        blocks = padded.shape[1] // HOP
        mel: Tensor = self.analysis(padded[:, : blocks * HOP])
        return mel

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Phone logits [B, 41, F] and log magnitudes without level [B, F, 80] of mel power [B, F, 80]."""
        log_magnitude, loudness = self.analysis.level_free(mel)
        power = mel.sum(dim=2)
        # The level of the loud frames: pauses, however long, do not change it.
        level = (power**2).sum(dim=1, keepdim=True) / torch.clamp(
            power.sum(dim=1, keepdim=True), min=_TINY_POWER
        )
        relative = loudness - 0.5 * torch.log(level + _TINY_POWER)
        x = torch.cat([log_magnitude.transpose(1, 2) * 0.5, relative.unsqueeze(1) * 0.25], dim=1)
        x = self.input(x)
        for layer in self.layers:
            x = x + layer(nn.functional.silu(x))
        return self.output(nn.functional.silu(x)), log_magnitude


class VoiceEncoder(nn.Module):
    """The speaker encoder's identity beside the mean envelope of every phone of the reference.

    A timbre that nobody in training has cannot come out of an identity learnt from those who were there; its
    envelopes, phone by phone, are the recording's own.

    Args:
        classifier: tells the phones apart.
    """

    def __init__(self, classifier: PhoneClassifier) -> None:
        super().__init__()
        self.speaker = SpeakerEncoder.from_resemblyzer()
        self.classifier = classifier

    def statistics(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Shares [B, 41] and sums of envelopes [B, 41, 24], see `autovoice_export.base.stages.voice`."""
        logits, log_magnitude = self.classifier(self.classifier.mel(audio))
        posterior = torch.softmax(logits, dim=1) / log_magnitude.shape[1]
        envelope = self.classifier.analysis.envelope(log_magnitude)
        return posterior.sum(dim=2), torch.matmul(posterior, envelope)

    def forward(self, reference_audio: Tensor) -> Tensor:
        """Embeds recordings.

        Args:
            reference_audio: REFERENCE_AUDIO [B, T] mono at 24 kHz, T >= 1, any level.

        Returns:
            EMBEDDING [B, 1282], unit length.
        """
        return pack(self.speaker(reference_audio), *self.statistics(reference_audio))
