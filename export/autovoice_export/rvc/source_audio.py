"""The two ends of an RVC ensemble: grid and high-pass in front, loudness and trimming behind."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autovoice_export.base.stages.synthesizer import limit
from autovoice_export.rvc.geometry import FRAME, FRAMES_PER_SECOND, GRID, SOURCE_RATE

HIGH_PASS_HZ = 48.0
HIGH_PASS_ORDER = 5
_DECIMATION = 16
_REACH = 150
"""The low band's impulse response on either side, in decimated samples: 0.15 s, by then below 1e-6."""

RMS_HOP_FRAMES = FRAMES_PER_SECOND // 2
_RMS_REACH_FRAMES = RMS_HOP_FRAMES
_RMS_FLOOR = 1e-6


class PadToGrid(nn.Module):
    """Pads recordings with silence to whole grid steps and says that they start at frame 0, phase 0."""

    def forward(self, source_audio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pads a batch of recordings of one length.

        Args:
            source_audio: SOURCE_AUDIO [B, T], 16 kHz.

        Returns:
            PADDED_AUDIO [B, 320 ceil(T / 320)], FIRST_FRAME [B, 1] int64 and ANCHOR_PHASE [B, 1], both 0.
        """
        batch, length = source_audio.shape
        steps = (length + GRID - 1) // GRID
        audio = torch.cat([source_audio, source_audio.new_zeros(batch, steps * GRID - length)], dim=1)
        first = torch.zeros(batch, 1, dtype=torch.int64)
        return audio, first, source_audio.new_zeros(batch, 1)


@lru_cache(maxsize=1)
def _low_band() -> Tensor:
    """Impulse response whose autocorrelation is what the high-pass takes away, [2 reach decimation + 1].

    Butterworth of order N passes 1 / (1 + (fc / f)^2N) of the power, and filtering forwards and backwards
    applies the power response. Warped by the bilinear transform, as the digital filter is.
    """
    size = 1 << 18
    # To the right of 0 only: at 0 the low band is everything.
    frequency = np.tan(np.pi * np.arange(1, size // 2) / size)
    edge = np.tan(np.pi * HIGH_PASS_HZ / SOURCE_RATE)
    response = np.zeros(size // 2 + 1)
    response[0] = 1.0
    response[1:-1] = np.sqrt(1.0 / (1.0 + (frequency / edge) ** (2 * HIGH_PASS_ORDER)))
    reach = _REACH * _DECIMATION
    impulse = np.fft.irfft(response, size)
    return torch.from_numpy(np.concatenate([impulse[-reach:], impulse[: reach + 1]]).astype(np.float32))


class HighPass(nn.Module):
    """Fifth-order Butterworth high-pass at 48 Hz run forwards and backwards, so that no phase changes.

    What it takes away lies below some 200 Hz, so it is measured and made at 1 kHz: the low band is cut out by
    the square root of its response while decimating, and again while interpolating, and subtracted.
    """

    down: Tensor
    up: Tensor

    def __init__(self) -> None:
        super().__init__()
        impulse = _low_band()
        taps = 2 * _REACH + 1
        # One more tap on either side completes the blocks of one decimated sample.
        padded = functional.pad(impulse, (0, _DECIMATION - 1)).reshape(taps, _DECIMATION)
        # d[m] = sum over n of x[16 m + n] h[n]; blocks of x are channels.
        self.register_buffer("down", padded.T.unsqueeze(0).contiguous(), persistent=False)
        # y[16 m + p] = 16 sum over k of d[m - k] h[16 k + p]; convolutions correlate, hence the flip.
        interpolating = functional.pad(impulse, (0, _DECIMATION - 1)).reshape(taps, _DECIMATION)
        self.register_buffer(
            "up", (_DECIMATION * interpolating.flip(0)).T.unsqueeze(1).contiguous(), persistent=False
        )

    def forward(self, audio: Tensor) -> Tensor:
        """Filters a batch.

        Args:
            audio: SOURCE_AUDIO [B, 320 G], 16 kHz.

        Returns:
            AUDIO [B, 320 G].
        """
        blocks = audio.reshape(audio.shape[0], -1, _DECIMATION).transpose(1, 2)
        low = functional.conv1d(blocks, self.down, padding=_REACH)
        low = functional.conv1d(low, self.up, padding=_REACH).transpose(1, 2)
        return audio - low.reshape(audio.shape[0], -1)


class SpareSettings(nn.Module):
    """Hands on the audio of a voice that lacks pitch or an index, and reads what only those need.

    All voices take the same inputs, and Triton refuses an ensemble with an input that no step reads.
    """

    def forward(
        self,
        audio: Tensor,
        index_rate: Tensor,
        protect: Tensor,
        pitch_shift: Tensor,
        anchor_frame: Tensor,
        anchor_phase: Tensor,
    ) -> Tensor:
        """Returns AUDIO [B, 320 G] as it came; the settings, [B, 1] each, change nothing."""
        unread = index_rate + protect + pitch_shift + anchor_frame.to(torch.float32) + anchor_phase
        return audio + 0.0 * unread


class MixLoudness(nn.Module):
    """Gives the converted audio some of the source's loudness contour, and bends peaks beyond full scale.

    As RVC has it: the RMS over one second, every half second, drawn out in straight lines. The points lie at
    multiples of half a second of the recording, whatever window is converted. RVC then divides a recording by
    its peak; what every window can do alike is bend the peaks, as the base voice does.

    Args:
        hop: samples of the converted audio per F0 frame.
    """

    def __init__(self, hop: int) -> None:
        super().__init__()
        self.hop = hop

    def forward(self, audio: Tensor, source: Tensor, rms_mix: Tensor, first_frame: Tensor) -> Tensor:
        """Scales a batch.

        Args:
            audio: AUDIO [B, F hop] as synthesised.
            source: SOURCE [B, 160 F] behind the high-pass, 16 kHz.
            rms_mix: RMS_MIX [B, 1] in [0, 1]; 1 keeps the converted audio's own loudness.
            first_frame: FIRST_FRAME [B, 1] int64.

        Returns:
            MIXED_AUDIO [B, F hop] in [-1, 1].
        """
        wanted = _contour(source, FRAME, first_frame)
        own = _contour(audio, self.hop, first_frame)
        within = torch.arange(self.hop, dtype=torch.float32, device=audio.device) / self.hop
        wanted, own = (
            line[:, :-1, None] + (line[:, 1:, None] - line[:, :-1, None]) * within for line in (wanted, own)
        )
        share = 1.0 - rms_mix.unsqueeze(2)
        gain = torch.pow(wanted, share) * torch.pow(own.clamp(min=_RMS_FLOOR), -share)
        return limit(audio * gain.reshape(audio.shape[0], -1))


def _contour(audio: Tensor, hop: int, first_frame: Tensor) -> Tensor:
    """RMS at the start of every frame and the end of the last, [B, F + 1], in lines between half seconds."""
    batch, frames = audio.shape[0], audio.shape[1] // hop
    power = audio.reshape(batch, frames, hop).square().mean(dim=2)
    reach = _RMS_REACH_FRAMES
    padded = functional.pad(power, (reach, reach)).unsqueeze(1)
    rms = torch.sqrt(functional.avg_pool1d(padded, 2 * reach, stride=1)[:, 0])
    position = first_frame + torch.arange(frames + 1, dtype=torch.int64, device=audio.device)
    past = torch.remainder(position, RMS_HOP_FRAMES)
    before = position - past - first_frame
    first, last = torch.zeros_like(before), torch.full_like(before, frames)
    left, right = (
        # By tensors and not by clamp: TensorRT clips no integers.
        torch.gather(rms, 1, (before + step).maximum(first).minimum(last))
        for step in (0, RMS_HOP_FRAMES)
    )
    way = past.to(torch.float32) / RMS_HOP_FRAMES
    return left + (right - left) * way


class TrimToSource(nn.Module):
    """Drops what padding added: as many seconds as the source had, sample n at the time of the source's.

    Args:
        sample_rate: of the converted audio, Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate

    def forward(self, audio: Tensor, source_audio: Tensor) -> Tensor:
        """Cuts a batch.

        Args:
            audio: MIXED_AUDIO [B, 320 G rate / 16000].
            source_audio: SOURCE_AUDIO [B, T]; only its length counts.

        Returns:
            CONVERTED_AUDIO [B, ceil(T rate / 16000)].
        """
        length = (source_audio.shape[1] * self.sample_rate + SOURCE_RATE - 1) // SOURCE_RATE
        return audio[:, :length]
