"""Alignment: what turns the causal stages into a conversion of whole recordings.

The stages run on whole frames and answer 600 samples late. ``PadSource`` appends the silence that pushes the
last samples out, and the zero states at which every recording starts; ``TrimOutput`` drops the delay, so that
sample n of the result belongs to sample n of the source.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autovoice_export.base.stages.timing import FEATURE_DELAY_FRAMES, LOOKAHEAD
from autovoice_plugins.geometry import HOP


class PadSource(nn.Module):
    """Pads recordings to whole frames plus the look-ahead and supplies the starting states.

    Args:
        content_state: floats in the state of the content encoder.
        pitch_state: floats in the state of the pitch extractor.
        synthesizer_state: floats in the state of the synthesizer.
    """

    def __init__(self, content_state: int, pitch_state: int, synthesizer_state: int) -> None:
        super().__init__()
        self.state_sizes = (content_state, pitch_state, synthesizer_state)

    def forward(self, source_audio: Tensor) -> tuple[Tensor, ...]:
        """Pads a batch of recordings of one length.

        Args:
            source_audio: SOURCE_AUDIO [B, T].

        Returns:
            AUDIO [B, 240 * ceil((T + 600) / 240)], then CONTENT_STATE, PITCH_STATE and SYNTHESIZER_STATE,
            all zeros.
        """
        batch, length = source_audio.shape
        silence = source_audio.new_zeros(batch, _padded_frames(length) * HOP - length)
        states = (source_audio.new_zeros(batch, size) for size in self.state_sizes)
        return (torch.cat([source_audio, silence], dim=1), *states)


class PadSourceWithF0(PadSource):
    """Pads recordings together with a pitch track measured elsewhere."""

    def forward(self, source_audio: Tensor, source_f0: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Pads a batch of recordings of one length and delays their pitch as the pitch extractor would.

        Args:
            source_audio: SOURCE_AUDIO [B, T].
            source_f0: SOURCE_F0 [B, ceil(T / 240)] in Hz at the frame centres, 0 = unvoiced.

        Returns:
            What `PadSource` returns, and F0 with one value for each frame of AUDIO.
        """
        batch, length = source_audio.shape
        delay = source_f0.new_zeros(batch, FEATURE_DELAY_FRAMES)
        # Two and a half frames of look-ahead make the padded audio two or three frames longer.
        f0 = torch.cat([delay, source_f0, source_f0.new_zeros(batch, 1)], dim=1)
        return (*super().forward(source_audio), f0[:, : _padded_frames(length)])


class TrimOutput(nn.Module):
    """Drops the look-ahead and the padding of converted recordings."""

    def forward(self, audio: Tensor, source_audio: Tensor) -> Tensor:
        """Cuts the converted audio to the source's length.

        Args:
            audio: AUDIO [B, T'], 600 samples late, at least T + 600 long.
            source_audio: SOURCE_AUDIO [B, T]; only its length counts.

        Returns:
            CONVERTED_AUDIO [B, T].
        """
        return audio[:, LOOKAHEAD : LOOKAHEAD + source_audio.shape[1]]


class PassAudio(nn.Module):
    """A stage that also hands on the audio it got, so that the next stage of an ensemble can wait for it.

    No two steps of our ensembles become ready at once. Triton up to 2.51 at least crashes when it refuses the
    first of two such steps, which a client can cause at will: a chunk of a sequence that never started.

    Args:
        stage: takes audio and a state.
    """

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, audio: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        """What the stage returns, and then AUDIO as it came."""
        return (*self.stage(audio, state), audio.clone())


def _padded_frames(length: int) -> int:
    return (length + LOOKAHEAD + HOP - 1) // HOP
