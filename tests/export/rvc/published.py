"""Files in exactly the published layouts, filled with seeded random weights: voices, HuBERT, RMVPE, an index.

Names and shapes are written out from the layouts' description and not from the modules under test.

As a script it makes a folder with a small voice and its encoder, for trying things out:
``python tests/export/rvc/published.py FOLDER``.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

UPSAMPLINGS = {
    ("v2", 32000): ((10, 8, 2, 2), (20, 16, 4, 4)),
    ("v2", 40000): ((10, 10, 2, 2), (16, 16, 4, 4)),
    ("v2", 48000): ((12, 10, 2, 2), (24, 20, 4, 4)),
    ("v1", 32000): ((10, 4, 2, 2, 2), (16, 16, 4, 4, 4)),
    ("v1", 40000): ((10, 10, 2, 2), (16, 16, 4, 4)),
    ("v1", 48000): ((10, 6, 2, 2, 2), (16, 16, 4, 4, 4)),
}
BLOCK_KERNELS = (3, 7, 11)
BLOCK_DILATIONS = (1, 3, 5)


@dataclass(frozen=True)
class Widths:
    """Sizes of a voice; the defaults are small, `FULL` are the published ones."""

    latent: int = 12
    channels: int = 16
    hidden: int = 24
    heads: int = 2
    layers: int = 2
    decoder: int = 64
    condition: int = 8
    branches: int = 3


NARROW = Widths(layers=1, decoder=32, branches=1)
"""For voices whose sound no test judges."""

FULL = Widths(192, 192, 768, 2, 6, 512, 256)


@dataclass
class Weights:
    """Collects named tensors whose sizes keep a signal alive."""

    seed: int
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def normal(self, name: str, *shape: int, std: float = 1.0, mean: float = 0.0) -> None:
        self.tensors[name] = mean + std * torch.randn(*shape, generator=self._generator)

    def layer(self, name: str, *shape: int, gain: float = 1.0, bias: bool = True) -> None:
        self.normal(f"{name}.weight", *shape, std=gain / math.sqrt(math.prod(shape[1:])))
        if bias:
            self.normal(f"{name}.bias", shape[0], std=0.05)

    def normalised(self, name: str, *shape: int, gain: float = 1.0, biases: int | None = None) -> None:
        """A layer under weight normalisation along axis 0."""
        self.normal(f"{name}.weight_v", *shape)
        magnitude = gain * (0.8 + 0.4 * torch.rand(shape[0], 1, 1, generator=self._generator))
        self.tensors[f"{name}.weight_g"] = magnitude
        self.normal(f"{name}.bias", biases or shape[0], std=0.05)

    def norm(self, name: str, size: int, weight: str = "weight", bias: str = "bias") -> None:
        self.normal(f"{name}.{weight}", size, std=0.1, mean=1.0)
        self.normal(f"{name}.{bias}", size, std=0.1)


def voice(
    version: str = "v2",
    sample_rate: int = 40000,
    *,
    f0: bool = True,
    speakers: int = 3,
    widths: Widths = Widths(),
    seed: int = 0,
) -> dict[str, Any]:
    """The content of a voice's ``.pth``."""
    w, content = widths, {"v1": 256, "v2": 768}[version]
    rates, kernels = UPSAMPLINGS[version, sample_rate]
    weights = Weights(seed)
    weights.layer("enc_p.emb_phone", w.channels, content, gain=0.3)
    if f0:
        weights.normal("enc_p.emb_pitch.weight", 256, w.channels, std=0.3)
    encoder = "enc_p.encoder"
    for layer in range(w.layers):
        for kind in "qkvo":
            weights.layer(f"{encoder}.attn_layers.{layer}.conv_{kind}", w.channels, w.channels, 1)
        for kind in "kv":
            name = f"{encoder}.attn_layers.{layer}.emb_rel_{kind}"
            weights.normal(name, 1, 21, w.channels // w.heads, std=(w.channels // w.heads) ** -0.5)
        weights.layer(f"{encoder}.ffn_layers.{layer}.conv_1", w.hidden, w.channels, 3)
        weights.layer(f"{encoder}.ffn_layers.{layer}.conv_2", w.channels, w.hidden, 3)
        for number in (1, 2):
            weights.norm(f"{encoder}.norm_layers_{number}.{layer}", w.channels, "gamma", "beta")
    weights.layer("enc_p.proj", 2 * w.latent, w.channels, 1, gain=0.5)
    for flow in (0, 2, 4, 6):
        name = f"flow.flows.{flow}"
        weights.layer(f"{name}.pre", w.channels, w.latent // 2, 1)
        weights.normalised(f"{name}.enc.cond_layer", 6 * w.channels, w.condition, 1, gain=0.5)
        for layer in range(3):
            weights.normalised(f"{name}.enc.in_layers.{layer}", 2 * w.channels, w.channels, 5)
            width = w.channels * (2 if layer < 2 else 1)
            weights.normalised(f"{name}.enc.res_skip_layers.{layer}", width, w.channels, 1)
        weights.layer(f"{name}.post", w.latent // 2, w.channels, 1, gain=0.5)
    _decoder(weights, w, rates, kernels, f0=f0)
    weights.normal("emb_g.weight", speakers, w.condition)
    segment = 12800 * sample_rate // 40000 // (sample_rate // 100)
    config = [
        1025,
        segment,
        w.latent,
        w.channels,
        w.hidden,
        w.heads,
        w.layers,
        3,
        0,
        "1",
        list(BLOCK_KERNELS[: w.branches]),
    ]
    config += [
        [list(BLOCK_DILATIONS)] * w.branches,
        list(rates),
        w.decoder,
        list(kernels),
        109,
        w.condition,
        sample_rate,
    ]
    return {
        "weight": {name: tensor.half() for name, tensor in weights.tensors.items()},
        "config": config,
        "info": "20epoch",
        "sr": f"{sample_rate // 1000}k",
        "f0": int(f0),
        "version": version,
    }


def _decoder(
    weights: Weights, w: Widths, rates: tuple[int, ...], kernels: tuple[int, ...], *, f0: bool
) -> None:
    weights.layer("dec.conv_pre", w.decoder, w.latent, 7)
    weights.layer("dec.cond", w.decoder, w.condition, 1, gain=0.3)
    if f0:
        weights.normal("dec.m_source.l_linear.weight", 1, 1, std=0.2, mean=6.0)
        weights.normal("dec.m_source.l_linear.bias", 1, std=0.1)
    width = w.decoder
    for stage, (rate, kernel) in enumerate(zip(rates, kernels, strict=True)):
        width //= 2
        # In a transposed convolution axis 0 are the inputs.
        gain = math.sqrt(rate / 2)
        weights.normalised(f"dec.ups.{stage}", 2 * width, width, kernel, gain=gain, biases=width)
        if f0:
            stride = math.prod(rates[stage + 1 :])
            weights.layer(f"dec.noise_convs.{stage}", width, 1, 2 * stride if stride > 1 else 1)
        for block, size in enumerate(BLOCK_KERNELS[: w.branches]):
            for number in (1, 2):
                for place in range(3):
                    name = f"dec.resblocks.{w.branches * stage + block}.convs{number}.{place}"
                    weights.normalised(name, width, width, size, gain=0.7)
    weights.layer("dec.conv_post", 1, width, 7, gain=0.5, bias=False)


def save_voice(path: Path, **options: Any) -> Path:
    """Writes a voice's checkpoint."""
    torch.save(voice(**options), path)
    return path


@dataclass(frozen=True)
class HubertSizes:
    """Sizes of a content encoder; small by default, for version v2."""

    channels: int = 16
    size: int = 768
    hidden: int = 32
    heads: int = 12
    layers: int = 2
    position_kernel: int = 8
    position_groups: int = 16


HUBERT_V1 = HubertSizes(size=32, heads=4, layers=10, position_groups=4)
HUBERT_BASE = HubertSizes(512, 768, 3072, 12, 12, 128, 16)
_CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)


def hubert(sizes: HubertSizes, seed: int = 1) -> dict[str, Tensor]:
    """Weights of a content encoder under the names of the package transformers."""
    s, weights = sizes, Weights(seed)
    for layer, kernel in enumerate(_CONV_KERNELS):
        inputs = s.channels if layer else 1
        name = f"feature_extractor.conv_layers.{layer}.conv"
        weights.layer(name, s.channels, inputs, kernel, gain=1.6, bias=False)
    weights.norm("feature_extractor.conv_layers.0.layer_norm", s.channels)
    weights.norm("feature_projection.layer_norm", s.channels)
    weights.layer("feature_projection.projection", s.size, s.channels)
    position = "encoder.pos_conv_embed.conv"
    inputs = s.size // s.position_groups
    weights.normal(f"{position}.weight_v", s.size, inputs, s.position_kernel)
    scale = (s.size * inputs) ** 0.5 / (inputs * s.position_kernel) ** 0.5
    weights.normal(f"{position}.weight_g", 1, 1, s.position_kernel, std=0.1 * scale, mean=scale)
    weights.normal(f"{position}.bias", s.size, std=0.05)
    weights.norm("encoder.layer_norm", s.size)
    for layer in range(s.layers):
        name = f"encoder.layers.{layer}"
        for kind in "qkv":
            weights.layer(f"{name}.attention.{kind}_proj", s.size, s.size)
        weights.layer(f"{name}.attention.out_proj", s.size, s.size)
        weights.norm(f"{name}.layer_norm", s.size)
        weights.layer(f"{name}.feed_forward.intermediate_dense", s.hidden, s.size)
        weights.layer(f"{name}.feed_forward.output_dense", s.size, s.hidden)
        weights.norm(f"{name}.final_layer_norm", s.size)
    weights.layer("final_proj", 256, s.size)
    weights.normal("masked_spec_embed", s.size)
    return weights.tensors


def save_hubert(folder: Path, sizes: HubertSizes = HubertSizes(), seed: int = 1) -> Path:
    """Writes a content encoder as the package transformers does."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "architectures": ["HubertModelWithFinalProj"],
        "model_type": "hubert",
        "classifier_proj_size": 256,
        "conv_bias": False,
        "conv_dim": [sizes.channels] * 7,
        "conv_kernel": list(_CONV_KERNELS),
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "do_stable_layer_norm": False,
        "feat_extract_norm": "group",
        "feat_proj_layer_norm": True,
        "hidden_act": "gelu",
        "hidden_size": sizes.size,
        "intermediate_size": sizes.hidden,
        "layer_norm_eps": 1e-5,
        "num_attention_heads": sizes.heads,
        "num_conv_pos_embedding_groups": sizes.position_groups,
        "num_conv_pos_embeddings": sizes.position_kernel,
        "num_hidden_layers": sizes.layers,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(hubert(sizes, seed), folder / "model.safetensors", {"format": "pt"})
    return folder


@dataclass(frozen=True)
class RmvpeSizes:
    """Sizes of RMVPE; small by default, `RMVPE_FULL` are the published ones."""

    channels: int = 2
    blocks: int = 1
    hidden: int = 12


RMVPE_FULL = RmvpeSizes(16, 4, 256)


def rmvpe(sizes: RmvpeSizes = RmvpeSizes(), seed: int = 2) -> dict[str, Tensor]:
    """Weights of RMVPE as it is published."""
    weights, s = Weights(seed), sizes

    def norm(name: str, size: int) -> None:
        weights.norm(name, size)
        weights.normal(f"{name}.running_mean", size, std=0.1)
        weights.tensors[f"{name}.running_var"] = torch.full((size,), 1.2)
        weights.tensors[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def block(name: str, inputs: int, outputs: int) -> None:
        for place, width in ((0, inputs), (3, outputs)):
            weights.layer(f"{name}.conv.{place}", outputs, width, 3, 3, bias=False)
            norm(f"{name}.conv.{place + 1}", outputs)
        if inputs != outputs:
            weights.layer(f"{name}.shortcut", outputs, inputs, 1, 1)

    def blocks(name: str, inputs: int, outputs: int) -> None:
        for place in range(s.blocks):
            block(f"{name}.{place}", outputs if place else inputs, outputs)

    norm("unet.encoder.bn", 1)
    for level in range(5):
        width = s.channels << level
        blocks(f"unet.encoder.layers.{level}.conv", width // 2 if level else 1, width)
    top = s.channels << 5
    for level in range(4):
        blocks(f"unet.intermediate.layers.{level}.conv", top if level else top // 2, top)
    for level in range(5):
        width = top >> (level + 1)
        name = f"unet.decoder.layers.{level}"
        weights.layer(f"{name}.conv1.0", 2 * width, width, 3, 3, bias=False)
        norm(f"{name}.conv1.1", width)
        blocks(f"{name}.conv2", 2 * width, width)
    weights.layer("cnn", 3, s.channels, 3, 3)
    for way in ("", "_reverse"):
        weights.normal(f"fc.0.gru.weight_ih_l0{way}", 3 * s.hidden, 384, std=0.01)
        weights.normal(f"fc.0.gru.weight_hh_l0{way}", 3 * s.hidden, s.hidden, std=s.hidden**-0.5)
        for kind in ("ih", "hh"):
            weights.normal(f"fc.0.gru.bias_{kind}_l0{way}", 3 * s.hidden, std=0.06)
    # Some frames of a voice stay under the threshold of voicing.
    weights.layer("fc.1", 360, 2 * s.hidden, gain=3.0, bias=False)
    weights.normal("fc.1.bias", 360, std=0.05, mean=-5.1)
    return weights.tensors


def save_rmvpe(path: Path, **options: Any) -> Path:
    """Writes RMVPE's file, which is of float16: 181 MB for 90 million values."""
    tensors = rmvpe(**options)
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}, path)
    return path


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print(save_voice(target / "voice.pth"), save_hubert(target / "contentvec"))
