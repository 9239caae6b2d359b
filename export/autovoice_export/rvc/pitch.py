"""Pitch of the RVC family: trackers aligned to F0 frames, shifting, coarse pitch, phases of windows.

F0 frame i holds the pitch at sample 160 i of the 16 kHz source, as the checkpoints were trained, and drives
the output of samples 160 i to 160 (i + 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from autovoice_export.base.stages.hum_filter import HumFilter
from autovoice_export.rvc.geometry import F0_MAX, F0_MIN, FRAME, FRAMES_PER_SECOND, SOURCE_RATE
from autovoice_plugins.geometry import PHASE_GRID, PITCH_BLOCKS_OF_STATE
from autovoice_plugins.pitch_yin.torch_op import pitch_yin

COARSE_STEPS = 255
PITCH_SUBDIVISIONS = 2**18
"""F0 is kept to 1/2^18 Hz, as a float32 from 32 Hz on is by itself: phases can be added as integers."""

_STEPS_PER_CYCLE = PHASE_GRID
_YIN_DELAY_FRAMES = 2
_MAX_FRAME_BITS = 15
"""Gaps are bridged in requests of up to 2^15 frames, 5.5 minutes: more than a request may hold."""


class YinPitch(nn.Module):
    """F0 by the PitchYin op at 16 kHz without mains hum, its delay taken out, and the audio handed on.

    The op's frames describe the middle of a block two blocks ago; half a block of silence in front moves the
    middle onto the start of the frame.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hum_filter = HumFilter(SOURCE_RATE)

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Measures a batch.

        Args:
            audio: AUDIO [B, 320 G], 16 kHz.

        Returns:
            F0 [B, 2 G] in Hz, 0 = unvoiced, and PASSED_AUDIO, the same audio.
        """
        start = audio.new_zeros(audio.shape[0], self.hum_filter.state_size)
        filtered, _ = self.hum_filter(audio, start)
        shifted = functional.pad(filtered, (FRAME // 2, _YIN_DELAY_FRAMES * FRAME + FRAME // 2))
        past = audio.new_zeros(audio.shape[0], PITCH_BLOCKS_OF_STATE * FRAME)
        # The extra block that the half blocks add up to comes last and is not read.
        f0, _, _ = pitch_yin(shifted, past, sample_rate=SOURCE_RATE, hop=FRAME, f0_min=F0_MIN, f0_max=F0_MAX)
        return f0[:, _YIN_DELAY_FRAMES:-1], audio.clone()


def shifted(f0: Tensor, semitones: Tensor) -> Tensor:
    """Transposes F0 [B, F] by [B, 1] semitones, to a multiple of 1/2^18 Hz; unvoiced frames stay 0."""
    return torch.round(f0 * torch.exp2(semitones / 12.0) * PITCH_SUBDIVISIONS) / PITCH_SUBDIVISIONS


def coarse(f0: Tensor) -> Tensor:
    """Pitch class of every frame: 1 for unvoiced, 1..255 on the mel scale from 50 to 1100 Hz.

    Args:
        f0: [B, F] in Hz.

    Returns:
        [B, F] int64, rounded half to even.
    """
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (F0_MIN, F0_MAX))
    mel = 1127.0 * torch.log(1.0 + f0 / 700.0)
    step = (mel - low) * ((COARSE_STEPS - 1) / (high - low)) + 1.0
    step = torch.where(f0 > 0, step, 1.0).clamp(1.0, float(COARSE_STEPS))
    return torch.round(step).to(torch.int64)


def bridged(f0: Tensor) -> Tensor:
    """Draws straight lines through unvoiced gaps, and holds the pitch at both ends; all unvoiced stays 0.

    Args:
        f0: [B, F] in Hz, 0 = unvoiced.
    """
    frames = f0.shape[1]
    index = torch.arange(frames, dtype=torch.float32, device=f0.device)
    far = float(2**_MAX_FRAME_BITS)
    voiced = f0 > 0
    before = _running_max(torch.where(voiced, index, -far))
    after = -torch.flip(_running_max(torch.flip(torch.where(voiced, -index, -far), [1])), [1])
    start, end = before >= 0, after < far
    left = torch.gather(f0, 1, torch.where(start, before, 0.0).to(torch.int64))
    right = torch.gather(f0, 1, torch.where(end, after, 0.0).to(torch.int64))
    way = (index - before) / (after - before).clamp(min=1.0)
    line = torch.where(start & end, left + (right - left) * way, torch.where(start, left, right))
    return torch.where(start | end, line, f0)


def _running_max(values: Tensor) -> Tensor:
    """Largest value up to every place, by doubling: CumMax exists in no ONNX."""
    frames = values.shape[1]
    for bit in range(_MAX_FRAME_BITS):
        earlier = functional.pad(values, (2**bit, 0), value=-float(2**_MAX_FRAME_BITS))[:, :frames]
        values = torch.maximum(values, earlier)
    return values


def start_phase(f0: Tensor, anchor_frame: Tensor, anchor_phase: Tensor) -> Tensor:
    """Phase at the start of a window whose phase is known at one of its frames.

    Every frame advances the phase by F0 / 100 cycles, rounded to 2^-24 (`HarmonicSource`). F0 is a multiple
    of 2^-18 Hz, so that number is found and added up in integers, exactly and in any runtime.

    Args:
        f0: [B, F] in Hz, as `shifted` leaves it.
        anchor_frame: ANCHOR_FRAME [B, 1] int64.
        anchor_phase: ANCHOR_PHASE [B, 1] in cycles, a multiple of 2^-24 in [0, 1).

    Returns:
        [B, 1] in cycles, in [0, 1).
    """
    subdivisions = (f0 * PITCH_SUBDIVISIONS).to(torch.int64)
    # round(F0 / 100 * 2^24) = round(subdivisions * 64 / 100); the fraction is never one half.
    steps_per_subdivision = _STEPS_PER_CYCLE // PITCH_SUBDIVISIONS
    numerator = 2 * steps_per_subdivision * subdivisions + FRAMES_PER_SECOND
    steps = torch.div(numerator, 2 * FRAMES_PER_SECOND, rounding_mode="trunc")
    frames = torch.arange(f0.shape[1], dtype=torch.int64, device=f0.device)
    before = torch.where(frames < anchor_frame, steps, 0).sum(dim=1, keepdim=True)
    anchor = (anchor_phase * _STEPS_PER_CYCLE).to(torch.int64)
    return torch.remainder(anchor - before, _STEPS_PER_CYCLE).to(torch.float32) / _STEPS_PER_CYCLE
