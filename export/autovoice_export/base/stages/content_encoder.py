"""Content encoder: what is said and how loudly, without who says it, and the envelope of every frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from autovoice_export.base.stages import sizes
from autovoice_export.base.stages.blocks import FrameConvolution, GatedBlock, StateReader
from autovoice_export.base.stages.mel import (
    ENVELOPE_SIZE,
    HIGH_HZ,
    LOUDNESS_FLOOR,
    LOW_HZ,
    MEL_BANDS,
    WINDOW,
    MelAnalysis,
)
from autovoice_plugins.geometry import HOP

POWER_FLOOR = 1e-9
PHONES = sizes.PHONES
KEY_SIZE = sizes.KEY_SIZE


@dataclass(frozen=True)
class ContentEncoderConfig:
    """Shape of the content encoder.

    Attributes:
        mel_bands: bands of the log-mel input between ``low_hz`` and ``high_hz``.
        low_hz: lower edge; rumble and DC below it reach neither content nor loudness.
        high_hz: upper edge.
        channels: width of the gated blocks.
        dilations: one block each; their sum times two is the look-back in frames.
        content_size: learnt values of CONTENT, the bottleneck.
        envelope_size: cosine coefficients of the source's own envelope.
    """

    mel_bands: int = MEL_BANDS
    low_hz: float = LOW_HZ
    high_hz: float = HIGH_HZ
    channels: int = 224
    dilations: tuple[int, ...] = field(default=(1, 2, 4, 8, 1, 2, 4, 8))
    content_size: int = 96
    envelope_size: int = ENVELOPE_SIZE

    @property
    def width(self) -> int:
        """Width C of CONTENT."""
        return 1 + KEY_SIZE + self.content_size + self.envelope_size


class Content(NamedTuple):
    """The parts of CONTENT.

    Attributes:
        speech: probability that the frame is no pause, [B, F, 1].
        key: what sound it is, of unit length, [B, F, 24]; frames of one sound have nearby keys whoever says
            it.
        learnt: the bottleneck, [B, F, content_size].
        envelope: cosines of the frame's own level-free log spectrum, [B, F, envelope_size].
    """

    speech: Tensor
    key: Tensor
    learnt: Tensor
    envelope: Tensor


class ContentEncoder(nn.Module):
    """Log-mel frames through gated causal convolutions to a narrow bottleneck, and their envelope beside it.

    The bottleneck learns the phones, and from it keys by which frames of the same sound in another voice are
    found; the envelope has all the detail of the frame, and its speaker.

    The window of a frame is three blocks long and centred on the middle one, so on receipt of block j
    the mel frame of block j - 1 is complete; the network emits the content of block j - 2, which
    leaves it one mel frame of look-ahead.
    """

    def __init__(self, config: ContentEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ContentEncoderConfig()
        self.analysis = MelAnalysis(config.mel_bands, config.low_hz, config.high_hz, config.envelope_size)
        self.input = FrameConvolution(config.mel_bands, config.channels, 1)
        blocks = [GatedBlock(config.channels, dilation) for dilation in config.dilations]
        self.blocks = nn.ModuleList(blocks)
        self.output = FrameConvolution(config.channels, config.content_size, 1)
        self.phones = FrameConvolution(config.content_size, PHONES, 1)
        self.key = FrameConvolution(config.content_size, KEY_SIZE, 1)
        self.audio_state = WINDOW - HOP
        self.frame_state = 1 + config.envelope_size
        self.state_size = self.audio_state + self.frame_state + sum(block.state_size for block in blocks)

    def mel(self, audio: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Mel power of the frames that the new blocks complete.

        Args:
            audio: [B, 240 F], in [-1, 1].
            past: the 480 samples before, [B, 480].

        Returns:
            Mel power, [B, F, bands], normalised so that its sum is about the mean square of the
            windowed frame, and the last 480 samples.
        """
        padded = torch.cat([past, audio], dim=1)
        return self.analysis(padded), padded[:, -self.audio_state :]

    def classify(self, mel: Tensor, state: StateReader) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Learnt content of mel frames and its phones.

        Args:
            mel: mel power [B, F, bands]; index j holds frame j - 1.
            state: positioned behind the frame of loudness and envelope.

        Returns:
            The bottleneck [B, F, content_size], logits of the phones [B, F, 41], and the blocks' new states.
        """
        x = self.input(torch.log(mel + POWER_FLOOR) * 0.25 + 2.5)
        states = []
        for block in self.blocks:
            x, past = block(x, state)
            states.append(past)
        learnt = self.output(x)
        return learnt, self.phones(nn.functional.silu(learnt)), states

    def keys(self, learnt: Tensor) -> Tensor:
        """Keys [B, F, 24] of unit length of learnt content."""
        key: Tensor = self.key(learnt)
        return key / torch.sqrt((key**2).sum(dim=2, keepdim=True) + 1e-6)

    def encode(self, mel: Tensor, state: StateReader) -> tuple[Content, Tensor, list[Tensor]]:
        """Encodes mel frames; training perturbs them between ``mel`` and here.

        Args:
            mel: mel power [B, F, bands]; index j holds frame j - 1.
            state: positioned behind the audio.

        Returns:
            The parts of CONTENT, LOUDNESS [B, F] and the new state in pieces.
        """
        log_magnitude, _ = self.analysis.level_free(mel)
        frames = torch.cat([mel.sum(dim=2, keepdim=True), self.analysis.envelope(log_magnitude)], dim=2)
        # The bottleneck is one frame behind the newest mel frame: so are loudness and envelope.
        frames = torch.cat([state.take(self.frame_state).unsqueeze(1), frames], dim=1)
        loudness = 0.5 * torch.log(frames[:, :-1, 0] + LOUDNESS_FLOOR)
        learnt, logits, states = self.classify(mel, state)
        speech = 1.0 - torch.softmax(logits, dim=2)[:, :, :1]
        content = Content(speech, self.keys(learnt), learnt, frames[:, :-1, 1:])
        return content, loudness, [frames[:, -1], *states]

    def forward(self, audio: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encodes one chunk.

        Args:
            audio: AUDIO [B, 240 F], in [-1, 1], 24 kHz.
            state: STATE_IN [B, state_size], zeros at the start.

        Returns:
            CONTENT [B, F, C], LOUDNESS [B, F] (natural log of the RMS between 50 Hz and 8 kHz) and
            STATE_OUT. Index j holds frame j - 2.
        """
        reader = StateReader(state)
        mel, audio_past = self.mel(audio, reader.take(self.audio_state))
        content, loudness, states = self.encode(mel, reader)
        return torch.cat(content, dim=2), loudness, torch.cat([audio_past, *states], dim=1)


def split_content(content: Tensor, content_size: int, envelope_size: int) -> Content:
    """The parts of CONTENT [B, F, C]."""
    return Content(*torch.split(content, [1, KEY_SIZE, content_size, envelope_size], dim=2))
