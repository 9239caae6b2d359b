"""Synthesizer of one RVC voice: content, pitch and a speaker to audio."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autovoice_export.rvc import pitch
from autovoice_export.rvc.decoder import Decoder
from autovoice_export.rvc.geometry import FRAMES_PER_SECOND
from autovoice_export.rvc.noise import PRIOR_SCALE
from autovoice_export.rvc.prior_encoder import Flow, PriorEncoder
from autovoice_plugins.harmonic_source.torch_op import harmonic_source


@dataclass(frozen=True)
class SynthesizerConfig:
    """Shape of a voice, as its checkpoint tells.

    Attributes:
        content: width of the content features: 256 for version v1, 768 for v2.
        latent: channels of the latent.
        channels: width of the prior encoder and of the flow.
        hidden: width of the feed-forward layers.
        heads: attention heads.
        layers: transformer layers.
        kernel: of the feed-forward layers, odd.
        block_kernels: of the residual blocks, odd.
        block_dilations: for each of them.
        rates: upsampling factors; their product is the hop.
        decoder_channels: before the first upsampling.
        kernels: of the upsamplings.
        speakers: rows of the speaker table.
        condition: width of the speaker vector.
        sample_rate: of the voice, Hz: 100 times the hop.
        has_f0: whether the voice knows the pitch.

    Raises:
        ValueError: names the first value that does not fit.
    """

    content: int
    latent: int
    channels: int
    hidden: int
    heads: int
    layers: int
    kernel: int
    block_kernels: tuple[int, ...]
    block_dilations: tuple[tuple[int, ...], ...]
    rates: tuple[int, ...]
    decoder_channels: int
    kernels: tuple[int, ...]
    speakers: int
    condition: int
    sample_rate: int
    has_f0: bool

    def __post_init__(self) -> None:
        if self.latent % 2 or self.channels % self.heads:
            raise ValueError(
                f"inter_channels {self.latent} must be even and hidden_channels {self.channels} "
                f"a multiple of n_heads {self.heads}"
            )
        if any(kernel % 2 == 0 for kernel in (self.kernel, *self.block_kernels)):
            raise ValueError(f"kernels must be odd, got {self.kernel} and {list(self.block_kernels)}")
        if len(self.block_kernels) != len(self.block_dilations):
            raise ValueError(
                f"{len(self.block_kernels)} residual kernels, {len(self.block_dilations)} lists of dilations"
            )
        if len(self.rates) != len(self.kernels) or any(
            kernel < rate or (kernel - rate) % 2
            for rate, kernel in zip(self.rates, self.kernels, strict=False)
        ):
            raise ValueError(
                f"upsampling rates {list(self.rates)} and kernels {list(self.kernels)} do not fit"
            )
        if math.prod(self.rates) * FRAMES_PER_SECOND != self.sample_rate:
            raise ValueError(
                f"upsampling rates {list(self.rates)} make {math.prod(self.rates)} samples of a 10 ms frame, "
                f"the sample rate {self.sample_rate} needs {self.sample_rate / FRAMES_PER_SECOND:g}"
            )
        if self.decoder_channels >> len(self.rates) < 1:
            raise ValueError(f"{self.decoder_channels} channels cannot be halved {len(self.rates)} times")

    @property
    def hop(self) -> int:
        """Samples of the voice's audio per F0 frame."""
        return math.prod(self.rates)


class Synthesizer(nn.Module):
    """The networks of a voice; its parameters are those of a checkpoint with weight normalisation folded.

    Args:
        config: shape of the voice.
    """

    def __init__(self, config: SynthesizerConfig) -> None:
        super().__init__()
        self.config = config
        self.enc_p = PriorEncoder(
            config.content,
            config.channels,
            config.hidden,
            config.heads,
            config.layers,
            config.kernel,
            config.latent,
            config.has_f0,
        )
        self.flow = Flow(config.latent, config.channels, config.condition)
        self.dec = Decoder(
            config.latent,
            config.decoder_channels,
            config.rates,
            config.kernels,
            config.block_kernels,
            config.block_dilations,
            config.condition,
            config.has_f0,
        )
        self.emb_g = nn.Embedding(config.speakers, config.condition)

    def forward(
        self,
        phone: Tensor,
        f0: Tensor | None,
        phase: Tensor | None,
        speaker_id: Tensor,
        prior_noise: Tensor,
        source_noise: Tensor | None,
    ) -> Tensor:
        """Synthesises a batch.

        Args:
            phone: content behind `PriorEncoder.emb_phone` at F0 frames, [B, F, channels].
            f0: [B, F] in Hz, 0 = unvoiced; None for a voice without pitch, as is all that follows from it.
            phase: of the source at the first sample, [B, 1] in cycles.
            speaker_id: [B, 1] int64, refused by every runtime that checks indices unless 0 <= it < speakers.
            prior_noise: unit variance, [B, F, latent].
            source_noise: unit variance, [B, F hop].

        Returns:
            Audio [B, F hop] in [-1, 1].
        """
        # ONNX counts negative indices from the end.
        speaker = self.emb_g(torch.where(speaker_id < 0, self.config.speakers, speaker_id))
        mean, deviation = self.enc_p(phone, None if f0 is None else pitch.coarse(f0))
        latent = mean + torch.exp(deviation) * (prior_noise * PRIOR_SCALE)
        latent = self.flow(latent, speaker)
        source = None
        if f0 is not None:
            assert phase is not None
            state = torch.cat([torch.zeros_like(phase), phase], dim=1)
            excitation, _ = harmonic_source(
                f0,
                state,
                source_noise,
                sample_rate=self.config.sample_rate,
                hop=self.config.hop,
                waveform="sine",
            )
            source = self.dec.m_source(excitation)
        result: Tensor = self.dec(latent, speaker, source)
        return result
