"""Content encoder: what is said and how loudly, without who says it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from autovoice_export.stages.blocks import FrameConvolution, GatedBlock, StateReader, mel_filterbank, real_dft
from autovoice_plugins.geometry import HOP, SAMPLE_RATE

WINDOW = 3 * HOP
POWER_FLOOR = 1e-9
LOUDNESS_FLOOR = 1e-12


@dataclass(frozen=True)
class ContentEncoderConfig:
    """Shape of the content encoder.

    Attributes:
        mel_bands: bands of the log-mel input between ``low_hz`` and ``high_hz``.
        low_hz: lower edge; rumble and DC below it reach neither content nor loudness.
        high_hz: upper edge; 8 kHz, so that wideband telephone and studio recordings look alike.
        channels: width of the gated blocks.
        dilations: one block each; their sum times two is the look-back in frames.
        content_size: width C of CONTENT, the bottleneck.
    """

    mel_bands: int = 80
    low_hz: float = 50.0
    high_hz: float = 8000.0
    channels: int = 192
    dilations: tuple[int, ...] = field(default=(1, 2, 4, 8, 1, 2, 4, 8))
    content_size: int = 96


class ContentEncoder(nn.Module):
    """Log-mel frames through gated causal convolutions to a narrow bottleneck.

    The window of a frame is three blocks long and centred on the middle one, so on receipt of block j
    the mel frame of block j - 1 is complete; the network emits the content of block j - 2, which
    leaves it one mel frame of look-ahead.
    """

    window: Tensor
    dft: Tensor
    filterbank: Tensor

    def __init__(self, config: ContentEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ContentEncoderConfig()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("dft", real_dft(WINDOW), persistent=False)
        self.register_buffer(
            "filterbank",
            mel_filterbank(config.mel_bands, config.low_hz, config.high_hz, WINDOW, SAMPLE_RATE),
            persistent=False,
        )
        self.input = FrameConvolution(config.mel_bands, config.channels, 1)
        blocks = [GatedBlock(config.channels, dilation) for dilation in config.dilations]
        self.blocks = nn.ModuleList(blocks)
        self.output = FrameConvolution(config.channels, config.content_size, 1)
        self.audio_state = WINDOW - HOP
        self.state_size = self.audio_state + 1 + sum(block.state_size for block in blocks)

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
        blocks = padded.reshape(padded.shape[0], -1, HOP)
        frames = torch.cat([blocks[:, :-2], blocks[:, 1:-1], blocks[:, 2:]], dim=2)
        real, imaginary = torch.matmul(frames * self.window, self.dft).chunk(2, dim=2)
        # Parseval: both halves of the spectrum, the window's energy 3/8, the window length squared.
        power = (real * real + imaginary * imaginary) * (2.0 / (0.375 * WINDOW * WINDOW))
        return torch.matmul(power, self.filterbank), padded[:, -self.audio_state :]

    def encode(self, mel: Tensor, state: StateReader) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encodes mel frames; training perturbs them between ``mel`` and here.

        Args:
            mel: mel power [B, F, bands]; index j holds frame j - 1.
            state: positioned behind the audio.

        Returns:
            CONTENT [B, F, C], LOUDNESS [B, F] and the new state in pieces.
        """
        power = torch.cat([state.take(1), mel.sum(dim=2)], dim=1)
        loudness = 0.5 * torch.log(power[:, :-1] + LOUDNESS_FLOOR)
        states = [power[:, -1:]]
        x = self.input(torch.log(mel + POWER_FLOOR) * 0.25 + 2.5)
        for block in self.blocks:
            x, past = block(x, state)
            states.append(past)
        return self.output(x), loudness, states

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
        return content, loudness, torch.cat([audio_past, *states], dim=1)
