"""RVC inference written out from its description: float32 PyTorch, slow and obvious, published names.

Nothing here is shared with the modules under test.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]


def weight(w: Weights, name: str) -> Tensor:
    """A layer's weight, with weight normalisation undone where there is one."""
    if f"{name}.weight_v" not in w:
        return w[f"{name}.weight"].float()
    v, g = w[f"{name}.weight_v"].float(), w[f"{name}.weight_g"].float()
    return v * (g / v.norm(dim=(1, 2), keepdim=True))


def conv(w: Weights, name: str, x: Tensor, **options: Any) -> Tensor:
    bias = w[f"{name}.bias"].float() if f"{name}.bias" in w else None
    return functional.conv1d(x, weight(w, name), bias, **options)


def coarse(f0: Tensor) -> Tensor:
    """Pitch class as the checkpoints know it, in float64 with NumPy's rounding to even."""
    hz = f0.numpy().astype(np.float64)
    low, high = 1127 * np.log(1 + 50 / 700), 1127 * np.log(1 + 1100 / 700)
    mel = 1127 * np.log(1 + hz / 700)
    scaled = np.where(mel > 0, (mel - low) * 254 / (high - low) + 1, mel)
    return torch.from_numpy(np.rint(np.clip(scaled, 1, 255)).astype(np.int64))


