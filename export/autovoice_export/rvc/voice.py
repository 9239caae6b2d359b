"""A voice as one model of the repository: a synthesizer, its noise, and what the ensemble feeds it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autovoice_export.rvc import pitch
from autovoice_export.rvc.noise import prior_noise_table, rows_at, source_noise_table
from autovoice_export.rvc.synthesizer import Synthesizer


class PlainVoice(nn.Module):
    """A voice that knows no pitch.

    Args:
        synthesizer: weights folded, in evaluation mode.
    """

    prior_noise: Tensor

    def __init__(self, synthesizer: Synthesizer) -> None:
        super().__init__()
        self.synthesizer = synthesizer
        self.register_buffer("prior_noise", prior_noise_table(synthesizer.config.latent), persistent=False)

    def forward(self, content: Tensor, speaker_id: Tensor, first_frame: Tensor) -> tuple[Tensor, Tensor]:
        """Synthesises a batch.

        Args:
            content: CONTENT [B, G, C] at 50 Hz.
            speaker_id: SPEAKER_ID [B, 1] int64.
            first_frame: FIRST_FRAME [B, 1] int64: place of the first frame in the recording.

        Returns:
            AUDIO [B, 2 G hop] in [-1, 1] and F0 [B, 2 G], all 0.
        """
        phone = self._phone(content)
        noise = rows_at(self.prior_noise, first_frame, phone.shape[1])
        audio = self.synthesizer(phone, None, None, speaker_id, noise, None)
        return audio, torch.zeros_like(noise[..., 0])

    def _phone(self, content: Tensor) -> Tensor:
        """Content behind its projection, doubled to F0 frames: nearest upsampling commutes with it."""
        layer = self.synthesizer.enc_p.emb_phone
        projected = layer(content).unsqueeze(2)
        batch, steps, _, channels = projected.shape
        result: Tensor = projected.expand(-1, -1, 2, -1).reshape(batch, 2 * steps, channels)
        return result


class PitchedVoice(PlainVoice):
    """A voice with pitch.

    Args:
        synthesizer: weights folded, in evaluation mode.
        bridges_gaps: whether unvoiced F0 is interpolated, as for checkpoints trained that way; else it is 0.
    """

    source_noise: Tensor

    def __init__(self, synthesizer: Synthesizer, *, bridges_gaps: bool) -> None:
        super().__init__(synthesizer)
        self.bridges_gaps = bridges_gaps
        self.register_buffer("source_noise", source_noise_table(synthesizer.config.hop), persistent=False)

    def forward(  # type: ignore[override]
        self,
        content: Tensor,
        f0: Tensor,
        pitch_shift: Tensor,
        anchor_frame: Tensor,
        anchor_phase: Tensor,
        speaker_id: Tensor,
        first_frame: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Synthesises a batch.

        Args:
            content: CONTENT [B, G, C] at 50 Hz.
            f0: MEASURED_F0 [B, 2 G] in Hz, 0 = unvoiced.
            pitch_shift: PITCH_SHIFT [B, 1] in semitones.
            anchor_frame: ANCHOR_FRAME [B, 1] int64: index of the frame whose phase is known.
            anchor_phase: ANCHOR_PHASE [B, 1] in cycles, at the start of that frame.
            speaker_id: SPEAKER_ID [B, 1] int64.
            first_frame: FIRST_FRAME [B, 1] int64: place of the first frame in the recording.

        Returns:
            AUDIO [B, 2 G hop] in [-1, 1] and F0 [B, 2 G] in Hz as the source used it, 0 = unvoiced.
        """
        place = pitch_shift, anchor_frame, anchor_phase, speaker_id, first_frame
        return self._render(self._phone(content), f0, *place)

    def _render(
        self,
        phone: Tensor,
        measured: Tensor,
        pitch_shift: Tensor,
        anchor_frame: Tensor,
        anchor_phase: Tensor,
        speaker_id: Tensor,
        first_frame: Tensor,
    ) -> tuple[Tensor, Tensor]:
        f0 = pitch.shifted(pitch.bridged(measured) if self.bridges_gaps else measured, pitch_shift)
        phase = pitch.start_phase(f0, anchor_frame, anchor_phase)
        batch, frames = f0.shape
        prior_noise = rows_at(self.prior_noise, first_frame, frames)
        source_noise = rows_at(self.source_noise, first_frame, frames).reshape(batch, -1)
        return self.synthesizer(phone, f0, phase, speaker_id, prior_noise, source_noise), f0


class IndexedVoice(PitchedVoice):
    """A voice with pitch and an index."""

    def forward(  # type: ignore[override]
        self,
        content: Tensor,
        retrieved: Tensor,
        protect: Tensor,
        f0: Tensor,
        pitch_shift: Tensor,
        anchor_frame: Tensor,
        anchor_phase: Tensor,
        speaker_id: Tensor,
        first_frame: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Synthesises a batch.

        Consonants and breaths are protected: unvoiced frames mix in the content as it was. They are those of
        the measured pitch: a bridged gap stays protected.

        Args:
            content: CONTENT [B, G, C] at 50 Hz.
            retrieved: RETRIEVED [B, G, C], the content with the index blended in.
            protect: PROTECT [B, 1] in [0, 0.5]: share of what was retrieved in unvoiced frames; 0.5 is off.
            f0: like all that follows, as in `PitchedVoice`.
            pitch_shift: see there.
            anchor_frame: see there.
            anchor_phase: see there.
            speaker_id: see there.
            first_frame: see there.

        Returns:
            What `PitchedVoice` returns.
        """
        indexed, original = self._phone(retrieved), self._phone(content)
        share = torch.where((f0 < 1.0) & (protect < 0.5), protect, 1.0).unsqueeze(2)
        phone = share * indexed + (1.0 - share) * original
        return self._render(phone, f0, pitch_shift, anchor_frame, anchor_phase, speaker_id, first_frame)
