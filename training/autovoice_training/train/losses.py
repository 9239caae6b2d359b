"""Losses on mel spectra, spectral envelopes, speaker embeddings and phone posteriors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from autovoice_export.base.stages.blocks import mel_filterbank, mel_points
from autovoice_export.base.stages.mel import HIGH_HZ, LOW_HZ, MEL_BANDS, MelAnalysis
from autovoice_export.base.stages.speaker_encoder import SpeakerEncoder
from autovoice_export.base.stages.voice_encoder import PhoneClassifier
from autovoice_plugins.geometry import HOP, SAMPLE_RATE

RESOLUTIONS = ((480, 40), (960, 80), (1920, 160))
MAGNITUDE_FLOOR = 1e-4
# Cosine above which two embeddings count as the same voice.
SAME_VOICE = 0.85
# An altered voice is another one below this cosine to what it was made of.
ALTERED_VOICE = 0.97
CONTRAST = 10.0
CONTRAST_WEIGHT = 0.5
TOP_HZ = 7000.0
AUDIBLE_NEPERS = math.log(100.0)


class SpeakerLoss(nn.Module):
    """Distance of a result's speaker embedding to the target's, and its nearness to other speakers'.

    One minus the cosine to the target (speaker consistency loss; Casanova et al. 2022, YourTTS), plus the
    cross-entropy of picking the target among the source's own voice, the voice that the target was made of
    by altering it, and the other targets of the batch (softmax form of GE2E; Wan et al. 2018). Spectral
    losses alone have their minimum at the average of the voices that a frame could belong to.
    """

    def __init__(self) -> None:
        super().__init__()
        # cuDNN goes back through an LSTM in training mode only; without dropout that changes nothing else.
        self.encoder = SpeakerEncoder.from_resemblyzer().requires_grad_(False).train()

    @torch.no_grad()
    def altered_identity(self, identity: Tensor, sample: Tensor, altered: Tensor) -> Tensor:
        """Whose voice an altered one is.

        Args:
            identity: of the voice before, [B, 256].
            sample: a crop of it, [B, T >= 1.6 s].
            altered: the same crop, altered.

        Returns:
            The identity moved as that of the crop moved, [B, 256] of unit length: so it does not depend on
            what is said in one crop.
        """
        after, before = self.encoder.embed_window(torch.cat([altered, sample])).chunk(2)
        return nn.functional.normalize(torch.relu(identity + after - before), dim=1)

    def forward(self, result: Tensor, target: Tensor, source: Tensor, unaltered: Tensor) -> Tensor:
        """Compares audio with identities.

        Args:
            result: [B, T >= 1.6 s].
            target: identity of the voice asked for, [B, 256].
            source: identity of the source, [B, 256].
            unaltered: identity of the voice that the target was made of, [B, 256]; the target where it is
                nobody's alteration.

        Returns:
            A scalar.
        """
        heard = self.encoder.embed_window(result)
        right = (heard * target).sum(dim=1, keepdim=True)
        rivals = torch.stack([source, unaltered], dim=1)
        wrong = torch.cat([torch.einsum("bkd,bd->bk", rivals, heard), heard @ target.T], dim=1)
        # A voice that could as well be the target is no wrong answer; one made of it by altering it is.
        alike = torch.cat([torch.einsum("bkd,bd->bk", rivals, target), target @ target.T], dim=1)
        limit = torch.full_like(alike, SAME_VOICE)
        limit[:, 1] = ALTERED_VOICE
        scores = CONTRAST * torch.cat([right, wrong.masked_fill(alike > limit, -1.0)], dim=1)
        labels = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        contrast = nn.functional.cross_entropy(scores, labels)
        return 1.0 - right.mean() + CONTRAST_WEIGHT * contrast


class PhoneLoss(nn.Module):
    """Difference of the phone posteriors of a result and its source: the words must stay.

    Kullback-Leibler divergence of the posteriors, from the source's to the result's. Where the target's own
    rendition lacks a sound, or has another one, the spectral loss follows it; this loss does not.

    Args:
        classifier: of the voice encoder, trained and left as it is.
    """

    def __init__(self, classifier: PhoneClassifier) -> None:
        super().__init__()
        self.classifier = classifier.requires_grad_(False)

    def forward(self, result: Tensor, source: Tensor) -> Tensor:
        """Compares the mel power [B, F, 80] of result and source; nats a frame, a scalar."""
        with torch.no_grad():
            wanted = torch.log_softmax(self.classifier(source)[0].float(), dim=1)
        heard = torch.log_softmax(self.classifier(result)[0].float(), dim=1)
        return (wanted.exp() * (wanted - heard)).sum(dim=1).mean()


class EnvelopeLoss(nn.Module):
    """Distance of the spectral envelopes of a result and its target, akin to mel-cepstral distortion.

    Root mean square over mel bands of the difference of the smooth log spectra, level and pauses left out.
    The spectral losses also depend on harmonics and noise, which dominate them late in training; phones and
    voices differ in the envelope.

    Args:
        analysis: makes the envelopes.
    """

    heard: Tensor

    def __init__(self, analysis: MelAnalysis) -> None:
        super().__init__()
        self.analysis = analysis
        # The anti-alias filters of a recording say nothing about its speaker.
        centres = mel_points(MEL_BANDS + 2, LOW_HZ, HIGH_HZ)[1:-1]
        self.register_buffer("heard", (centres < TOP_HZ).float(), persistent=False)

    def forward(self, result: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Compares mel power [B, F, 80] of result and target, frames weighted [B, F]; nepers, a scalar."""
        wanted, loudness = self.analysis.level_free(target)
        found, _ = self.analysis.level_free(result)
        difference = self.analysis.envelope((found - wanted) * self.heard)[:, :, 1:]
        distance = torch.sqrt(difference.square().sum(dim=2) / MEL_BANDS + 1e-8)
        audible = loudness > loudness.amax(dim=1, keepdim=True) - AUDIBLE_NEPERS
        importance = weight * audible
        return (distance * importance).sum() / importance.sum().clamp(min=1.0)


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
