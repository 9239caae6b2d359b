"""Synthesizer: content, pitch and a voice to audio, by a filtered pulse train and filtered noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autovoice_export.base.stages.blocks import FrameConvolution, GatedBlock, StateReader, mel_points
from autovoice_export.base.stages.content_encoder import split_content
from autovoice_export.base.stages.mel import ENVELOPE_SIZE, HIGH_HZ, LOW_HZ, MEL_BANDS, cosine_basis
from autovoice_export.base.stages.voice import IDENTITY_SIZE, Voice, unpack
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
# Frames over which the mean difference of target and source is taken, and those that no difference counts
# for.
MEMORY_FRAMES = 1000
PRIOR_FRAMES = 20.0
# No envelope of a voice is further from the average in any cosine; it bounds what a vector that is no
# embedding can ask for.
LARGEST_COSINE = 40.0
# Points of the correction above the analysed band.
HIGH_POINTS = 6
# Power of the noise over all power in voiced frames of clear speech, by frequency in Hz, where training
# starts.
NOISE_SHARES = {0: 0.02, 1000: 0.03, 2000: 0.06, 3000: 0.12, 4000: 0.2, 6000: 0.4, 8000: 0.6, 12000: 0.8}
# Of the comparison of keys: about the three most similar frames count. Spectral losses would blur it.
SHARPNESS = 40.0
# Of full scale; from here on peaks are bent.
KNEE = 0.9


@dataclass(frozen=True)
class SynthesizerConfig:
    """Shape of the synthesizer.

    Attributes:
        content_size: learnt values of CONTENT.
        envelope_size: cosine coefficients of envelopes.
        channels: width of the gated blocks.
        dilations: one block each.
        condition_size: width of the projected voice that every block sees.
    """

    content_size: int = 96
    envelope_size: int = ENVELOPE_SIZE
    channels: int = 192
    dilations: tuple[int, ...] = field(default=(1, 2, 4, 8, 1, 2, 4, 8))
    condition_size: int = 128


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


def correction_basis(size: int) -> Tensor:
    """Matrix [size + HIGH_POINTS, BANDS] of what a correction of a filter is made of.

    The cosines of an envelope, and above the analysed band, of which the envelope says nothing, values that
    are interpolated linearly; they start from what the cosines give at its upper edge.
    """
    hz = band_frequencies()
    knots = np.linspace(np.searchsorted(hz, HIGH_HZ) - 1, BANDS - 1, HIGH_POINTS + 1)
    points = np.eye(HIGH_POINTS + 1)[1:]
    high = np.stack([np.interp(np.arange(BANDS), knots, point) for point in points])
    return torch.cat([envelope_to_bands(size), torch.from_numpy(high).float()])


def noise_attenuation() -> Tensor:
    """Log magnitude [2, BANDS] of harmonics and noise over all of it in voiced frames, see NOISE_SHARES."""
    share = np.interp(band_frequencies(), list(NOISE_SHARES), list(NOISE_SHARES.values()))
    return torch.from_numpy(0.5 * np.log(np.stack([1.0 - share, share]))).float()


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

    One is the source's own, moved by the mean difference of the target to it: it has every detail of what is
    said. The other is the target's, read from the frames of its reference whose keys resemble the source's
    key (scaled dot-product attention; Vaswani et al. 2017). The network says how much of each to take,
    cosine by cosine, and what to correct.

    The filters are applied to a pulse train that has F0's phase and to a fixed noise (harmonic plus
    noise model; Serra & Smith 1990, differentiable form Engel et al. 2020). The loudness of the source
    is added to both filters, so that level passes through and silence stays silent.
    """

    noise: Tensor
    to_bands: Tensor
    basis: Tensor
    start: Tensor

    def __init__(self, config: SynthesizerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SynthesizerConfig()
        size = config.envelope_size
        self.register_buffer("noise", noise_table(), persistent=False)
        self.register_buffer("to_bands", envelope_to_bands(size), persistent=False)
        self.register_buffer("basis", correction_basis(size), persistent=False)
        self.register_buffer("start", noise_attenuation(), persistent=False)
        self.embedding = nn.Sequential(
            nn.Linear(IDENTITY_SIZE + size, config.condition_size), nn.SiLU(),
            nn.Linear(config.condition_size, config.condition_size), nn.SiLU(),
        )  # fmt: skip
        self.input = FrameConvolution(config.content_size + 3 + 3 * size, config.channels, 1)
        blocks = [
            GatedBlock(config.channels, dilation, config.condition_size) for dilation in config.dilations
        ]
        self.blocks = nn.ModuleList(blocks)
        self.hidden = FrameConvolution(config.channels, config.channels, 1)
        self.share = FrameConvolution(config.channels, size, 1)
        self.correction = FrameConvolution(config.channels, 2 * self.basis.shape[0], 1)
        for layer in (self.share, self.correction):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.memory_size = 1 + size
        self.filter_state = 1 + HARMONIC_SOURCE_STATE_SIZE + SPECTRAL_SYNTH_STATE_SIZE
        self.state_size = self.filter_state + self.memory_size + sum(block.state_size for block in blocks)

    def look_up(self, key: Tensor, voice: Voice) -> Tensor:
        """The target's envelope of frames with these keys, [B, F, 40] for [B, F, 24]."""
        scores = torch.matmul(key * SHARPNESS, voice.keys.transpose(1, 2))
        envelopes = voice.envelopes.clamp(-LARGEST_COSINE, LARGEST_COSINE)
        return torch.matmul(torch.softmax(scores, dim=2), envelopes)

    def mean_difference(self, difference: Tensor, weight: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted mean of what frames so far differ by, which fades over ten seconds.

        Args:
            difference: [B, F, 40].
            weight: of the frames, [B, F, 1].
            past: weighted sums and the sum of the weights before, [B, 41].

        Returns:
            The mean [B, F, 40], drawn towards 0 while little was heard, and the new ``past``.
        """
        age = torch.arange(1, difference.shape[1] + 1, device=difference.device, dtype=torch.float32)
        growth = torch.exp(age / MEMORY_FRAMES).unsqueeze(1)
        sums = torch.cat([difference * weight, weight], dim=2) * growth
        sums = (past.unsqueeze(1) + torch.cumsum(sums, dim=1)) / growth
        return sums[:, :, :-1] / (sums[:, :, -1:] + PRIOR_FRAMES), sums[:, -1]

    def filters(
        self,
        content: Tensor,
        loudness: Tensor,
        f0: Tensor,
        periodicity: Tensor,
        embedding: Tensor,
        state: StateReader,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Log-magnitude filters [B, F, 80] of harmonics and noise, and the new states."""
        size = self.config.envelope_size
        heard = split_content(content, self.config.content_size, size)
        voice = unpack(embedding)
        target = self.look_up(heard.key, voice)
        difference, memory = self.mean_difference(
            target - heard.envelope, heard.speech, state.take(self.memory_size)
        )
        voiced = (f0 > 0).to(f0.dtype)
        octave = voiced * torch.log2(f0.clamp(min=1.0) / 200.0)
        pitch = torch.stack([octave, voiced, periodicity], dim=2)
        x = self.input(torch.cat([heard.learnt, pitch, heard.envelope, target, difference], dim=2))
        mean = voice.envelopes.clamp(-LARGEST_COSINE, LARGEST_COSINE).mean(dim=1)
        condition = self.embedding(torch.cat([voice.identity * (IDENTITY_SIZE**0.5), mean], dim=1))
        states = [memory]
        for block in self.blocks:
            x, past = block(x, state, condition)
            states.append(past)
        hidden = nn.functional.silu(self.hidden(x))
        share = torch.sigmoid(self.share(hidden))
        moved = heard.envelope + difference
        envelope = torch.matmul(moved + share * (target - moved), self.to_bands) + loudness.unsqueeze(2)
        corrections = self.correction(hidden).chunk(2, dim=2)
        harmonic, noise = (
            envelope + torch.matmul(correction, self.basis) + voiced.unsqueeze(2) * start
            for correction, start in zip(corrections, self.start, strict=True)
        )
        harmonic = harmonic + UNVOICED_ATTENUATION * (voiced - 1.0).unsqueeze(2)
        return harmonic.clamp(min=FLOOR), noise.clamp(min=FLOOR), states

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
            embedding: EMBEDDING [B, VOICE_SIZE], unit length.
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
