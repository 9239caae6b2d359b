"""A run that is resumed goes on with the settings, the audio and the classifier that it began with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from autovoice_training.train.phones import train_classifier
from autovoice_training.train.trainer import VoiceConversionTrainer
from rich.console import Console
from toy_corpus import make_corpus, make_trainer, tone
from typer.testing import CliRunner

from autovoice_export.base.stages.pitch_extractor import PitchExtractor
from autovoice_export.base.stages.voice_encoder import PhoneClassifier
from autovoice_plugins.geometry import HOP
from autovoice_training.corpus.reader import Corpus
from autovoice_training.train import ablation
from autovoice_training.train.__main__ import main
from autovoice_training.train.config import CHANGEABLE, TrainConfig
from autovoice_training.train.features import extract, read_features
from autovoice_training.train.publish import publish

pytestmark = pytest.mark.heavy

QUIET = Console(quiet=True)
OTHER_VALUES: dict[type, Callable[[Any], Any]] = {
    bool: lambda value: not value,
    int: lambda value: value + 1,
    float: lambda value: 0.5 if value == 1.0 else (value + 1.0) / 2.0,
}


def changed(config: TrainConfig, name: str) -> TrainConfig:
    """The settings with another value of one."""
    value = getattr(config, name)
    if isinstance(value, tuple):
        return replace(config, **{name: tuple(item + 1.0 for item in value)})
    return replace(config, **{name: OTHER_VALUES[type(value)](value)})


@pytest.fixture(scope="module")
def run(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that was stopped after its first step."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(corpus_folder, folder, steps=4).train(QUIET, deadline_seconds=0.0)
    return folder


@pytest.fixture
def trainer(corpus_folder: Path, run: Path) -> VoiceConversionTrainer:
    return make_trainer(corpus_folder, run, steps=4)


def test_every_changed_setting_is_refused(trainer: VoiceConversionTrainer) -> None:
    before = trainer.config
    for name in (field.name for field in fields(TrainConfig)):
        trainer.config = changed(before, name)
        old, new = (getattr(config, name) for config in (before, trainer.config))
        with pytest.raises(ValueError, match=rf"state\.pt was made with {name} = ") as refusal:
            trainer.resume()
        message = str(refusal.value)
        assert f"{name} = {old!r}, and now it is {new!r}" in message
        assert (f"--accept {name}" in message) == (name in CHANGEABLE)
    assert trainer.step == 0, "nothing was taken up"


def test_a_setting_that_may_change_is_accepted_by_name(trainer: VoiceConversionTrainer) -> None:
    trainer.config = replace(trainer.config, steps=9, validation_batches=2)
    with pytest.raises(ValueError, match="validation_batches"):
        trainer.resume(["steps"])
    assert trainer.resume(["steps", "validation_batches"])
    assert trainer.step == 1


def test_no_other_setting_is_accepted(trainer: VoiceConversionTrainer) -> None:
    with pytest.raises(ValueError, match=r"seed cannot be changed.* steps, learning_rate"):
        trainer.resume(["seed"])


def test_an_accepted_learning_rate_is_the_one_in_use(trainer: VoiceConversionTrainer) -> None:
    """Optimizer and schedule carry the rate that they were saved with."""
    trainer.config = replace(trainer.config, learning_rate=trainer.config.learning_rate / 100)
    assert trainer.resume(["learning_rate"])
    for step in (1, 2):
        expected = trainer.config.learning_rate * trainer._learning_rate_factor(step)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        trainer.update()


def test_a_state_of_another_version_is_refused(corpus_folder: Path, run: Path, tmp_path: Path) -> None:
    state = torch.load(run / "state.pt", weights_only=True)
    del state["config"]["altered"]
    torch.save(state, tmp_path / "state.pt")
    trainer = make_trainer(corpus_folder, tmp_path, steps=4)
    with pytest.raises(ValueError, match=r"altered = 'not set', and now it is 0\.5"):
        trainer.resume()


def test_another_beginning_is_refused(
    corpus_folder: Path, trainer: VoiceConversionTrainer, tmp_path: Path
) -> None:
    publish(
        make_trainer(corpus_folder, tmp_path, steps=1),
        PitchExtractor(),
        tmp_path / "voice.safetensors",
        QUIET,
    )
    with pytest.raises(ValueError, match="did not begin with the weights of"):
        trainer.resume(start_from=tmp_path / "voice.safetensors")
    assert trainer.resume(start_from=None)


def test_a_classifier_of_other_settings_is_refused(corpus_folder: Path, tmp_path: Path) -> None:
    corpus, path, cpu = Corpus(corpus_folder), tmp_path / "phones.pt", torch.device("cpu")
    trained = train_classifier(corpus, path, 1, 0, cpu, QUIET)
    for steps, seed, named in ((2, 0, "classifier_steps = 1, and now it is 2"), (1, 5, "seed = 0")):
        with pytest.raises(ValueError, match=named):
            train_classifier(corpus, path, steps, seed, cpu, QUIET)
    kept = train_classifier(corpus, path, 1, 0, cpu, QUIET)
    torch.testing.assert_close(kept.output.bias, trained.output.bias)
    path.with_suffix(".json").unlink()
    train_classifier(corpus, path, 2, 5, cpu, QUIET)  # weights that were put there by hand


def test_the_command_refuses_in_one_line_and_takes_what_is_accepted(
    corpus_folder: Path, tmp_path: Path
) -> None:
    data, run, settings = tmp_path / "data", tmp_path / "run", tmp_path / "train.toml"
    shutil.copytree(corpus_folder, data)
    shutil.rmtree(data / "features")
    config = TrainConfig(
        steps=1, batch_size=2, unpaired_items=1, crop_frames=30, checkpoint_steps=1, validation_batches=1,
        classifier_steps=1, speaker_items=1, recorded_share=0.0,
    )  # fmt: skip
    options = ["--data", data, "--run", run, "--checkpoint", tmp_path / "voice.safetensors"]
    options += ["--config", settings, "--device", "cpu"]
    app = typer.Typer()
    app.command()(main)

    def train(config: TrainConfig, *more: str) -> tuple[int, list[str]]:
        ablation.write_config(config, settings)
        done = CliRunner().invoke(app, [*map(str, options), *more])
        return done.exit_code, done.output.splitlines()

    assert train(config)[0] == 0
    code, lines = train(replace(config, weight_decay=0.5))
    assert code == 2
    assert "weight_decay = 0.01, and now it is 0.5" in lines[-1]
    assert sum("error:" in line for line in lines) == 1
    assert train(replace(config, steps=2))[0] == 2
    code, lines = train(replace(config, steps=2), "--accept", "steps")
    assert code == 0, lines
    assert "resumed at step 1" in lines


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    config = TrainConfig()
    ablation.write_config(config, tmp_path / "train.toml")
    ablation._check_settings(config, tmp_path)
    with pytest.raises(typer.Exit):
        ablation._check_settings(replace(config, altered=0.25), tmp_path)


@pytest.fixture
def own_corpus(tmp_path: Path) -> Path:
    """A corpus that a test may change."""
    return make_corpus(tmp_path / "corpus")


def other_audio(root: Path) -> None:
    """Same length, so that nothing but the content tells."""
    path = root / "speakers" / "low" / "audio.npy"
    size = len(np.load(path))
    np.save(path, np.resize(tone(170.0, size // HOP), size))


def other_places(root: Path) -> None:
    """One utterance begins ten frames later."""
    path = root / "index.json"
    index = json.loads(path.read_text())
    first = next(one for one in index["utterances"] if one["speaker"] == "low")
    first["start_frame"] += 2
    first["frames"] -= 2
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "pitch", "embeddings"), [(other_audio, True, True), (other_places, False, True)]
)
def test_features_follow_what_they_were_measured_on(
    own_corpus: Path, tmp_path: Path, change: Callable[[Path], None], pitch: bool, embeddings: bool
) -> None:
    classifier, folder = PhoneClassifier().eval(), tmp_path / "features"
    extract(Corpus(own_corpus), folder, classifier, PitchExtractor(), QUIET)
    before, times = read_features(folder, "low"), written(folder)
    change(own_corpus)
    extract(Corpus(own_corpus), folder, classifier, PitchExtractor(), QUIET)
    after, later = read_features(folder, "low"), written(folder)
    assert np.array_equal(before.f0, after.f0) != pitch
    assert np.array_equal(before.embeddings, after.embeddings) != embeddings
    assert (later["low.npz"] != times["low.npz"]) == pitch
    kept = {name for name in times if not name.startswith("low.")}
    assert {name: later[name] for name in kept} == {name: times[name] for name in kept}


def test_pitch_is_measured_again_by_another_extractor(own_corpus: Path, tmp_path: Path) -> None:
    classifier, folder = PhoneClassifier().eval(), tmp_path / "features"
    extract(Corpus(own_corpus), folder, classifier, PitchExtractor(), QUIET)
    times = written(folder)
    extract(Corpus(own_corpus), folder, classifier, PitchExtractor(), QUIET)
    assert written(folder) == times, "nothing has changed"
    stricter = PitchExtractor()
    with torch.no_grad():
        stricter.output.bias[0] = -1.0
    extract(Corpus(own_corpus), folder, classifier, stricter, QUIET)
    again = written(folder)
    assert all((again[name] != times[name]) == (".voice." not in name) for name in times)


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_settings_survive_toml(tmp_path: Path) -> None:
    """The settings of a run that was started are what `check_saved` compares with."""
    config = TrainConfig(noise_db=(1.0, 2.0), formant_factors=(1.0, 1.1))
    ablation.write_config(config, tmp_path / "train.toml")
    TrainConfig.read(tmp_path / "train.toml").check_saved(asdict(config), tmp_path)
