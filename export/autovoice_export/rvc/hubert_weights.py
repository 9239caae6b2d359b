"""Weights of ContentVec (or another HuBERT base): a transformers folder or a fairseq checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autovoice_export.build_errors import ImportFailure
from autovoice_export.rvc.hubert import CONV_KERNELS, CONV_STRIDES, Hubert, HubertConfig
from autovoice_export.rvc.safe_loading import load_pickle, load_safetensors, require_tensors

WHERE = (
    "pass --contentvec with a folder that holds config.json and model.safetensors, such as a download of "
    "lengyue233/content-vec-best, or with RVC's hubert_base.pt"
)
"""What to tell somebody who has no weights."""

_WHAT = "HuBERT model"
_POSITION = "encoder.pos_conv_embed.conv"
_V1_LAYERS = 9

_FAIRSEQ_NAMES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.(.*)", r"feature_extractor.conv_layers.\1.conv.\2"),
    (r"feature_extractor\.conv_layers\.0\.2\.(.*)", r"feature_extractor.conv_layers.0.layer_norm.\1"),
    (r"layer_norm\.(.*)", r"feature_projection.layer_norm.\1"),
    (r"post_extract_proj\.(.*)", r"feature_projection.projection.\1"),
    (r"encoder\.pos_conv\.0\.(.*)", rf"{_POSITION}.\1"),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.(.*)", r"\1.layer_norm.\2"),
    (r"(encoder\.layers\.\d+)\.self_attn\.(.*)", r"\1.attention.\2"),
    (r"(encoder\.layers\.\d+)\.fc1\.(.*)", r"\1.feed_forward.intermediate_dense.\2"),
    (r"(encoder\.layers\.\d+)\.fc2\.(.*)", r"\1.feed_forward.output_dense.\2"),
)
"""Parameters of fairseq under the names of transformers; the others are called the same."""

_NEWER_NAMES = (
    ("conv.parametrizations.weight.original0", "conv.weight_g"),
    ("conv.parametrizations.weight.original1", "conv.weight_v"),
)
_TRAINING_ONLY = ("masked_spec_embed", "mask_emb", "label_embs_concat")


_FAIRSEQ_SETTINGS = (
    "fairseq.data.dictionary.Dictionary",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
)


def load_hubert(path: Path, version: str) -> Hubert:
    """Reads a content encoder for checkpoints of a version.

    Args:
        path: a folder with ``config.json`` and ``model.safetensors`` or ``pytorch_model.bin``, or a fairseq
            ``.pt``.
        version: "v1" for nine layers and their projection, "v2" for all layers.

    Raises:
        ImportFailure: not such files, or not a HuBERT that RVC could have been trained with.
    """
    config, found, origin = _from_folder(path) if path.is_dir() else _from_fairseq(path)
    tensors = {_name(name): tensor for name, tensor in found.items()}
    config = replace(config, layers=config.layers or _count_layers(tensors))
    if version == "v1":
        if config.layers < _V1_LAYERS or "final_proj.weight" not in tensors:
            raise ImportFailure(
                f"{origin} has {config.layers} layers and {'a' if 'final_proj.weight' in tensors else 'no'} "
                f"final_proj: voices of version v1 need {_V1_LAYERS} and their projection; {WHERE}"
            )
        config = replace(config, layers=_V1_LAYERS, projection=int(tensors["final_proj.weight"].shape[0]))
    with torch.device("meta"):
        hubert = Hubert(config, projects=version == "v1")
    unused = tuple(f"encoder.layers.{index}." for index in range(config.layers, 100))
    if version != "v1":
        unused += ("final_proj.",)
    wanted = {name: tuple(tensor.shape) for name, tensor in hubert.state_dict().items()}
    shape = wanted.pop(f"{_POSITION}.weight")
    folded = f"{_POSITION}.weight" in tensors
    if folded:
        wanted[f"{_POSITION}.weight"] = shape
    else:
        wanted[f"{_POSITION}.weight_g"], wanted[f"{_POSITION}.weight_v"] = (1, 1, shape[2]), shape
    used = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in _TRAINING_ONLY and not name.startswith(unused)
    }
    weights = require_tensors(used, wanted, origin, _WHAT)
    if not folded:
        # Along the last axis: one magnitude for every place in the kernel.
        magnitude, direction = (weights.pop(f"{_POSITION}.weight_{kind}").double() for kind in "gv")
        norm = torch.linalg.vector_norm(direction, dim=(0, 1), keepdim=True)
        weights[f"{_POSITION}.weight"] = (direction * (magnitude / norm)).float()
    hubert.load_state_dict(weights, assign=True)
    return hubert.eval().requires_grad_(False)


def _name(name: str) -> str:
    name = name.removeprefix("hubert.")
    for newer, older in _NEWER_NAMES:
        name = name.replace(newer, older)
    return name


def _count_layers(tensors: Mapping[str, Tensor]) -> int:
    numbers = [int(match[1]) for name in tensors if (match := re.match(r"encoder\.layers\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def _from_folder(folder: Path) -> tuple[HubertConfig, dict[str, Tensor], Path]:
    settings_file = folder / "config.json"
    if not settings_file.is_file():
        raise ImportFailure(f"{folder} holds no config.json: {WHERE}")
    try:
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        kernels, strides = tuple(settings["conv_kernel"]), tuple(settings["conv_stride"])
        widths = set(settings["conv_dim"])
        config = HubertConfig(
            channels=int(settings["conv_dim"][0]),
            size=int(settings["hidden_size"]),
            hidden=int(settings["intermediate_size"]),
            heads=int(settings["num_attention_heads"]),
            layers=int(settings["num_hidden_layers"]),
            position_kernel=int(settings["num_conv_pos_embeddings"]),
            position_groups=int(settings["num_conv_pos_embedding_groups"]),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ImportFailure(f"{settings_file} describes no HuBERT model ({error}): {WHERE}") from error
    expected: dict[str, tuple[Any, Any]] = {
        "conv_kernel": (kernels, CONV_KERNELS),
        "conv_stride": (strides, CONV_STRIDES),
        "widths of conv_dim": (len(widths), 1),
        "conv_bias": (settings.get("conv_bias", False), False),
        "feat_extract_norm": (settings.get("feat_extract_norm", "group"), "group"),
        "do_stable_layer_norm": (settings.get("do_stable_layer_norm", False), False),
        "hidden_act": (settings.get("hidden_act", "gelu"), "gelu"),
    }
    for name, (have, want) in expected.items():
        if have != want:
            raise ImportFailure(f"{settings_file} has {name} = {have}, HuBERT base has {want}: {WHERE}")
    for filename, load in (("model.safetensors", load_safetensors), ("pytorch_model.bin", load_pickle)):
        if (folder / filename).is_file():
            return config, load(folder / filename, _WHAT), folder / filename
    raise ImportFailure(f"{folder} holds neither model.safetensors nor pytorch_model.bin: {WHERE}")


def _from_fairseq(path: Path) -> tuple[HubertConfig, dict[str, Tensor], Path]:
    content = load_pickle(path, _WHAT, _FAIRSEQ_SETTINGS)
    model = content.get("model", content)
    if not isinstance(model, dict):
        raise ImportFailure(f"{path} holds no weights under 'model': {WHERE}")
    tensors = {}
    for name, tensor in model.items():
        renamed = str(name)
        for pattern, replacement in _FAIRSEQ_NAMES:
            if re.fullmatch(pattern, renamed):
                renamed = re.sub(pattern, replacement, renamed)
                break
        tensors[renamed] = tensor
    widths = {
        field: tensors[name].shape[axis]
        for field, (name, axis) in {
            "channels": ("feature_extractor.conv_layers.1.conv.weight", 0),
            "size": ("feature_projection.projection.weight", 0),
            "hidden": ("encoder.layers.0.feed_forward.intermediate_dense.weight", 0),
            "position_kernel": (f"{_POSITION}.weight_v", 2),
        }.items()
        if isinstance(tensors.get(name), Tensor) and tensors[name].ndim > axis
    }
    position = tensors.get(f"{_POSITION}.weight_v")
    base = HubertConfig()
    sizes: dict[str, int] = {field: int(width) for field, width in widths.items()}
    if isinstance(position, Tensor) and position.ndim == 3 and position.shape[1]:
        sizes["position_groups"] = position.shape[0] // position.shape[1]
    if "size" in sizes:
        # A head is 64 wide in every HuBERT.
        sizes["heads"] = max(1, sizes["size"] // (base.size // base.heads))
    return replace(base, **sizes, layers=_count_layers(tensors)), tensors, path
