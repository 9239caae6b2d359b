"""Pitch extractor: the PitchYin op as a stage."""

from __future__ import annotations

from torch import Tensor, nn

from autovoice_plugins.geometry import PITCH_YIN_STATE_SIZE
from autovoice_plugins.pitch_yin.torch_op import pitch_yin


class PitchExtractor(nn.Module):
    """F0 and periodicity of audio, with the op's own state."""

    state_size = PITCH_YIN_STATE_SIZE

    def forward(self, audio: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Measures one chunk.

        Args:
            audio: AUDIO [B, 240 F], in [-1, 1], 24 kHz.
            state: STATE_IN [B, 960], zeros at the start.

        Returns:
            F0 [B, F] in Hz (0 = unvoiced), PERIODICITY [B, F] in [0, 1] and STATE_OUT. Index j holds
            frame j - 2.
        """
        return pitch_yin(audio, state)
