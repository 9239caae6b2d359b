"""Which content encoder a voice was trained on: on any other it speaks without words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from autovoice_export.build_errors import ImportFailure
from autovoice_export.rvc.wiring import CONTENT_MODELS

CONTENTVEC = "contentvec"

_KEYS = ("embedder_model", "embedder_name", "embedder")
"""Of checkpoints by Applio, rvc-webui and others; those of RVC itself name none and mean ContentVec."""

_CONTENTVEC_NAMES = {
    "", "none", "contentvec", "contentvec-base", "content-vec", "content-vec-best", "hubert", "hubert-base",
}  # fmt: skip
"""RVC calls its file of ContentVec hubert_base.pt."""

_OTHERS = re.compile(
    r"spin(-?v?\d+)?(-.*)?|(chinese|japanese|korean)-hubert-.*|hubert-base-(japanese|chinese|korean)"
)
_LAYERS = {"v1": 9, "v2": 12}


def encoder_of(checkpoint: Mapping[str, Any], version: str, path: Path) -> str:
    """The encoder that a checkpoint names, `CONTENTVEC` unless it names another.

    Raises:
        ImportFailure: it was trained on another layer than the version's.
    """
    layer = checkpoint.get("embedder_output_layer")
    if layer not in (None, _LAYERS[version]):
        raise ImportFailure(
            f"{path} was trained on layer {layer!r} of its content encoder: those of version {version} that "
            f"can be imported on layer {_LAYERS[version]}"
        )
    for key in _KEYS:
        if key in checkpoint:
            name = _normal(str(checkpoint[key]))
            return CONTENTVEC if name in _CONTENTVEC_NAMES else name
    return CONTENTVEC


def content_model(encoder: str, version: str) -> str:
    """Name of the shared model of an encoder, for checkpoints of a version."""
    if encoder == CONTENTVEC:
        return CONTENT_MODELS[version]
    return f"hubert_{version}_{re.sub(r'[^a-z0-9]+', '_', encoder).strip('_') or 'other'}"


def where(encoder: str) -> str:
    """What to tell somebody whose voice needs an encoder other than ContentVec."""
    return (
        f"pass --contentvec with the encoder {encoder!r}, in a folder or file of that name, as "
        "the trainer of the voice had it"
    )


def check_encoder(encoder: str, path: Path, checkpoint: Path) -> None:
    """Holds the file or folder of an encoder against the one that a voice names.

    Args:
        encoder: that of the voice.
        path: what was given with ``--contentvec``; only its name says what it is.
        checkpoint: the voice.

    Raises:
        ImportFailure: it is another.
    """
    given = _normal((path.resolve() if path.name in ("", ".", "..") else path).name)
    if encoder != CONTENTVEC and given != encoder:
        raise ImportFailure(
            f"{checkpoint} was trained on the content encoder {encoder!r}, and with --contentvec {path} it "
            f"would speak without words: {where(encoder)}"
        )
    if encoder == CONTENTVEC and _OTHERS.fullmatch(given):
        raise ImportFailure(
            f"{checkpoint} was trained on ContentVec, and with --contentvec {path} it would speak "
            "without words: pass --contentvec with ContentVec, such as RVC's hubert_base.pt"
        )


def _normal(name: str) -> str:
    """A name without folders and endings, in lower case with hyphens; rvc-webui adds the width to some."""
    last = PurePosixPath(name.strip().replace("\\", "/")).name.lower()
    stem = re.sub(r"\.(pt|pth|bin|safetensors|ckpt)$", "", last)
    return re.sub(r"(?<=[a-z])-?(256|768)$", "", re.sub(r"[\s_]+", "-", stem))
