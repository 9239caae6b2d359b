"""Voice encoder: a reference recording in, the embedding of its voice out."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from autovoice_export.base.stages import sizes
from autovoice_export.base.stages.blocks import FrameConvolution
from autovoice_export.base.stages.content_encoder import POWER_FLOOR
from autovoice_export.base.stages.mel import MEL_BANDS, MelAnalysis
from autovoice_export.base.stages.speaker_encoder import SpeakerEncoder
from autovoice_export.base.stages.voice import TOKENS, pack
from autovoice_plugins.geometry import HOP

SPEECH_RANGE_DB = 40.0
"""Frames further than this below the loud ones are no speech."""
_TINY_POWER = 1e-14
# Mean square of the loud frames as the network sees them.
_USUAL_POWER = 0.01


@dataclass(frozen=True)
class ReferenceEncoderConfig:
    """Shape of the reference encoder.

    Attributes:
        channels: width of the gated blocks.
        dilations: one block each; their sum is how many frames it looks back, and ahead.
        content_size: learnt values, the bottleneck before phones and keys.
    """

    channels: int = 224
    dilations: tuple[int, ...] = field(default=(1, 2, 4, 8, 1, 2, 4, 8))
    content_size: int = 96

    @property
    def context(self) -> int:
        """Frames on either side that a key depends on."""
        return sum(self.dilations)


class CentredBlock(nn.Module):
    """Gated dilated convolution around each frame, with a residual connection.

    Args:
        channels: width C.
        dilation: frames between the three taps.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.convolution = FrameConvolution(channels, 2 * channels, 3, dilation=dilation)
        self.output = FrameConvolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Filters [B, F, C] to [B, F, C]; there are zeros around the frames."""
        nothing = torch.zeros_like(x[:, :1]).expand(-1, self.dilation, -1)
        signal, gate = self.convolution(torch.cat([nothing, x, nothing], dim=1)).chunk(2, dim=2)
        filtered: Tensor = x + self.output(torch.tanh(signal) * torch.sigmoid(gate))
        return filtered


class ReferenceEncoder(nn.Module):
    """What sound each frame of a whole recording is, from what comes before and after it.

    The content encoder hears a live source and must answer before the sound has ended; a reference is there
    as a whole, so its keys may know better.
    """

    def __init__(self, config: ReferenceEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ReferenceEncoderConfig()
        self.input = FrameConvolution(MEL_BANDS, config.channels, 1)
        self.blocks = nn.ModuleList(CentredBlock(config.channels, dilation) for dilation in config.dilations)
        self.output = FrameConvolution(config.channels, config.content_size, 1)
        self.phones = FrameConvolution(config.content_size, sizes.PHONES, 1)
        self.key = FrameConvolution(config.content_size, sizes.KEY_SIZE, 1)

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and phones of frames at any level.

        Args:
            mel: mel power [B, F, 80].

        Returns:
            Keys of unit length [B, F, 24] and logits of the phones [B, F, 41].
        """
        energy = mel.sum(dim=2)
        level = _USUAL_POWER / torch.clamp(loud_power(energy), min=_TINY_POWER)
        silence = torch.zeros_like(mel[:, :1]).expand(-1, self.config.context, -1)
        mel = torch.cat([silence, mel * level.unsqueeze(2), silence], dim=1)
        x = self.input(torch.log(mel + POWER_FLOOR) * 0.25 + 2.5)
        for block in self.blocks:
            x = block(x)
        learnt = self.output(x[:, self.config.context : -self.config.context])
        key = self.key(learnt)
        key = key / torch.sqrt((key**2).sum(dim=2, keepdim=True) + 1e-6)
        return key, self.phones(nn.functional.silu(learnt))


class VoiceEncoder(nn.Module):
    """The speaker encoder's identity beside frames of the reference and what is said in them.

    A timbre that nobody in training has cannot come out of an identity learnt from those who were there; the
    frames are the recording's own. The synthesizer looks up those that say what the source says (retrieval of
    the target's own frames, as in kNN-VC; Baas et al. 2023).

    Args:
        reference_encoder: gives the frames their keys.
    """

    def __init__(self, reference_encoder: ReferenceEncoder) -> None:
        super().__init__()
        self.speaker = SpeakerEncoder.from_resemblyzer()
        self.analysis = MelAnalysis()
        self.reference = reference_encoder

    def frames(self, audio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys [B, F, 24], envelopes [B, F, 40] and mean squares [B, F] of audio [B, T], F = T / 240."""
        # A block of silence on either side of the first and the last frame, and what rounds it up to a block.
        padded = torch.cat([torch.zeros_like(audio[:, :1]).expand(-1, HOP), audio], dim=1)
        padded = torch.cat([padded, torch.zeros_like(audio[:, :1]).expand(-1, 2 * HOP - 1)], dim=1)
        mel = self.analysis(padded[:, : padded.shape[1] // HOP * HOP])
        log_magnitude, loudness = self.analysis.level_free(mel)
        keys, _ = self.reference(mel)
        return keys, self.analysis.envelope(log_magnitude), torch.exp(2.0 * loudness)

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


def loud_power(energy: Tensor) -> Tensor:
    """Mean square of the loud ones [B, 1] of frames of mean square [B, F]; pauses do not change it."""
    return (energy**2).sum(dim=1, keepdim=True) / torch.clamp(
        energy.sum(dim=1, keepdim=True), min=_TINY_POWER
    )


def speech_frames(energy: Tensor) -> Tensor:
    """Indices [B, TOKENS] of frames that lie evenly over the speech among frames of mean square [B, F]."""
    frames = energy.shape[1]
    speech = energy >= loud_power(energy) * 10.0 ** (-0.1 * SPEECH_RANGE_DB)
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
