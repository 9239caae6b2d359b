"""Pitch extractor: the PitchYin op, and a network that decides on voicing and octave."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from autovoice_export.base.stages.blocks import FrameConvolution, GatedBlock, StateReader, mel_points
from autovoice_export.base.stages.hum_filter import HumFilter
from autovoice_plugins.geometry import F0_MIN, HOP, PITCH_YIN_STATE_SIZE, SAMPLE_RATE
from autovoice_plugins.pitch_yin.reference import VOICING_THRESHOLD
from autovoice_plugins.pitch_yin.torch_op import pitch_yin

PITCH_BINS = 108
BINS_PER_OCTAVE = 24
"""The network's F0 grid: quarter tones from 50 Hz to 1100 Hz."""

FINE_RANGE = 2.0
"""Bins on both sides of the likeliest one that refine it."""

LARGEST_MULTIPLE = 4.0
"""The op's pitch may be this many times too high or too low."""

NEAR_BINS = 2.0
"""Within a semitone of the network's F0 the op's is taken, which is finer."""

CERTAIN_PERIODICITY = 0.995
"""From here on the op's octave was right on all voiced frames of seventy readers. A tone without its
fundamental, of which the network knows little, is as periodic."""

_WINDOW_BLOCKS = 5
SPECTRUM_BANDS = 96
_LOW_HZ = 50.0
_HIGH_HZ = 8000.0
_POWER_FLOOR = 1e-9


@dataclass(frozen=True)
class PitchExtractorConfig:
    """Shape of the network of the pitch extractor.

    Attributes:
        channels: width of the gated blocks.
        dilations: one block each; their sum times two is the look-back in frames.
    """

    channels: int = 64
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16, 32)


