"""Synthesizer: content, pitch and a voice to audio, by a filtered pulse train and filtered noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autovoice_export.base.stages.blocks import FrameConvolution, GatedBlock, StateReader, mel_points
from autovoice_export.base.stages.mel import ENVELOPE_SIZE, HIGH_HZ, LOW_HZ, MEL_BANDS, cosine_basis
from autovoice_export.base.stages.voice import IDENTITY_SIZE, PHONES, Voice, unpack
from autovoice_plugins.geometry import (
    BANDS,
    FLOOR,
    HARMONIC_SOURCE_STATE_SIZE,
    HOP,
    SPECTRAL_SYNTH_STATE_SIZE,
)
from autovoice_plugins.harmonic_source.torch_op import harmonic_source
from autovoice_plugins.spectral_synth.reference import band_frequencies
from autovoice_plugins.spectral_synth.torch_op import spectral_synth

NOISE_BLOCKS = 256
NOISE_SEED = 20240229
# 1 / e^30 is far below the filters' floor: an unvoiced frame has no harmonics at all.
UNVOICED_ATTENUATION = 30.0
# Shares of a reference (0.01 is a tenth of a second in ten) that what is known of all voices counts for.
PHONE_PRIOR = 0.004
VOICE_PRIOR = 0.02
# Factors by which the formants of the source can be moved, five or six per cent apart.
FORMANT_FACTORS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.06, 1.12, 1.18, 1.25)
# Where training starts, nine tenths of the envelope stay where they are.
UNMOVED = 4.0
# No envelope of a voice is further from the average in any cosine (99.9 % are within 5.3): it bounds what a
# vector that is no embedding can ask for.
MOST_UNUSUAL = 6.0
# Of full scale; from here on peaks are bent.
KNEE = 0.9


@dataclass(frozen=True)
class SynthesizerConfig:
    """Shape of the synthesizer.

    Attributes:
        content_size: learnt values of CONTENT.
        envelope_size: cosine coefficients of the source's envelope, the rest of CONTENT.
        channels: width of the gated blocks.
        dilations: one block each.
        condition_size: width of the projected speaker embedding that every block sees.
        formant_factors: factors by which the formants of the source can be moved, 1 among them.
    """

    content_size: int = 96
    envelope_size: int = ENVELOPE_SIZE
    channels: int = 192
    dilations: tuple[int, ...] = field(default=(1, 2, 4, 8, 1, 2))
    condition_size: int = 128
    formant_factors: tuple[float, ...] = FORMANT_FACTORS


def noise_table() -> Tensor:
    """Unit-variance Gaussian noise, [256, 240]: 2.56 s, the same on every machine.

    Drawn in NumPy's legacy generator, whose stream is frozen, because TensorRT ignores the seed of a
    random op and because chunking must not change the noise.
    """
    values = np.random.RandomState(NOISE_SEED).standard_normal((NOISE_BLOCKS, HOP))
    return torch.from_numpy(values.astype(np.float32))


def envelope_to_bands(size: int) -> Tensor:
    """Matrix [size, BANDS] from cosine coefficients to log magnitude at the points of a filter.

    Linear on the mel scale; held outside of the analysed band.
    """
    bands = np.asarray(mel_points(MEL_BANDS + 2, LOW_HZ, HIGH_HZ)[1:-1])
    place = np.interp(band_frequencies(), bands, np.arange(MEL_BANDS))
    return cosine_basis(MEL_BANDS, size).T @ _interpolation(place)


def formant_shifts(size: int, factors: tuple[float, ...]) -> Tensor:
    """Matrices side by side, [size, factors * size], that move envelopes along the frequency axis.

    The cosines of an envelope become those of the same with its formants moved by each factor, held at the
    edges of the analysed band.
    """
    edges = np.asarray(mel_points(MEL_BANDS + 2, LOW_HZ, HIGH_HZ))
    centres = edges[1:-1]
    basis = cosine_basis(MEL_BANDS, size)
    places = (np.interp(centres / factor, centres, np.arange(MEL_BANDS)) for factor in factors)
    return torch.cat([basis.T @ _interpolation(place) @ basis for place in places], dim=1)


def _interpolation(place: NDArray[np.float64]) -> Tensor:
    """Matrix [MEL_BANDS, points] that reads values of the bands linearly at fractional places [points]."""
    weight = np.maximum(0.0, 1.0 - np.abs(place[None, :] - np.arange(MEL_BANDS)[:, None]))
    return torch.from_numpy(weight).float()


def limit(audio: Tensor) -> Tensor:
    """Keeps audio of any level within [-1, 1]: as it is up to KNEE, from there on ever less steep.

    An octave down has half the pulses for the same power, and so higher ones.
    """
    plain = audio.clamp(-KNEE, KNEE)
    return plain + (1.0 - KNEE) * torch.tanh((audio - plain) / (1.0 - KNEE))


class Synthesizer(nn.Module):
    """Gated causal convolutions make of two envelopes a harmonic and a noise filter per frame.

    One is the source's own, which knows every detail of what is said; the other the target's, from its
    reference: the mean envelope of each phone, weighted by how much the content is that phone. The network
    says how far to move the source's formants (a soft choice among factors: vocal tract length
    normalisation, Jaitly & Hinton 2013, learnt per frame), how much of each envelope to take, cosine by
    cosine, and what to correct.

    The filters are applied to a pulse train that has F0's phase and to a fixed noise (harmonic plus
    noise model; Serra & Smith 1990, differentiable form Engel et al. 2020). The loudness of the source
    is added to both filters, so that level passes through and silence stays silent.
    """

    noise: Tensor
    average_voice: Tensor
    shifts: Tensor

    def __init__(self, config: SynthesizerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SynthesizerConfig()
        self.register_buffer("noise", noise_table(), persistent=False)
        # The mean envelope of each phone over the voices heard in training; what a reference lacks.
        self.register_buffer("average_voice", torch.zeros(PHONES, config.envelope_size))
        self.phones = FrameConvolution(config.content_size, PHONES, 1)
        self.embedding = nn.Sequential(
            nn.Linear(IDENTITY_SIZE + config.envelope_size, config.condition_size), nn.SiLU(),
            nn.Linear(config.condition_size, config.condition_size), nn.SiLU(),
        )  # fmt: skip
        self.input = FrameConvolution(config.content_size + 3 + 2 * config.envelope_size, config.channels, 1)
        blocks = [
            GatedBlock(config.channels, dilation, config.condition_size) for dilation in config.dilations
        ]
        self.blocks = nn.ModuleList(blocks)
        self.hidden = FrameConvolution(config.channels, config.channels, 1)
        self.correction = FrameConvolution(config.channels, 2 * BANDS, 1)
        nn.init.normal_(self.correction.weight, std=0.01)
        factors = config.formant_factors
        self.register_buffer("shifts", formant_shifts(config.envelope_size, factors), persistent=False)
        self.shift = FrameConvolution(config.channels, len(factors), 1)
        self.share = FrameConvolution(config.channels, config.envelope_size, 1)
        for layer in (self.shift, self.share):
            nn.init.normal_(layer.weight, std=0.01)
        self.shift.bias = nn.Parameter(UNMOVED * torch.tensor([float(f == 1.0) for f in factors]))
        self.share.bias = nn.Parameter(torch.zeros(config.envelope_size))
        half = 0.5 * envelope_to_bands(config.envelope_size)
        # Both filters begin half-way between the source's envelope and the target's.
        self.envelopes = FrameConvolution(2 * config.envelope_size, 2 * BANDS, 1, bias=False)
        self.envelopes.weight = nn.Parameter(half.repeat(2, 2).T.unsqueeze(2).clone())
        # A plausible start: harmonics as loud as the source, noise 13 dB under them.
        self.correction.bias = nn.Parameter(
            torch.cat([torch.full((BANDS,), 0.0), torch.full((BANDS,), -1.5)])
        )
        self.filter_state = 1 + HARMONIC_SOURCE_STATE_SIZE + SPECTRAL_SYNTH_STATE_SIZE
        self.state_size = self.filter_state + sum(block.state_size for block in blocks)

    def classify(self, content: Tensor) -> Tensor:
        """Logits of the phones, [B, F, 41], of CONTENT [B, F, C]."""
        logits: Tensor = self.phones(nn.functional.silu(content[:, :, : self.config.content_size]))
        return logits

    def phone_envelopes(self, voice: Voice) -> tuple[Tensor, Tensor]:
        """How a voice says each phone.

        Returns:
            Its envelope of each phone [B, 41, 24]: the mean over the reference, drawn towards the average
            voice moved by the mean deviation, the more so the less of the phone the reference has; and that
            deviation [B, 24].
        """
        shares = voice.shares.unsqueeze(2)
        beyond = voice.sums - shares * self.average_voice
        # A pause, the first phone, has the spectrum of the recording's background.
        total = shares[:, 1:].sum(dim=1) + VOICE_PRIOR
        deviation = (beyond[:, 1:].sum(dim=1) / total).clamp(-MOST_UNUSUAL, MOST_UNUSUAL)
        expected = deviation.unsqueeze(1)
        own = (beyond - shares * expected) / (shares + PHONE_PRIOR)
        return self.average_voice + expected + own.clamp(-MOST_UNUSUAL, MOST_UNUSUAL), deviation

    def filters(
        self,
        content: Tensor,
        loudness: Tensor,
        f0: Tensor,
        periodicity: Tensor,
        embedding: Tensor,
        state: StateReader,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Log-magnitude filters [B, F, 80] of harmonics and noise, and the new states of the blocks."""
        voice = unpack(embedding)
        phone_envelopes, deviation = self.phone_envelopes(voice)
        target = torch.matmul(torch.softmax(self.classify(content), dim=2), phone_envelopes)
        envelopes = torch.cat([content[:, :, self.config.content_size :], target], dim=2)
        voiced = (f0 > 0).to(f0.dtype)
        octave = voiced * torch.log2(f0.clamp(min=1.0) / 200.0)
        pitch = torch.stack([octave, voiced, periodicity], dim=2)
        x = self.input(torch.cat([content[:, :, : self.config.content_size], pitch, envelopes], dim=2))
        condition = self.embedding(torch.cat([voice.identity * (IDENTITY_SIZE**0.5), deviation], dim=1))
        states = []
        for block in self.blocks:
            x, past = block(x, state, condition)
            states.append(past)
        hidden = nn.functional.silu(self.hidden(x))
        x = self.correction(hidden) + self.envelopes(self.mixture(hidden, envelopes))
        harmonic, noise = (x + loudness.unsqueeze(2)).chunk(2, dim=2)
        harmonic = harmonic + UNVOICED_ATTENUATION * (voiced - 1.0).unsqueeze(2)
        return harmonic.clamp(min=FLOOR), noise.clamp(min=FLOOR), states

    def mixture(self, hidden: Tensor, envelopes: Tensor) -> Tensor:
        """Both envelopes [B, F, 2 * 24], the source's with its formants moved, each times twice its share."""
        size = self.config.envelope_size
        source, target = torch.split(envelopes, size, dim=2)
        choices = torch.matmul(source, self.shifts)
        choices = choices.reshape(choices.shape[0], -1, len(self.config.formant_factors), size)
        moved = (torch.softmax(self.shift(hidden), dim=2).unsqueeze(3) * choices).sum(dim=2)
        share = torch.sigmoid(self.share(hidden))
        return torch.cat([2.0 * share * moved, 2.0 * (1.0 - share) * target], dim=2)

    def render(self, f0: Tensor, harmonic: Tensor, noise: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Audio [B, 240 F] of F0 and filters, and the new ``past`` [B, filter_state]."""
        reader = StateReader(past)
        position = reader.take(1)
        excitation, source_state = harmonic_source(f0, reader.take(HARMONIC_SOURCE_STATE_SIZE))
        rows = torch.remainder(position + torch.arange(f0.shape[1], device=f0.device), NOISE_BLOCKS)
        hiss = self.noise[rows.to(torch.int64)].reshape(f0.shape[0], -1)
        audio, synth_state = spectral_synth(
            excitation, hiss, harmonic, noise, reader.take(SPECTRAL_SYNTH_STATE_SIZE)
        )
        position = torch.remainder(position + f0.shape[1], NOISE_BLOCKS)
        return limit(audio), torch.cat([position, source_state, synth_state], dim=1)

    def forward(
        self,
        content: Tensor,
        loudness: Tensor,
        f0: Tensor,
        periodicity: Tensor,
        embedding: Tensor,
        pitch_shift: Tensor,
        state: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Synthesises one chunk.

        Args:
            content: CONTENT [B, F, C].
            loudness: LOUDNESS [B, F], natural log of RMS.
            f0: F0 [B, F] in Hz, 0 = unvoiced.
            periodicity: PERIODICITY [B, F] in [0, 1].
            embedding: EMBEDDING [B, 1282], unit length.
            pitch_shift: PITCH_SHIFT [B, 1] in semitones.
            state: STATE_IN [B, state_size], zeros at the start.

        Returns:
            AUDIO [B, 240 F] in [-1, 1], which is 600 samples late, and STATE_OUT.
        """
        reader = StateReader(state)
        past = reader.take(self.filter_state)
        f0 = f0 * torch.exp2(pitch_shift / 12.0)
        harmonic, noise, states = self.filters(content, loudness, f0, periodicity, embedding, reader)
        audio, past = self.render(f0, harmonic, noise, past)
        return audio, torch.cat([past, *states], dim=1)
