"""Losses on mel spectra, filters, speaker embeddings and phone posteriors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autovoice_export.base.stages.blocks import mel_filterbank
from autovoice_export.base.stages.mel import HIGH_HZ, MelAnalysis
from autovoice_export.base.stages.speaker_encoder import SpeakerEncoder
from autovoice_export.base.stages.synthesizer import envelope_to_bands
from autovoice_export.base.stages.voice_encoder import ReferenceEncoder
from autovoice_plugins.geometry import HOP, SAMPLE_RATE
from autovoice_plugins.spectral_synth.reference import band_frequencies

RESOLUTIONS = ((480, 40), (960, 80), (1920, 160))
MAGNITUDE_FLOOR = 1e-4
# Cosine above which two embeddings count as the same voice.
SAME_VOICE = 0.85
CONTRAST = 10.0
CONTRAST_WEIGHT = 0.5
# A pause counts so much in the distance of envelopes.
PAUSE_WEIGHT = 0.2
AUDIBLE_NEPERS = 5.0


class SpeakerLoss(nn.Module):
    """Distance of a result's speaker embedding to the target's, and its nearness to other speakers'.

    One minus the cosine to the target (speaker consistency loss; Casanova et al. 2022, YourTTS), plus the
    cross-entropy of picking the target among the source's own voice and the other targets of the batch
    (softmax form of GE2E; Wan et al. 2018). Spectral losses alone have their minimum at the average of the
    voices that a frame could belong to.
    """

    def __init__(self) -> None:
        super().__init__()
        # cuDNN goes back through an LSTM in training mode only; without dropout that changes nothing else.
        self.encoder = SpeakerEncoder.from_resemblyzer().requires_grad_(False).train()

    def forward(self, result: Tensor, target: Tensor, source: Tensor) -> Tensor:
        """Compares audio with identities.

        Args:
            result: [B, T >= 1.6 s].
            target: identity of the voice asked for, [B, 256].
            source: identity of the source, [B, 256].

        Returns:
            A scalar.
        """
        heard = self.encoder.embed_window(result)
        right = (heard * target).sum(dim=1, keepdim=True)
        wrong = torch.cat([(heard * source).sum(dim=1, keepdim=True), heard @ target.T], dim=1)
        # A voice that could as well be the target is no wrong answer.
        alike = torch.cat([(target * source).sum(dim=1, keepdim=True), target @ target.T], dim=1)
        scores = CONTRAST * torch.cat([right, wrong.masked_fill(alike > SAME_VOICE, -1.0)], dim=1)
        labels = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        contrast = nn.functional.cross_entropy(scores, labels)
        return 1.0 - right.mean() + CONTRAST_WEIGHT * contrast


class PhoneLoss(nn.Module):
    """Difference of the phones heard in a result and in its source: the words must stay.

    Kullback-Leibler divergence of the posteriors, from the source's to the result's. Where the target's own
    rendition lacks a sound, or has another one, the spectral loss follows it; this loss does not. The level
    says nothing, and the encoder that listens is not the one that the synthesizer is given.

    Args:
        encoder: trained and left as it is.
    """

    def __init__(self, encoder: ReferenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def logits(self, mel: Tensor) -> Tensor:
        """Log posteriors of the phones, [B, F, 41], of mel power [B, F, 80]."""
        return torch.log_softmax(self.encoder(mel)[1].float(), dim=2)

    def forward(self, result: Tensor, wanted: Tensor) -> Tensor:
        """Compares mel power [B, F, 80] with log posteriors [B, F, 41] of the same frames; nats a frame."""
        return (wanted.exp() * (wanted - self.logits(result))).sum(dim=2).mean()


class FilterLoss(nn.Module):
    """Distance of filters from the smooth log spectrum of the target, up to 8 kHz and to the target's
    Nyquist.

    What the two filters let through together is compared with the envelope of the target's frame, level
    included.

    Args:
        analysis: makes the envelopes.
        size: cosines of an envelope.
    """

    to_bands: Tensor
    hz: Tensor

    def __init__(self, analysis: MelAnalysis, size: int) -> None:
        super().__init__()
        self.analysis = analysis
        self.register_buffer("to_bands", envelope_to_bands(size), persistent=False)
        self.register_buffer("hz", torch.from_numpy(band_frequencies()).float(), persistent=False)

    def forward(
        self, harmonic: Tensor, noise: Tensor, target: Tensor, native_rate: Tensor, paired: Tensor
    ) -> Tensor:
        """Compares log magnitudes [B, F, 80] with mel power [B, F, 80] of the frames; nepers, a scalar."""
        log_magnitude, loudness = self.analysis.level_free(target)
        wanted = self.analysis.envelope(log_magnitude) @ self.to_bands + loudness.unsqueeze(2)
        found = 0.5 * torch.logaddexp(2.0 * harmonic, 2.0 * noise)
        audible = loudness > loudness.amax(dim=1, keepdim=True) - AUDIBLE_NEPERS
        frames = torch.where(audible, 1.0, PAUSE_WEIGHT) * paired.unsqueeze(1)
        heard = self.hz < torch.clamp(0.45 * native_rate, max=HIGH_HZ).unsqueeze(1)
        weight = frames.unsqueeze(2) * heard.unsqueeze(1)
        return ((found - wanted).abs() * weight).sum() / weight.sum().clamp(min=1.0)


class MelLoss(nn.Module):
    """Distance of mel magnitudes at three resolutions, in the logarithm and as they are.

    The short window sees the envelope, the long one the harmonics; several at once, as in Yamamoto et
    al. 2020 (Parallel WaveGAN). The logarithm hears the quiet parts as well as the loud ones; alone it
    settles for the median of what is uncertain, which is too quiet, so the plain magnitudes, relative to
    the target's, speak for the peaks. Bands above the Nyquist frequency of an item's recording are left
    out: a voice recorded at 16 kHz must not teach that voices have nothing above 8 kHz.
    """

    def __init__(self) -> None:
        super().__init__()
        for window, bands in RESOLUTIONS:
            self.register_buffer(f"window_{window}", torch.hann_window(window))
            self.register_buffer(
                f"bank_{window}", mel_filterbank(bands, 0.0, SAMPLE_RATE / 2, window, SAMPLE_RATE)
            )

    def forward(
        self, result: Tensor, target: Tensor, native_rate: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compares audio with audio.

        Args:
            result: [B, T].
            target: [B, T].
            native_rate: Hz at which the target was made, [B].
            weight: of each 10 ms frame, [B, F] with at least T / 240 frames.

        Returns:
            The weighted mean distance in natural-log magnitude and the relative distance in magnitude,
            two scalars.
        """
        logarithmic, relative = result.new_zeros(()), result.new_zeros(())
        for window, _ in RESOLUTIONS:
            bank = getattr(self, f"bank_{window}")
            # The upper edge of a band must lie below 95 % of the recording's Nyquist frequency.
            bins = torch.arange(bank.shape[0], device=bank.device).unsqueeze(1) * (bank > 0)
            upper = bins.max(dim=0).values * SAMPLE_RATE / window
            heard = (upper.unsqueeze(0) <= 0.475 * native_rate.unsqueeze(1)).float()
            first, second = (self._mel(audio, window, bank) for audio in (result, target))
            centres = torch.arange(first.shape[1], device=bank.device) * (window // 2) + window // 2
            importance = weight[:, centres // HOP].unsqueeze(2) * heard.unsqueeze(1)
            logs = (torch.log(first + MAGNITUDE_FLOOR) - torch.log(second + MAGNITUDE_FLOOR)).abs()
            logarithmic = logarithmic + (logs * importance).sum() / importance.sum()
            distance = ((first - second).abs() * importance).sum(dim=(1, 2))
            level = (second * importance).sum(dim=(1, 2))
            relative = relative + (distance / (level + MAGNITUDE_FLOOR)).mean()
        return logarithmic / len(RESOLUTIONS), relative / len(RESOLUTIONS)

    def _mel(self, audio: Tensor, window: int, bank: Tensor) -> Tensor:
        """Mel magnitude [B, frames, bands]."""
        shape = getattr(self, f"window_{window}")
        spectrum = torch.stft(audio, window, window // 2, window=shape, return_complex=True, center=False)
        power = spectrum.real.square() + spectrum.imag.square()
        return torch.matmul(torch.sqrt(power + 1e-10).transpose(1, 2) * (2.0 / window), bank)
