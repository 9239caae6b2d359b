"""Voice encoder: a reference recording in, the embedding of its voice out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autovoice_export.base.stages.blocks import StateReader
from autovoice_export.base.stages.content_encoder import ContentEncoder
from autovoice_export.base.stages.speaker_encoder import SpeakerEncoder
from autovoice_export.base.stages.voice import TOKENS, pack
from autovoice_plugins.geometry import HOP

SPEECH_RANGE_DB = 40.0
"""Frames further than this below the loud ones are no speech."""
_TINY_POWER = 1e-14


class VoiceEncoder(nn.Module):
    """The speaker encoder's identity beside frames of the reference and what is said in them.

    A timbre that nobody in training has cannot come out of an identity learnt from those who were there; the
    frames are the recording's own. The synthesizer looks up those that say what the source says (retrieval of
    the target's own frames, as in kNN-VC; Baas et al. 2023).

    Args:
        content_encoder: gives the frames their keys.
    """

    def __init__(self, content_encoder: ContentEncoder) -> None:
        super().__init__()
        self.speaker = SpeakerEncoder.from_resemblyzer()
        self.content = content_encoder

    def frames(self, audio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys [B, F, 24], envelopes [B, F, 40] and mean squares [B, F] of audio [B, T], F = T / 240."""
        encoder = self.content
        before = audio.new_zeros(audio.shape[0], encoder.audio_state)
        # Two blocks behind the last one, so that its frame is complete, and what rounds it up to a block.
        padded = torch.cat([before, audio, audio.new_zeros(audio.shape[0], 3 * HOP - 1)], dim=1)
        blocks = padded.shape[1] // HOP
        mel = encoder.analysis(padded[:, : blocks * HOP])
        zeros = audio.new_zeros(audio.shape[0], encoder.state_size - encoder.audio_state)
        content, loudness, _ = encoder.encode(mel, StateReader(zeros))
        return content.key[:, 2:], content.envelope[:, 2:], torch.exp(2.0 * loudness[:, 2:])

    def forward(self, reference_audio: Tensor) -> Tensor:
        """Embeds recordings.

        Args:
            reference_audio: REFERENCE_AUDIO [B, T] mono at 24 kHz, T >= 1, any level.

        Returns:
            EMBEDDING [B, VOICE_SIZE], unit length.
        """
        keys, envelopes, energy = self.frames(reference_audio)
        chosen = speech_frames(energy)
        return pack(
            self.speaker(reference_audio), gather_frames(keys, chosen), gather_frames(envelopes, chosen)
        )


def speech_frames(energy: Tensor) -> Tensor:
    """Indices [B, TOKENS] of frames that lie evenly over the speech among frames of mean square [B, F]."""
    frames = energy.shape[1]
    # The level of the loud frames: pauses, however long, do not change it.
    loud = (energy**2).sum(dim=1, keepdim=True) / torch.clamp(
        energy.sum(dim=1, keepdim=True), min=_TINY_POWER
    )
    speech = energy >= loud * 10.0 ** (-0.1 * SPEECH_RANGE_DB)
    # Counted in floats, which are exact up to 2^24 frames: TensorRT has no cumulative sum of integers.
    rank = torch.cumsum(speech.to(energy.dtype), dim=1).to(torch.int64)
    total = rank[:, -1:].to(energy.dtype)
    # order[b, i] is the index of the i-th frame of speech; the others are all written to the spare last slot.
    frame = torch.arange(frames, device=energy.device).unsqueeze(0).expand(energy.shape[0], frames)
    slot = torch.where(speech, rank - 1, torch.full_like(rank, 1) * frames)
    order = torch.zeros(energy.shape[0], frames + 1, dtype=torch.int64, device=energy.device)
    order = order.scatter(1, slot, frame)
    middle = (torch.arange(TOKENS, device=energy.device) + 0.5) / TOKENS
    return order.gather(1, torch.floor(middle * total).to(torch.int64))


def gather_frames(values: Tensor, indices: Tensor) -> Tensor:
    """Frames [B, N, C] of values [B, F, C] at indices [B, N]."""
    batch, frames, width = values.shape
    rows = indices + torch.arange(batch, device=values.device).unsqueeze(1) * frames
    return values.reshape(batch * frames, width)[rows]
