"""The trainer of the pitch extractor learns, resumes where it stopped, and names what it cannot use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from toy_corpus import make_corpus
from typer.testing import CliRunner

from autovoice_export.base.checkpoint import load_pitch_extractor
from autovoice_training.train.pitch import PitchConfig, PitchTrainer, main
from autovoice_training.train.pitch_data import PitchFeatures

CONFIG = PitchConfig(steps=12, batch_size=2, learning_rate=3e-3, warmup_steps=2)


def features(count: int = 3, frames: int = 40) -> PitchFeatures:
    """The op hears an octave below the truth, and calls all voiced; the spectrum tells."""
    random = torch.Generator().manual_seed(0)
    voiced = (torch.rand(count, frames, generator=random) > 0.5).float()
    spectrum = torch.zeros(count, frames, 96, dtype=torch.float16)
    spectrum[:, 2:, 5] = voiced[:, :-2].half()
    full = torch.ones(count, frames)
    return PitchFeatures(spectrum, 150 * full, 0.8 * full, 300 * full, voiced)


def trainer(config: PitchConfig = CONFIG) -> PitchTrainer:
    return PitchTrainer(features(), config, torch.device("cpu"))


def test_it_learns_voicing_and_octave() -> None:
    one = trainer(replace(CONFIG, steps=100, learning_rate=1e-2))
    first = one.update()
    for _ in range(99):
        last = one.update()
    assert last["voicing"] < 0.5 * first["voicing"]
    assert last["pitch"] < 0.5 * first["pitch"]


def test_a_resumed_run_ends_like_one_that_was_not_stopped(tmp_path: Path) -> None:
    straight, stopped = trainer(), trainer()
    for _ in range(CONFIG.steps):
        straight.update()
    for _ in range(5):
        stopped.update()
    stopped.save(tmp_path / "state.pt")
    resumed = trainer()
    resumed.resume(tmp_path / "state.pt")
    while resumed.step < CONFIG.steps:
        resumed.update()
    for one, other in zip(straight.average.parameters(), resumed.average.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="other settings"):
        trainer(replace(CONFIG, seed=2)).resume(tmp_path / "state.pt")


def test_the_command_writes_weights_that_load(people_folder: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    settings = tmp_path / "pitch.toml"
    settings.write_text("items = 2\nsteps = 2\nbatch_size = 2\ncrop_frames = 50\n")
    weights = tmp_path / "pitch.safetensors"
    options = ["--run", str(tmp_path), "--weights", str(weights), "--config", str(settings)]
    result = CliRunner().invoke(app, [*options, "--data", str(people_folder)])
    assert result.exit_code == 0, result.output
    assert load_pitch_extractor(weights).trust.shape == (2,)
    result = CliRunner().invoke(app, [*options, "--data", str(make_corpus(tmp_path / "voices", ("low",)))])
    assert result.exit_code == 2
    assert "has no people" in result.output
    settings.write_text("items = 2\nsizes = 3\n")
    result = CliRunner().invoke(app, [*options, "--data", str(people_folder)])
    assert result.exit_code == 2
    assert "unknown setting sizes" in result.output
