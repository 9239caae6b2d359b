"""RVC checkpoints: ``.pth`` files of one voice, checked tensor by tensor and folded for inference."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autovoice_export.build_errors import ImportFailure
from autovoice_export.rvc.archive import unpacked
from autovoice_export.rvc.content_encoders import encoder_of
from autovoice_export.rvc.decoder import ResidualBlock, Upsampling
from autovoice_export.rvc.file_kinds import is_safetensors
from autovoice_export.rvc.geometry import OUTPUT_RATES
from autovoice_export.rvc.layers import WaveNet
from autovoice_export.rvc.safe_loading import load_pickle, require_file, require_tensors
from autovoice_export.rvc.synthesizer import Synthesizer, SynthesizerConfig

CONTENT_SIZES = {"v1": 256, "v2": 768}
"""Width of the content features by checkpoint version."""

_WHAT = "RVC voice"
_CONFIG_LENGTH = 18
_SPEAKER_TABLE = "emb_g.weight"
_TRAINING_ONLY = "enc_q."
"""The posterior encoder: some tools leave it in."""

_HIFIGAN = {"", "none", "hifigan", "default"}
_OTHER_VOCODERS = (
    ("dec.mrfs.", "MRF HiFi-GAN"),
    ("dec.upsample_conv_blocks.", "RefineGAN"),
    ("dec.downsample_blocks.", "RefineGAN"),
)
"""Layers that only they have, where the file does not say."""

_SMALL = "give the voice, which RVC writes to assets/weights/NAME.pth"
_EXTRACT = f"{_SMALL}, or extract one with 'Model extraction' in RVC's tab 'ckpt Processing'"
_OTHER_FILES: tuple[tuple[str, str], ...] = (
    (r"discriminators\.", f"is a discriminator (D_*.pth), which only training needs: {_SMALL}"),
    (
        r"enc_p\.emb_phone\.",
        "holds the network of an RVC voice without the voice's settings, as training checkpoints (G_*.pth) "
        f"and pretrained models do: {_EXTRACT}",
    ),
    (
        r"enc_p\.ssl_proj\.|ref_enc\.|quantizer\.|ssl_proj\.|ar_text_embedding|model\.ar_",
        "is of GPT-SoVITS: only voices of RVC can be imported",
    ),
    (
        r"(enc_p|enc_q|dec|flow|emb_uv|f0_decoder)\.",
        "is of so-vits-svc or another project with such networks: only voices of RVC can be imported",
    ),
    (r"unet\.(encoder|decoder)\.", "is RMVPE: pass it with --rmvpe"),
    (
        r"(hubert\.)?(feature_extractor\.|encoder\.layers\.)",
        "is a content encoder: pass it with --contentvec",
    ),
)
"""Patterns of tensor names, the first that fits counts; and what a file with such tensors is."""


@dataclass(frozen=True)
class VoiceCheckpoint:
    """One voice, ready for inference.

    Attributes:
        synthesizer: in evaluation mode, weight normalisation and means folded.
        version: "v1" or "v2".
        info: what the trainer wrote about it, such as the number of epochs.
        sha256: of the file.
        encoder: content encoder that the voice was trained on, "contentvec" for most.
    """

    synthesizer: Synthesizer
    version: str
    info: str
    sha256: str
    encoder: str


def load_voice(path: Path) -> VoiceCheckpoint:
    """Reads a checkpoint, alone or in a ZIP archive.

    Raises:
        ImportFailure: not such a file, holding code, of another version or vocoder, or with tensors missing,
            of other shapes, or unknown; the message lists them.
    """
    with unpacked(path) as files:
        return _load(files.checkpoint)


def _load(path: Path) -> VoiceCheckpoint:
    require_file(path, _WHAT)
    if is_safetensors(path):
        raise ImportFailure(
            f"{path} is a safetensors file, which lacks the settings of an {_WHAT} (rate, version, pitch): "
            "give the .pth file that it was made from"
        )
    content = load_pickle(path, _WHAT)
    weight = content.get("weight")
    if not isinstance(weight, dict) or "config" not in content:
        raise ImportFailure(f"{path} {_other_content(content)}")
    _refuse_other_vocoders(path, content, weight)
    if not any(_published_name(name).startswith("enc_p.emb_phone.") for name in weight):
        raise ImportFailure(f"{path} {_other_content(content)}")
    version = content.get("version", "v1")
    if not isinstance(version, str) or version not in CONTENT_SIZES:
        raise ImportFailure(
            f"{path} is of version {version!r}: {' and '.join(CONTENT_SIZES)} can be imported"
        )
    encoder = encoder_of(content, version, path)
    has_f0 = content.get("f0", 1)
    if has_f0 not in (0, 1, "0", "1"):
        raise ImportFailure(f"{path} has f0 = {has_f0!r} where 1 (with pitch) or 0 (without) belongs")
    found = {_published_name(name): tensor for name, tensor in weight.items()}
    config = _config(path, content["config"], found, version, bool(int(has_f0)))
    with torch.device("meta"):
        synthesizer = Synthesizer(config)
    tensors = require_tensors(
        {name: tensor for name, tensor in found.items() if not name.startswith(_TRAINING_ONLY)},
        published_shapes(synthesizer),
        path,
        f"{_WHAT} of version {version} for {config.sample_rate} Hz",
    )
    synthesizer.load_state_dict(_folded(synthesizer, tensors), assign=True)
    synthesizer.dec.fold_means()
    return VoiceCheckpoint(
        synthesizer.eval().requires_grad_(False),
        version,
        str(content.get("info", "")),
        hashlib.sha256(path.read_bytes()).hexdigest(),
        encoder,
    )


def _other_content(content: Mapping[str, Any]) -> str:
    """What a file without 'weight' and 'config' is, and what to do."""
    tensors = next(
        (content[key] for key in ("weight", "model", "state_dict") if isinstance(content.get(key), dict)),
        content,
    )
    names = [_published_name(name) for name in tensors]
    keys = ", ".join(sorted(str(key) for key in content)[:8]) or "nothing"
    for pattern, text in _OTHER_FILES:
        if any(re.match(pattern, name) for name in names):
            return text
    return f"holds {keys}: an {_WHAT} holds 'weight' and 'config'; {_SMALL}"


def _refuse_other_vocoders(path: Path, content: Mapping[str, Any], weight: Mapping[str, Any]) -> None:
    """Raises for networks other than HiFi-GAN, whether the file names them or only has their layers."""
    named = str(content.get("vocoder", ""))
    plain = re.sub(r"[\W_]+", "", named).lower()
    other = next(
        (
            vocoder
            for start, vocoder in _OTHER_VOCODERS
            for name in weight
            if _published_name(name).startswith(start)
        ),
        None if plain in _HIFIGAN or plain == "hifigannsf" else named,
    )
    if other is not None:
        raise ImportFailure(
            f"{path} has the vocoder {other!r}: only HiFi-GAN, the vocoder of RVC itself, can be imported, "
            "not MRF HiFi-GAN or RefineGAN; get the voice with HiFi-GAN, or train it again with that vocoder"
        )


def _published_name(name: Any) -> str:
    """The name under old-style weight normalisation, without what wrappers for training put in front."""
    return (
        re.sub(r"^(module\.|_orig_mod\.)+", "", str(name))
        .replace(".parametrizations.weight.original0", ".weight_g")
        .replace(".parametrizations.weight.original1", ".weight_v")
    )


def _config(
    path: Path, values: Any, tensors: Mapping[str, Any], version: str, has_f0: bool
) -> SynthesizerConfig:
    """Shape of the voice from the 18 positional values of a checkpoint and the rows of its speaker table."""
    if not isinstance(values, (list, tuple)) or len(values) != _CONFIG_LENGTH:
        size = f" of {len(values)}" if isinstance(values, Sized) else ""
        raise ImportFailure(
            f"{path}: 'config' should be {_CONFIG_LENGTH} values as RVC writes them, got a "
            f"{type(values).__name__}{size}: {str(values)[:120]}"
        )
    speakers = tensors.get(_SPEAKER_TABLE)
    if not isinstance(speakers, Tensor) or speakers.ndim != 2:
        raise ImportFailure(f"{path} is no complete {_WHAT}: {_SPEAKER_TABLE} is missing")
    (_, _, latent, channels, hidden, heads, layers, kernel, _, block, block_kernels, dilations) = values[:12]
    (rates, decoder_channels, kernels, _, condition, sample_rate) = values[12:]
    # The last value is the rate; the file's own 'sr' is a label that tools get wrong.
    rate = {f"{hz // 1000}k": hz for hz in OUTPUT_RATES}.get(sample_rate, sample_rate)
    if rate not in OUTPUT_RATES:
        raise ImportFailure(
            f"{path} speaks at {sample_rate!r} Hz: voices of "
            f"{', '.join(map(str, OUTPUT_RATES))} Hz can be imported"
        )
    if str(block) != "1":
        raise ImportFailure(f"{path} has residual blocks of kind {block!r}: kind '1' can be imported")
    try:
        return SynthesizerConfig(
            content=CONTENT_SIZES[version],
            latent=int(latent),
            channels=int(channels),
            hidden=int(hidden),
            heads=int(heads),
            layers=int(layers),
            kernel=int(kernel),
            block_kernels=tuple(int(size) for size in block_kernels),
            block_dilations=tuple(tuple(int(step) for step in steps) for steps in dilations),
            rates=tuple(int(factor) for factor in rates),
            decoder_channels=int(decoder_channels),
            kernels=tuple(int(size) for size in kernels),
            speakers=int(speakers.shape[0]),
            condition=int(condition),
            sample_rate=int(rate),
            has_f0=has_f0,
        )
    except (TypeError, ValueError) as error:
        raise ImportFailure(f"{path}: 'config' does not describe a voice: {error}") from error


def published_shapes(synthesizer: Synthesizer) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of such a voice holds."""
    normalised = _normalised(synthesizer)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in synthesizer.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer in normalised:
            shapes[f"{layer}.weight_g"] = (tensor.shape[0], *(1 for _ in tensor.shape[1:]))
            shapes[f"{layer}.weight_v"] = tuple(tensor.shape)
        else:
            shapes[name] = tuple(tensor.shape)
    return shapes


def _normalised(synthesizer: Synthesizer) -> set[str]:
    """Names of the layers that were trained with weight normalisation."""
    names: set[str] = set()
    for name, module in synthesizer.named_modules():
        if isinstance(module, (WaveNet, ResidualBlock)):
            names.update(
                f"{name}.{child}" for child, layer in module.named_modules() if isinstance(layer, nn.Conv1d)
            )
        elif isinstance(module, Upsampling):
            names.add(name)
    return names


def _folded(synthesizer: Synthesizer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the place of magnitude and direction (Salimans and Kingma 2016), which lie along axis 0."""
    weights = dict(tensors)
    for layer in _normalised(synthesizer):
        magnitude, direction = weights.pop(f"{layer}.weight_g"), weights.pop(f"{layer}.weight_v")
        norm = torch.linalg.vector_norm(direction.double(), dim=tuple(range(1, direction.ndim)), keepdim=True)
        weights[f"{layer}.weight"] = (direction.double() * (magnitude.double() / norm)).float()
    return weights
