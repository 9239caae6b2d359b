"""Checkpoints of the base voice: one safetensors file with weights, stage configs and metadata."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from autovoice.atomic import atomic_path
from autovoice_export.base.stages.content_encoder import ContentEncoder, ContentEncoderConfig
from autovoice_export.base.stages.synthesizer import Synthesizer, SynthesizerConfig
from autovoice_export.base.stages.target_pitch import TargetPitch
from autovoice_export.build_errors import CheckpointError

_HEADER_KEY = "autovoice"
_FORMAT = 4

_Config = TypeVar("_Config", ContentEncoderConfig, SynthesizerConfig)


@dataclass(frozen=True)
class Checkpoint:
    """The trained stages of one base voice.

    Attributes:
        content_encoder: in evaluation mode.
        synthesizer: in evaluation mode.
        target_pitch: in evaluation mode.
        metadata: what the trainer noted (data, steps, seeds, figures); JSON values.
        sha256: of the file; of nothing for weights that never were in a file.
    """

    content_encoder: ContentEncoder
    synthesizer: Synthesizer
    target_pitch: TargetPitch
    metadata: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @classmethod
    def untrained(cls, seed: int) -> Checkpoint:
        """Seeded random weights in the default configuration: for tests and trials."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            content_encoder, synthesizer = ContentEncoder().eval(), Synthesizer().eval()
            # As it starts training, the output layer says almost the same whatever it is given.
            torch.nn.init.normal_(synthesizer.correction.weight, std=0.1)
        return cls(content_encoder, synthesizer, TargetPitch().eval(), {"untrained_seed": seed})


def save_checkpoint(
    path: str | os.PathLike[str],
    content_encoder: ContentEncoder,
    synthesizer: Synthesizer,
    target_pitch: TargetPitch,
    metadata: Mapping[str, Any],
) -> None:
    """Writes a checkpoint; the file appears whole or not at all.

    Args:
        path: where to; its folder is made where missing.
        content_encoder: weights and config are taken from it.
        synthesizer: weights and config are taken from it.
        target_pitch: see `autovoice_export.base.stages.target_pitch.fit`.
        metadata: anything JSON can hold.
    """
    stages = {
        "content_encoder": content_encoder,
        "synthesizer": synthesizer,
        "target_pitch": target_pitch,
    }
    tensors = {
        f"{prefix}.{name}": tensor.detach().cpu().contiguous()
        for prefix, stage in stages.items()
        for name, tensor in stage.state_dict().items()
    }
    header = {
        "format": _FORMAT,
        "content_encoder": asdict(content_encoder.config),
        "synthesizer": asdict(synthesizer.config),
        "metadata": dict(metadata),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        # One header key: safetensors writes several in any order, and equal weights should be equal bytes.
        partial.write_bytes(save(tensors, {_HEADER_KEY: json.dumps(header, sort_keys=True)}))


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint written by `save_checkpoint`.

    Raises:
        CheckpointError: no such file, not such a file, or weights that do not fit the stages.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint {path} does not exist: train one with  make train  or name another"
        )
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER_KEY)
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensors[name] = file.get_tensor(name)
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {path} is no complete safetensors file ({error})") from error
    if header is None:
        raise CheckpointError(
            f"checkpoint {path} has no '{_HEADER_KEY}' header: it was not written by AutoVoice"
        )
    description = json.loads(header)
    if description["format"] != _FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {description['format']}, this version reads format {_FORMAT}"
        )
    content_encoder = ContentEncoder(_config(ContentEncoderConfig, description["content_encoder"], path))
    synthesizer = Synthesizer(_config(SynthesizerConfig, description["synthesizer"], path))
    target_pitch = TargetPitch()
    _fill(content_encoder, "content_encoder", tensors, path)
    _fill(synthesizer, "synthesizer", tensors, path)
    _fill(target_pitch, "target_pitch", tensors, path)
    return Checkpoint(
        content_encoder.eval(),
        synthesizer.eval(),
        target_pitch.eval(),
        metadata=description["metadata"],
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _config(kind: type[_Config], values: dict[str, Any], path: Path) -> _Config:
    unknown = sorted(set(values) - {item.name for item in fields(kind)})
    if unknown:
        raise CheckpointError(
            f"checkpoint {path} sets {', '.join(unknown)}, which {kind.__name__} does not have"
        )
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return kind(**settings)


def _fill(stage: nn.Module, prefix: str, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Loads the tensors named ``prefix.*`` into a stage, naming the first that is missing or does not fit."""
    wanted = stage.state_dict()
    found = {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }
    for name, tensor in wanted.items():
        if name not in found:
            raise CheckpointError(f"checkpoint {path} has no tensor '{prefix}.{name}': train again")
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"checkpoint {path}: tensor '{prefix}.{name}' has shape {list(found[name].shape)}, "
                f"the stage needs {list(tensor.shape)}: the file is of another version, train again"
            )
    extra = sorted(set(found) - set(wanted))
    if extra:
        raise CheckpointError(
            f"checkpoint {path} has a tensor '{prefix}.{extra[0]}' that the stage does not use"
        )
    stage.load_state_dict(found)