class PitchExtractor(nn.Module):
    """F0 and periodicity of audio, with the op's own state and that of the network.

    Mains hum is taken out first. PitchYin measures a period finely, but in noise it often takes a multiple
    of it, and rumble for a voice. The network sees the spectrum of the same 50 ms and 1.3 s of the past. It
    gives the probability that the frame is voiced, and a distribution over F0; where the op's F0, or a
    multiple or a fraction of it, is within a semitone of the likeliest F0, that is the answer, else the
    likeliest F0. Only a period that is beyond doubt keeps its octave whatever the network says.
    """

    analysis: Tensor
    bins: Tensor

    def __init__(self, config: PitchExtractorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PitchExtractorConfig()
        self.register_buffer("analysis", _analysis_filters(), persistent=False)
        self.hum_filter = HumFilter(SAMPLE_RATE)
        self.register_buffer("bins", torch.arange(PITCH_BINS, dtype=torch.float32), persistent=False)
        self.input = FrameConvolution(SPECTRUM_BANDS + PITCH_BINS + 1, config.channels, 1)
        blocks = [GatedBlock(config.channels, dilation) for dilation in config.dilations]
        self.blocks = nn.ModuleList(blocks)
        # Before any training the answers are those of the op.
        self.output = FrameConvolution(config.channels, PITCH_BINS + 1, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(cast(Tensor, self.output.bias))
        self.trust = nn.Parameter(torch.tensor([10.0, 4.0]))
        self.state_size = PITCH_YIN_STATE_SIZE + self.hum_filter.state_size
        self.state_size += sum(block.state_size for block in blocks)

    def spectrum(self, audio: Tensor, past: Tensor) -> Tensor:
        """Log power on the mel scale of the 50 ms around each frame, scaled to about -1 to 2.

        Args:
            audio: [B, 240 F], in [-1, 1], 24 kHz.
            past: the samples before, at least 960, [B, P].

        Returns:
            [B, F, 96]; index j holds frame j - 2, as the op's answers do.
        """
        blocks = torch.cat([past[:, -(_WINDOW_BLOCKS - 1) * HOP :], audio], dim=1)
        blocks = blocks.reshape(audio.shape[0], -1, HOP)
        last = _WINDOW_BLOCKS - 1
        windows = torch.cat([blocks[:, i : (i - last) or None] for i in range(_WINDOW_BLOCKS)], dim=2)
        real, imaginary = torch.matmul(windows, self.analysis).chunk(2, dim=2)
        return torch.log(real * real + imaginary * imaginary + _POWER_FLOOR) * 0.25 + 2.5

    def classify(
        self, spectrum: Tensor, heard: Tensor, periodicity: Tensor, state: StateReader
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The network.

        Args:
            spectrum: [B, F, 96], see `spectrum`.
            heard: F0 of the op without a decision on voicing, [B, F] in Hz.
            periodicity: of the op, [B, F].
            state: positioned at the blocks.

        Returns:
            Logit of voicing [B, F], logits of the F0 bins [B, F, 108] and the new state in pieces.
        """
        periodicity = periodicity.unsqueeze(2)
        distance = torch.abs(self.bins - pitch_to_bin(heard).unsqueeze(2))
        place = torch.clamp(1.0 - distance, min=0.0) * periodicity
        x = self.input(torch.cat([spectrum, periodicity, place], dim=2))
        states = []
        for block in self.blocks:
            x, past = block(x, state)
            states.append(past)
        x = self.output(x)
        voicing = x[:, :, 0] + self.trust[0] * (periodicity.squeeze(2) - VOICING_THRESHOLD)
        return voicing, x[:, :, 1:] + self.trust[1] * place, states

    def forward(self, audio: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Measures one chunk.

        Args:
            audio: AUDIO [B, 240 F], in [-1, 1], 24 kHz.
            state: STATE_IN [B, state_size], zeros at the start.

        Returns:
            F0 [B, F] in Hz (0 = unvoiced), PERIODICITY [B, F] in [0, 1] and STATE_OUT. Index j holds
            frame j - 2.
        """
        reader = StateReader(state)
        past = reader.take(PITCH_YIN_STATE_SIZE)
        audio, hum = self.hum_filter(audio, reader.take(self.hum_filter.state_size))
        spectrum = self.spectrum(audio, past)
        heard, periodicity, past = pitch_yin(audio, past, voicing_threshold=0.0)
        voicing, logits, states = self.classify(spectrum, heard, periodicity, reader)
        f0 = reconciled(heard, self.likeliest(logits))
        f0 = torch.where(periodicity >= CERTAIN_PERIODICITY, heard, f0)
        f0 = torch.where(voicing > 0, f0, torch.zeros_like(f0))
        return f0, periodicity, torch.cat([past, hum, *states], dim=1)

    def likeliest(self, logits: Tensor) -> Tensor:
        """The mean of the distribution around its maximum, [B, F] in Hz, of logits [B, F, 108]."""
        best = torch.argmax(logits, dim=2, keepdim=True)
        near = torch.abs(self.bins - best.to(logits.dtype)) <= FINE_RANGE
        weight = torch.softmax(logits, dim=2) * near
        return bin_to_pitch((weight * self.bins).sum(dim=2) / weight.sum(dim=2))


def pitch_to_bin(f0: Tensor) -> Tensor:
    """Place of an F0 above 0 Hz on the network's grid; whole numbers are its bins."""
    return torch.log(f0 / F0_MIN) * (BINS_PER_OCTAVE / math.log(2.0))


def bin_to_pitch(place: Tensor) -> Tensor:
    """The F0 in Hz of a place on the network's grid."""
    return torch.exp(place * (math.log(2.0) / BINS_PER_OCTAVE)) * F0_MIN


def reconciled(heard: Tensor, expected: Tensor) -> Tensor:
    """The op's F0 in the octave of the network's, or the network's where they do not agree at all.

    Args:
        heard: of the op, [B, F] in Hz.
        expected: of the network, [B, F] in Hz.
    """
    multiple = torch.clamp(torch.round(expected / heard), 1.0, LARGEST_MULTIPLE)
    fraction = torch.clamp(torch.round(heard / expected), 1.0, LARGEST_MULTIPLE)
    f0 = heard * multiple / fraction
    near = torch.abs(pitch_to_bin(f0) - pitch_to_bin(expected)) <= NEAR_BINS
    return torch.where(near, f0, expected)


def _analysis_filters() -> Tensor:
    """Windowed cosines and sines on the mel scale, [1200, 192].

    Each is as long as it must be to tell its neighbours apart, and no longer than the five blocks.
    """
    size = _WINDOW_BLOCKS * HOP
    points = mel_points(SPECTRUM_BANDS + 1, _LOW_HZ, _HIGH_HZ)
    frequency, spacing = points[:-1], points[1:] - points[:-1]
    length = torch.clamp(2.0 * SAMPLE_RATE / spacing, max=size)
    time = torch.arange(size, dtype=torch.float64).unsqueeze(1) - 0.5 * (size - 1)
    window = torch.where(
        torch.abs(time) < 0.5 * length, 0.5 + 0.5 * torch.cos(2.0 * math.pi * time / length), 0.0
    )
    window = window * (2.0 / window.sum(dim=0))
    angle = 2.0 * math.pi * frequency * time / SAMPLE_RATE
    return torch.cat([window * torch.cos(angle), window * torch.sin(angle)], dim=1).to(torch.float32)
