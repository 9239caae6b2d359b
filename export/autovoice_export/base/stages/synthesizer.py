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
# Frames over which target and source are compared, and those that count for no difference between them.
MEMORY_FRAMES = 1000
PRIOR_FRAMES = 20.0
# Warps of the frequency axis that are tried, evenly spaced in the logarithm: women and men differ by 1.17.
WARPS = 13
LARGEST_WARP = 0.24
# Cosines by which a warp is judged: the level and fine detail say nothing of the length of a vocal tract.
WARPED_COSINES = slice(1, 16)
# How much better than others a warp has to fit to be the only one.
WARP_CONTRAST = 200.0
# No envelope of a voice is further from the average in any cosine; it bounds what a vector that is no
# embedding can ask for.
LARGEST_COSINE = 40.0
# Points of the correction above the analysed band.
HIGH_POINTS = 6
# Power of the noise over all power in voiced frames of clear speech, by frequency in Hz, where training
# starts.
NOISE_SHARES = {0: 0.02, 1000: 0.03, 2000: 0.06, 3000: 0.12, 4000: 0.2, 6000: 0.4, 8000: 0.6, 12000: 0.8}
# Of the comparison of keys: about the three most similar frames count, or all those of the same sound.
# Spectral losses would blur it.
SHARPNESS = 40.0
SOFTNESS = 10.0
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
    channels: int = 224
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


def warp_matrices(size: int) -> Tensor:
    """Matrices [WARPS, size, size] that make envelopes [..., size] those of other vocal tract lengths."""
    hz = np.asarray(mel_points(MEL_BANDS + 2, LOW_HZ, HIGH_HZ)[1:-1])
    cosines = cosine_basis(MEL_BANDS, size)
    matrices = []
    for factor in np.exp(np.linspace(-LARGEST_WARP, LARGEST_WARP, WARPS)):
        place = np.interp(np.clip(hz * factor, hz[0], hz[-1]), hz, np.arange(MEL_BANDS))
        matrices.append(cosines.T @ _interpolation(place) @ cosines)
    return torch.stack(matrices)


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

    One is the source's own, its frequency axis warped (vocal tract length normalisation; Lee & Rose 1996) and
    moved by the mean difference of the target to it: it has every detail of what is said. The other is the
    target's, read from the frames of its reference whose keys resemble the source's key (scaled dot-product
    attention; Vaswani et al. 2017). The network says how much of each to take, cosine by cosine, and what to
    correct.

    The filters are applied to a pulse train that has F0's phase and to a fixed noise (harmonic plus
    noise model; Serra & Smith 1990, differentiable form Engel et al. 2020). The loudness of the source
    is added to both filters, so that level passes through and silence stays silent.
    """

    noise: Tensor
    to_bands: Tensor
    basis: Tensor
    start: Tensor
    warps: Tensor
    log_warps: Tensor

    def __init__(self, config: SynthesizerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SynthesizerConfig()
        size = config.envelope_size
        self.register_buffer("noise", noise_table(), persistent=False)
        self.register_buffer("to_bands", envelope_to_bands(size), persistent=False)
        self.register_buffer("basis", correction_basis(size), persistent=False)
        self.register_buffer("start", noise_attenuation(), persistent=False)
        self.register_buffer("warps", warp_matrices(size), persistent=False)
        log_warps = torch.linspace(-LARGEST_WARP, LARGEST_WARP, WARPS)
        self.register_buffer("log_warps", log_warps, persistent=False)
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
        self.memory_size = WARPS * (size + 1) + 1
        self.filter_state = 1 + HARMONIC_SOURCE_STATE_SIZE + SPECTRAL_SYNTH_STATE_SIZE
        self.state_size = self.filter_state + self.memory_size + sum(block.state_size for block in blocks)

    def look_up(self, key: Tensor, voice: Voice) -> tuple[Tensor, Tensor]:
        """The target's envelopes of frames with these keys, [B, F, 40] for [B, F, 24].

        Returns:
            The mean of the few frames with the most similar keys, and that of all with similar keys.
        """
        similarity = torch.matmul(key, voice.keys.transpose(1, 2))
        envelopes = voice.envelopes.clamp(-LARGEST_COSINE, LARGEST_COSINE)
        near = torch.softmax(similarity * SHARPNESS, dim=2)
        alike = torch.softmax(similarity * SOFTNESS, dim=2)
        return torch.matmul(near, envelopes), torch.matmul(alike, envelopes)

    def move(self, envelope: Tensor, target: Tensor, weight: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Envelopes with the target's vocal tract length and mean.

        Of every warp the mean and the mean square of what frames so far differ by from the target's are
        known, over ten seconds that fade. The warp with which they differ most alike is taken.

        Args:
            envelope: of the source's frames, [B, F, 40].
            target: the target's envelopes of the same sounds, [B, F, 40].
            weight: of the frames, [B, F, 1].
            past: weighted sums and the sum of the weights before, [B, memory_size].

        Returns:
            Envelopes [B, F, 40] and the new ``past``. While little was heard they are nearly the source's.
        """
        batch, frames, size = envelope.shape
        warps = self.warps.permute(1, 0, 2).reshape(size, WARPS * size)
        warped = torch.matmul(envelope, warps).reshape(batch, frames, WARPS, size)
        difference = target.unsqueeze(2) - warped
        square = difference[..., WARPED_COSINES].square().sum(dim=3)
        age = torch.arange(1, frames + 1, device=envelope.device, dtype=torch.float32)
        growth = torch.exp(age / MEMORY_FRAMES).unsqueeze(1)
        heard = torch.cat([difference.flatten(2), square, torch.ones_like(weight)], dim=2) * weight * growth
        sums = (past.unsqueeze(1) + torch.cumsum(heard, dim=1)) / growth
        total = sums[:, :, -1:]
        means = sums[:, :, :-1] / (total + PRIOR_FRAMES)
        mean = means[:, :, : WARPS * size].reshape(batch, frames, WARPS, size)
        misfit = means[:, :, WARPS * size :] - mean[..., WARPED_COSINES].square().sum(dim=3)
        scale = misfit.mean(dim=2, keepdim=True).clamp(min=1e-4)
        contrast = WARP_CONTRAST * total / (total + PRIOR_FRAMES)
        chosen = torch.matmul(torch.softmax(-contrast * misfit / scale, dim=2), self.log_warps)
        spacing = 2.0 * LARGEST_WARP / (WARPS - 1)
        share = torch.relu(1.0 - (chosen.unsqueeze(2) - self.log_warps).abs() / spacing)
        return torch.matmul(share.unsqueeze(2), warped + mean).squeeze(2), sums[:, -1]

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
        target, alike = self.look_up(heard.key, voice)
        moved, memory = self.move(heard.envelope, target, heard.speech, state.take(self.memory_size))
        voiced = (f0 > 0).to(f0.dtype)
        octave = voiced * torch.log2(f0.clamp(min=1.0) / 200.0)
        pitch = torch.stack([octave, voiced, periodicity], dim=2)
        x = self.input(torch.cat([heard.learnt, pitch, moved, target, alike], dim=2))
        mean = voice.envelopes.clamp(-LARGEST_COSINE, LARGEST_COSINE).mean(dim=1)
        condition = self.embedding(torch.cat([voice.identity * (IDENTITY_SIZE**0.5), mean], dim=1))
        states = [memory]
        for block in self.blocks:
            x, past = block(x, state, condition)
            states.append(past)
        hidden = nn.functional.silu(self.hidden(x))
        share = torch.sigmoid(self.share(hidden))
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
