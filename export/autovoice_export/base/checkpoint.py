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
from autovoice_export.base.stages.pitch_extractor import PitchExtractor, PitchExtractorConfig
from autovoice_export.base.stages.synthesizer import Synthesizer, SynthesizerConfig
from autovoice_export.base.stages.target_pitch import TargetPitch
from autovoice_export.base.stages.voice_encoder import ReferenceEncoder, ReferenceEncoderConfig
from autovoice_export.build_errors import CheckpointError

_HEADER_KEY = "autovoice"
_FORMAT = 5

_Config = TypeVar(
    "_Config", ContentEncoderConfig, PitchExtractorConfig, ReferenceEncoderConfig, SynthesizerConfig
)


@dataclass(frozen=True)
class Checkpoint:
    """The trained stages of one base voice.

    Attributes:
        content_encoder: in evaluation mode.
        reference_encoder: in evaluation mode.
        synthesizer: in evaluation mode.
        target_pitch: in evaluation mode.
        pitch_extractor: in evaluation mode.
        metadata: what the trainer noted (data, steps, seeds, figures); JSON values.
        sha256: of the file; of nothing for weights that never were in a file.
    """

    content_encoder: ContentEncoder
    reference_encoder: ReferenceEncoder
    synthesizer: Synthesizer
    target_pitch: TargetPitch
    pitch_extractor: PitchExtractor
    metadata: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @classmethod
    def untrained(cls, seed: int) -> Checkpoint:
        """Seeded random weights in the default configuration: for tests and trials."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            content_encoder, synthesizer = ContentEncoder().eval(), Synthesizer().eval()
            reference_encoder, pitch_extractor = ReferenceEncoder().eval(), PitchExtractor().eval()
            # As it starts training, the output layer says almost the same whatever it is given.
            torch.nn.init.normal_(synthesizer.correction.weight, std=0.1)
        metadata = {"untrained_seed": seed}
        return cls(
            content_encoder,
            reference_encoder,
            synthesizer,
            TargetPitch().eval(),
            pitch_extractor,
            metadata,
        )


def save_checkpoint(
    path: str | os.PathLike[str],
    content_encoder: ContentEncoder,
    reference_encoder: ReferenceEncoder,
    synthesizer: Synthesizer,
    target_pitch: TargetPitch,
    pitch_extractor: PitchExtractor,
    metadata: Mapping[str, Any],
) -> None:
    """Writes a checkpoint; the file appears whole or not at all.

    Args:
        path: where to; its folder is made where missing.
        content_encoder: weights and config are taken from it.
        reference_encoder: weights and config are taken from it.
        synthesizer: weights and config are taken from it.
        target_pitch: see `autovoice_export.base.stages.target_pitch.fit`.
        pitch_extractor: weights and config are taken from it.
        metadata: anything JSON can hold.
    """
    stages = {
        "content_encoder": content_encoder,
        "reference_encoder": reference_encoder,
        "synthesizer": synthesizer,
        "target_pitch": target_pitch,
        "pitch_extractor": pitch_extractor,
    }
    header = {
        "content_encoder": asdict(content_encoder.config),
        "reference_encoder": asdict(reference_encoder.config),
        "synthesizer": asdict(synthesizer.config),
        "pitch_extractor": asdict(pitch_extractor.config),
        "metadata": dict(metadata),
    }
    _write(Path(path), stages, header)


def save_pitch_extractor(path: str | os.PathLike[str], pitch_extractor: PitchExtractor) -> None:
    """Writes a pitch extractor alone, for `load_pitch_extractor`; the file appears whole or not at all."""
    stages = {"pitch_extractor": pitch_extractor}
    _write(Path(path), stages, {"pitch_extractor": asdict(pitch_extractor.config)})


def _write(path: Path, stages: Mapping[str, nn.Module], header: Mapping[str, Any]) -> None:
    tensors = {
        f"{prefix}.{name}": tensor.detach().cpu().contiguous()
        for prefix, stage in stages.items()
        for name, tensor in stage.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        # One header key: safetensors writes several in any order, and equal weights should be equal bytes.
        description = json.dumps({"format": _FORMAT, **header}, sort_keys=True)
        partial.write_bytes(save(tensors, {_HEADER_KEY: description}))


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint written by `save_checkpoint`.

    Raises:
        CheckpointError: no such file, not such a file, or weights that do not fit the stages.
    """
    path = Path(path)
    description, tensors = _read(path)
    content_encoder = ContentEncoder(_config(ContentEncoderConfig, description["content_encoder"], path))
    reference_encoder = ReferenceEncoder(
        _config(ReferenceEncoderConfig, description["reference_encoder"], path)
    )
    synthesizer = Synthesizer(_config(SynthesizerConfig, description["synthesizer"], path))
    pitch_extractor = PitchExtractor(_config(PitchExtractorConfig, description["pitch_extractor"], path))
    target_pitch = TargetPitch()
    _fill(content_encoder, "content_encoder", tensors, path)
    _fill(reference_encoder, "reference_encoder", tensors, path)
    _fill(synthesizer, "synthesizer", tensors, path)
    _fill(target_pitch, "target_pitch", tensors, path)
    _fill(pitch_extractor, "pitch_extractor", tensors, path)
    return Checkpoint(
        content_encoder.eval(),
        reference_encoder.eval(),
        synthesizer.eval(),
        target_pitch.eval(),
        pitch_extractor.eval(),
        metadata=description["metadata"],
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def load_pitch_extractor(path: str | os.PathLike[str]) -> PitchExtractor:
    """Reads the pitch extractor of a checkpoint, or one written by `save_pitch_extractor`.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    path = Path(path)
    description, tensors = _read(path)
    pitch_extractor = PitchExtractor(_config(PitchExtractorConfig, description["pitch_extractor"], path))
    _fill(pitch_extractor, "pitch_extractor", tensors, path)
    return pitch_extractor.eval()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
    description: dict[str, Any] = json.loads(header)
    if description["format"] != _FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {description['format']}, this version reads format {_FORMAT}"
        )
    return description, tensors


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