def attention(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    batch, channels, frames = x.shape
    size = channels // heads
    q, k, v = (conv(w, f"{name}.conv_{kind}", x).reshape(batch, heads, size, frames) for kind in "qkv")
    q = q / math.sqrt(size)
    scores = torch.einsum("bhdi,bhdj->bhij", q, k)
    near = w[f"{name}.emb_rel_k"].float()[0]
    for offset in range(-10, 11):
        if abs(offset) < frames:
            along = scores.diagonal(offset, 2, 3)
            rows = torch.arange(max(0, -offset), max(0, -offset) + along.shape[-1])
            along += torch.einsum("bhdi,d->bhi", q[..., rows], near[offset + 10])
    p = scores.softmax(dim=3)
    out = torch.einsum("bhij,bhdj->bhdi", p, v)
    values = w[f"{name}.emb_rel_v"].float()[0]
    for offset in range(-10, 11):
        if abs(offset) < frames:
            along = p.diagonal(offset, 2, 3)
            rows = torch.arange(max(0, -offset), max(0, -offset) + along.shape[-1])
            out[..., rows] += torch.einsum("bhi,d->bhdi", along, values[offset + 10])
    return conv(w, f"{name}.conv_o", out.reshape(batch, channels, frames))


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    gamma, beta = w[f"{name}.gamma"].float(), w[f"{name}.beta"].float()
    return functional.layer_norm(x.transpose(1, 2), gamma.shape, gamma, beta, 1e-5).transpose(1, 2)


def prior(w: Weights, config: list[Any], phone: Tensor, pitch: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and log deviation, [B, latent, F], of content [B, F, C] at 100 Hz."""
    latent, channels, heads, layers = config[2], config[3], config[5], config[6]
    x = functional.linear(phone, w["enc_p.emb_phone.weight"].float(), w["enc_p.emb_phone.bias"].float())
    if pitch is not None:
        x = x + w["enc_p.emb_pitch.weight"].float()[pitch]
    x = functional.leaky_relu(x * math.sqrt(channels), 0.1).transpose(1, 2)
    for layer in range(layers):
        e = "enc_p.encoder"
        x = layer_norm(
            w, f"{e}.norm_layers_1.{layer}", x + attention(w, f"{e}.attn_layers.{layer}", x, heads)
        )
        y = conv(w, f"{e}.ffn_layers.{layer}.conv_1", x, padding=1).relu()
        x = layer_norm(
            w, f"{e}.norm_layers_2.{layer}", x + conv(w, f"{e}.ffn_layers.{layer}.conv_2", y, padding=1)
        )
    stats = conv(w, "enc_p.proj", x)
    return stats[:, :latent], stats[:, latent:]


def reverse_flow(w: Weights, config: list[Any], z: Tensor, g: Tensor) -> Tensor:
    half, channels = config[2] // 2, config[3]
    for flow in (6, 4, 2, 0):
        z = z.flip(1)
        x0, x1 = z[:, :half], z[:, half:]
        name = f"flow.flows.{flow}"
        x = conv(w, f"{name}.pre", x0)
        skip = torch.zeros_like(x)
        condition = conv(w, f"{name}.enc.cond_layer", g)
        for layer in range(3):
            y = conv(w, f"{name}.enc.in_layers.{layer}", x, padding=2)
            y = y + condition[:, 2 * channels * layer : 2 * channels * (layer + 1)]
            y = y[:, :channels].tanh() * y[:, channels:].sigmoid()
            y = conv(w, f"{name}.enc.res_skip_layers.{layer}", y)
            if layer < 2:
                x, skip = x + y[:, :channels], skip + y[:, channels:]
            else:
                skip = skip + y
        z = torch.cat([x0, x1 - conv(w, f"{name}.post", skip)], dim=1)
    return z


def sine_source(f0: Tensor, hop: int, sample_rate: int, noise: Tensor, start: float = 0.0) -> Tensor:
    """Excitation [B, F hop] of F0 [B, F]: phase in float64, sample by sample."""
    hz = f0.double().repeat_interleave(hop, dim=1)
    phase = start + torch.cumsum(hz / sample_rate, dim=1)
    sine = 0.1 * torch.sin(2 * math.pi * phase)
    voiced = (hz > 0).double()
    amplitude = voiced * 0.003 + (1 - voiced) * 0.1 / 3
    return (sine * voiced + amplitude * noise.double()).float()


def decoder(w: Weights, config: list[Any], z: Tensor, g: Tensor, source: Tensor | None) -> Tensor:
    rates, kernels = config[12], config[14]
    x = conv(w, "dec.conv_pre", z, padding=3) + conv(w, "dec.cond", g)
    for stage, (rate, kernel) in enumerate(zip(rates, kernels, strict=True)):
        name = f"dec.ups.{stage}"
        x = functional.leaky_relu(x, 0.1)
        bias = w[f"{name}.bias"].float()
        x = functional.conv_transpose1d(x, weight(w, name), bias, stride=rate, padding=(kernel - rate) // 2)
        if source is not None:
            stride = math.prod(rates[stage + 1 :])
            options = {"stride": stride, "padding": stride // 2} if stride > 1 else {}
            x = x + conv(w, f"dec.noise_convs.{stage}", source[:, None], **options)
        branches = []
        for block, size in enumerate(config[10]):
            y = x
            for place, dilation in enumerate(config[11][block]):
                part = f"dec.resblocks.{len(config[10]) * stage + block}"
                h = functional.leaky_relu(y, 0.1)
                pad = (size - 1) * dilation // 2
                h = conv(w, f"{part}.convs1.{place}", h, padding=pad, dilation=dilation)
                h = conv(w, f"{part}.convs2.{place}", functional.leaky_relu(h, 0.1), padding=(size - 1) // 2)
                y = y + h
            branches.append(y)
        x = sum(branches) / len(branches)
    x = conv(w, "dec.conv_post", functional.leaky_relu(x, 0.01), padding=3)
    return x.tanh()[:, 0]


def synthesise(
    checkpoint: dict[str, Any],
    content: Tensor,
    f0: Tensor | None,
    speaker: int,
    prior_noise: Tensor,
    source_noise: Tensor | None,
    start: float = 0.0,
) -> Tensor:
    """Audio of content [B, G, C] at 50 Hz and F0 [B, 2 G], with noise [B, 2 G, latent] and [B, 2 G hop]."""
    w, config = checkpoint["weight"], checkpoint["config"]
    sample_rate = config[-1]
    phone = functional.interpolate(content.transpose(1, 2), scale_factor=2, mode="nearest").transpose(1, 2)
    g = w["emb_g.weight"].float()[speaker].reshape(1, -1, 1)
    mean, deviation = prior(w, config, phone, None if f0 is None else coarse(f0))
    z = mean + deviation.exp() * prior_noise.transpose(1, 2) * 0.66666
    z = reverse_flow(w, config, z, g)
    source = None
    if f0 is not None and source_noise is not None:
        excitation = sine_source(f0, sample_rate // 100, sample_rate, source_noise, start)
        gain, offset = (w[f"dec.m_source.l_linear.{kind}"].float().reshape(()) for kind in ("weight", "bias"))
        source = torch.tanh(gain * excitation + offset)
    return decoder(w, config, z, g, source)


def encode(w: Weights, heads: int, audio: Tensor, layers: int, *, projected: bool) -> Tensor:
    """HuBERT features [B, frames, size] of audio, unpadded, under the names of the package transformers."""
    x = audio[:, None]
    for layer in range(7):
        name = f"feature_extractor.conv_layers.{layer}"
        x = functional.conv1d(x, w[f"{name}.conv.weight"], stride=5 if layer == 0 else 2)
        if layer == 0:
            x = functional.group_norm(
                x, x.shape[1], w[f"{name}.layer_norm.weight"], w[f"{name}.layer_norm.bias"], 1e-5
            )
        x = functional.gelu(x)

    def norm(name: str, x: Tensor) -> Tensor:
        scale, offset = w[f"{name}.weight"], w[f"{name}.bias"]
        return functional.layer_norm(x, scale.shape, scale, offset, 1e-5)

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = linear("feature_projection.projection", norm("feature_projection.layer_norm", x.transpose(1, 2)))
    position = "encoder.pos_conv_embed.conv"
    v, g = w[f"{position}.weight_v"], w[f"{position}.weight_g"]
    kernel = v * (g / v.norm(dim=(0, 1), keepdim=True))
    y = functional.conv1d(
        x.transpose(1, 2),
        kernel,
        w[f"{position}.bias"],
        padding=kernel.shape[2] // 2,
        groups=x.shape[2] // v.shape[1],
    )
    x = norm("encoder.layer_norm", x + functional.gelu(y[..., : x.shape[1]]).transpose(1, 2))
    for layer in range(layers):
        name = f"encoder.layers.{layer}"
        batch, frames, size = x.shape
        q, k, v = (
            linear(f"{name}.attention.{kind}_proj", x).reshape(batch, frames, heads, -1).transpose(1, 2)
            for kind in "qkv"
        )
        p = (q @ k.transpose(2, 3) / math.sqrt(size // heads)).softmax(dim=3)
        attended = (p @ v).transpose(1, 2).reshape(batch, frames, size)
        x = norm(f"{name}.layer_norm", x + linear(f"{name}.attention.out_proj", attended))
        y = functional.gelu(linear(f"{name}.feed_forward.intermediate_dense", x))
        x = norm(f"{name}.final_layer_norm", x + linear(f"{name}.feed_forward.output_dense", y))
    return linear("final_proj", x) if projected else x


def rate_pitches(w: Weights, mel: Tensor) -> Tensor:
    """RMVPE's salience [B, F, 360] of log-mel frames [B, F, 128], under its published names."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return functional.batch_norm(x, mean, variance, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)

    def blocks(name: str, x: Tensor) -> Tensor:
        number = 0
        while f"{name}.{number}.conv.0.weight" in w:
            block, around = f"{name}.{number}", x
            if f"{block}.shortcut.weight" in w:
                around = functional.conv2d(x, w[f"{block}.shortcut.weight"], w[f"{block}.shortcut.bias"])
            for place in (0, 3):
                x = functional.conv2d(x, w[f"{block}.conv.{place}.weight"], padding=1)
                x = norm(f"{block}.conv.{place + 1}", x).relu()
            x, number = x + around, number + 1
        return x

    frames = mel.shape[1]
    x = functional.pad(mel, (0, 0, 0, -frames % 32)).unsqueeze(1)
    x, skipped = norm("unet.encoder.bn", x), []
    for level in range(5):
        x = blocks(f"unet.encoder.layers.{level}.conv", x)
        skipped.append(x)
        x = functional.avg_pool2d(x, 2)
    for level in range(4):
        x = blocks(f"unet.intermediate.layers.{level}.conv", x)
    for level in range(5):
        name = f"unet.decoder.layers.{level}"
        x = functional.conv_transpose2d(x, w[f"{name}.conv1.0.weight"], stride=2, padding=1, output_padding=1)
        x = torch.cat([norm(f"{name}.conv1.1", x).relu(), skipped.pop()], dim=1)
        x = blocks(f"{name}.conv2", x)
    x = functional.conv2d(x, w["cnn.weight"], w["cnn.bias"], padding=1).transpose(1, 2).flatten(2)
    gru = torch.nn.GRU(384, w["fc.1.weight"].shape[1] // 2, batch_first=True, bidirectional=True)
    gru.load_state_dict({name.removeprefix("fc.0.gru."): w[name] for name in w if ".gru." in name})
    return functional.linear(gru(x)[0], w["fc.1.weight"], w["fc.1.bias"]).sigmoid()[:, :frames]


def decode_pitch(salience: Any) -> Any:
    """F0 in Hz of saliences [..., 360], float64: mean cents around the largest, 0 where that is small."""
    f0 = np.zeros(salience.shape[:-1])
    for place in np.ndindex(f0.shape):
        values = salience[place].astype(np.float64)
        around = np.arange(max(0, values.argmax() - 4), min(360, values.argmax() + 5))
        cents = (values[around] * (20 * around + 1997.3794084376191)).sum() / values[around].sum()
        f0[place] = 10 * 2 ** (cents / 1200) if values.max() > 0.03 else 0.0
    return f0
