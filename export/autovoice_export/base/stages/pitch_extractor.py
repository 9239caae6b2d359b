"""Pitch extractor: the PitchYin op as a stage, and a rule against leaps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autovoice_plugins.geometry import PITCH_YIN_STATE_SIZE
from autovoice_plugins.pitch_yin.torch_op import pitch_yin

MEMORY_FRAMES = 5
LARGEST_LEAP = 4.0 / 3.0
CERTAIN_PERIODICITY = 0.9


class PitchExtractor(nn.Module):
    """F0 and periodicity of audio, with the op's own state and the last F0 values.

    At the end of a voiced stretch, where the op's window holds little of it, the op often answers with a
    multiple of the period. So a frame that is not certainly periodic, and more than a fourth off the median
    of the five frames before, counts as unvoiced; this needs three of them to be voiced, and no look-ahead.
    To hold the median instead was worse for the melody that is heard: pitch falls at such ends.
    """

    state_size = PITCH_YIN_STATE_SIZE + MEMORY_FRAMES

    def forward(self, audio: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Measures one chunk.

        Args:
            audio: AUDIO [B, 240 F], in [-1, 1], 24 kHz.
            state: STATE_IN [B, 1445], zeros at the start.

        Returns:
            F0 [B, F] in Hz (0 = unvoiced), PERIODICITY [B, F] in [0, 1] and STATE_OUT. Index j holds
            frame j - 2.
        """
        past, memory = torch.split(state, [PITCH_YIN_STATE_SIZE, MEMORY_FRAMES], dim=1)
        f0, periodicity, past = pitch_yin(audio, past)
        heard = torch.cat([memory, f0], dim=1)
        memory = heard[:, -MEMORY_FRAMES:]
        return without_leaps(heard, periodicity), periodicity, torch.cat([past, memory], dim=1)


def without_leaps(heard: Tensor, periodicity: Tensor) -> Tensor:
    """Leaves out uncertain leaps from the median of the five frames before.

    Args:
        heard: F0 in Hz, 0 = unvoiced, five frames of the past first, [B, F + 5].
        periodicity: of the frames behind those, [B, F].

    Returns:
        F0 [B, F].
    """
    frames = periodicity.shape[1]
    a, b, c, d, e, f0 = (heard[:, start : start + frames] for start in range(MEMORY_FRAMES + 1))
    low = torch.maximum(torch.minimum(a, b), torch.minimum(c, d))
    high = torch.minimum(torch.maximum(a, b), torch.maximum(c, d))
    # Of five values the median is that of the fifth and the two middle ones of the others.
    median = torch.maximum(torch.minimum(low, high), torch.minimum(torch.maximum(low, high), e))
    leap = torch.logical_or(f0 * LARGEST_LEAP < median, f0 > median * LARGEST_LEAP)
    voiced = torch.logical_and(f0 > 0, median > 0)
    uncertain = torch.logical_and(voiced, periodicity < CERTAIN_PERIODICITY)
    return torch.where(torch.logical_and(leap, uncertain), torch.zeros_like(f0), f0)
