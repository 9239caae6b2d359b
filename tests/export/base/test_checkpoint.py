"""Checkpoints: what goes in comes out, and what does not fit is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from autovoice.errors import OutputError
from autovoice_export.base import checkpoint as module
from autovoice_export.base.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint


def write(path: Path, checkpoint: Checkpoint, **metadata: object) -> Path:
    save_checkpoint(
        path,
        checkpoint.content_encoder,
        checkpoint.reference_encoder,
        checkpoint.synthesizer,
        checkpoint.target_pitch,
        checkpoint.pitch_extractor,
        metadata,
    )
    return path


def rewrite(path: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replaces or (None) removes tensors in a checkpoint."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata()
    tensors.update({name: tensor for name, tensor in change.items() if tensor is not None})
    save_file({n: t for n, t in tensors.items() if change.get(n, t) is not None}, path, header)


def test_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "voice.safetensors", checkpoint, steps=12, data=["kal", "awb"])
    loaded = load_checkpoint(path)
    assert loaded.metadata == {"steps": 12, "data": ["kal", "awb"]}
    for name in ("content_encoder", "reference_encoder", "synthesizer", "target_pitch", "pitch_extractor"):
        before, after = getattr(checkpoint, name).state_dict(), getattr(loaded, name).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert loaded.content_encoder.config == checkpoint.content_encoder.config
    assert loaded.synthesizer.config == checkpoint.synthesizer.config
    again = write(tmp_path / "again.safetensors", loaded, data=["kal", "awb"], steps=12)
    assert again.read_bytes() == path.read_bytes()


def test_interrupted_write_leaves_the_former_file(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "voice.safetensors", checkpoint, steps=1)
    former = path.read_bytes()

    def disk_full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(OutputError, match="No space"):
        write(path, checkpoint, steps=2)
    assert path.read_bytes() == former
    assert list(tmp_path.iterdir()) == [path]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors does not exist"):
        load_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize("length", [0, 5, 100, -10])
def test_truncated_file_is_named(checkpoint: Checkpoint, tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "voice.safetensors", checkpoint)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="no complete safetensors file"):
        load_checkpoint(path)


def test_foreign_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not written by AutoVoice"):
        load_checkpoint(path)


def test_missing_misshapen_and_unused_tensors_are_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = write(tmp_path / "voice.safetensors", checkpoint)
    rewrite(path, {"synthesizer.correction.bias": None})
    with pytest.raises(CheckpointError, match=r"no tensor 'synthesizer\.correction\.bias'"):
        load_checkpoint(path)
    rewrite(path, {"synthesizer.correction.bias": torch.ones(3)})
    with pytest.raises(
        CheckpointError, match=r"'synthesizer\.correction\.bias' has shape \[3\], the stage needs"
    ):
        load_checkpoint(path)
    write(path, checkpoint)
    rewrite(path, {"target_pitch.extra": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"'target_pitch\.extra' that the stage does not use"):
        load_checkpoint(path)


def test_newer_formats_and_settings_are_named(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "voice.safetensors", checkpoint)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["autovoice"])
    header["synthesizer"]["heads"] = 4
    save_file({"weight": torch.ones(1)}, path, {"autovoice": json.dumps(header)})
    with pytest.raises(CheckpointError, match="sets heads, which SynthesizerConfig does not have"):
        load_checkpoint(path)
    newer = module._FORMAT + 1
    monkeypatch.setattr(module, "_FORMAT", newer)
    write(path, checkpoint)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=f"has format {newer}, this version reads format {newer - 1}"):
        load_checkpoint(path)


def test_untrained_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (Checkpoint.untrained(seed).synthesizer.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["correction.weight"], other["correction.weight"])
