"""The parts of the training on a corpus of tones: frames are compared with their own; a voice comes out."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from rich.console import Console
from torch import Tensor
from toy_corpus import FRAMES, VOICES, make_content, make_corpus, make_synthesizer
from typer.testing import CliRunner

from autovoice_export.base.build import build_repository
from autovoice_export.base.checkpoint import load_checkpoint, save_pitch_extractor
from autovoice_export.base.stages.content_encoder import Content
from autovoice_export.base.stages.pitch_extractor import PitchExtractor
from autovoice_plugins.geometry import HOP
from autovoice_training.train.__main__ import main
from autovoice_training.train.config import DEFAULT_CONFIG, TrainConfig
from autovoice_training.train.content import KeyedEncoder
from autovoice_training.train.data import UNKNOWN_PHONE, Item
from autovoice_training.train.device import choose_device
from autovoice_training.train.page import SamplePages
from autovoice_training.train.publish import publish

QUIET = Console(quiet=True)
DEMO = Path(__file__).resolve().parents[2] / "demo"


@pytest.mark.heavy
def test_results_are_compared_frame_by_frame(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A synthesizer that hands on its source loses nothing; one that is a frame off does."""
    loop = make_synthesizer(corpus_folder, tmp_path, history_frames=0, unpaired_items=0, crop_frames=FRAMES)
    # Nothing was said before, and the crop is all there is: the past is the same for both.
    first = [loop.sampler.utterances[name][0] for name in VOICES]
    items = [Item(one, one, paired=True, perturb=False) for one in first]
    batch = loop.sampler._collate(items, np.random.default_rng(0))
    monkeypatch.setattr(loop.sampler, "batch", lambda *_: batch)
    found = []
    for late in (-HOP, 0, HOP):
        # The op's output is half a block late.
        result: tuple[Tensor, None] = (batch.audio.roll(HOP // 2 + late, dims=1), None)
        monkeypatch.setattr(loop.module, "render", lambda *_, result=result: result)
        with torch.no_grad():
            found.append(loop.losses(loop.module, 0, "valid", torch.Generator()))
    early, on_time, late = found
    assert on_time["mel"] < 1e-3
    assert min(early["mel"], late["mel"]) > 0.02
    assert on_time["words"] < 0.7 * min(early["words"], late["words"])


@pytest.mark.heavy
def test_filters_see_the_source_s_past_and_the_target_s_reference(
    corpus_folder: Path, tmp_path: Path
) -> None:
    loop = make_synthesizer(corpus_folder, tmp_path)
    batch = loop.sampler.batch(0)
    embedding = loop._embedding(batch)
    shape = len(batch.past), loop.config.history_frames
    key = torch.nn.functional.normalize(torch.randn(*shape, 24), dim=2)
    content = Content(torch.ones(*shape, 1), key, torch.zeros(*shape, 96), torch.zeros(*shape, 40))
    memory = loop._memory(loop.module, content, embedding, batch.past, torch.Generator().manual_seed(0))
    heard = memory[:, -1]
    assert (heard <= batch.past).all()
    assert heard.unique().numel() > 1
    nothing = loop._memory(loop.module, content, embedding, torch.zeros_like(batch.past), torch.Generator())
    assert nothing.abs().max() == 0


@pytest.mark.heavy
def test_a_reversed_source_is_the_recording_in_the_next_item_s_voice(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_synthesizer(corpus_folder, tmp_path, history_frames=50, unpaired_items=0, crop_frames=FRAMES)
    said = {name: loop.sampler.utterances[name][1] for name in VOICES}
    items = [Item(one, one, paired=True, perturb=False, reverse=name == "low") for name, one in said.items()]
    batch = loop.sampler._collate(items, np.random.default_rng(0))
    embedding, mel = loop._embedding(batch), torch.exp(batch.source)
    asked = []
    filters = loop.module.filters

    def listen(content: Tensor, loudness: Tensor, f0: Tensor, *rest: Any) -> Any:
        asked.append((f0, rest[1]))
        return filters(content, loudness, f0, *rest)

    monkeypatch.setattr(loop.module, "filters", listen)
    with torch.no_grad():
        changed = loop._reversed(loop.module, mel, embedding, batch)
    low, high = list(VOICES).index("low"), list(VOICES).index("high")
    assert (changed != mel).flatten(1).any(dim=1).tolist() == [name == "low" for name in VOICES]
    ((f0, voice),) = asked
    torch.testing.assert_close(voice[0], embedding[high])
    ratio = batch.usual_f0[high] / batch.usual_f0[low]
    torch.testing.assert_close(f0[0], batch.melody[low, :, 0] * ratio)
    # The op's output is half a block late; what it makes is in time with the recording.
    loop.sampler.history = 0
    batch = loop.sampler._collate(items, np.random.default_rng(0))
    mel, audio = torch.exp(batch.source), batch.audio[low : low + 1].roll(HOP // 2, dims=1)
    monkeypatch.setattr(loop.module, "render", lambda *_: (audio, None))
    with torch.no_grad():
        changed = loop._reversed(loop.module, mel, embedding, batch)
    torch.testing.assert_close(changed[low, 1:-4], mel[low, 1:-4], rtol=0.02, atol=1e-6)


@pytest.mark.heavy
def test_attention_on_other_sounds_costs(corpus_folder: Path, tmp_path: Path) -> None:
    """Keys that say the phone find frames of the same sound; keys that say another one do not."""
    loop = make_content(corpus_folder, tmp_path, aligned_share=1.0, reference_frames=FRAMES)
    batch = loop.sampler.batch(0)
    assert (batch.phones >= 0).all()

    def says(phones: Tensor) -> tuple[Tensor, Tensor]:
        return torch.nn.functional.one_hot(phones, 24).float(), torch.zeros(*phones.shape, 41)

    def losses(phones: Tensor) -> dict[str, Tensor]:
        encoders = torch.nn.Module()
        encoders.encoder, encoders.sharpness = loop.module.encoder, torch.tensor(4.0)
        answers = iter([batch.phones, batch.reference_phones])
        encoders.reference = lambda _: says(next(answers))
        encoders.forward = lambda _: says(phones)
        return loop.losses(encoders, 0, "train", torch.Generator().manual_seed(0))

    right, wrong = losses(batch.phones), losses((batch.phones + 1) % 3)
    assert right["match"] < 0.01 < 3.0 < wrong["match"]


@pytest.mark.heavy
def test_unlabelled_frames_learn_from_the_reference_encoder_when_it_knows_something(
    corpus_folder: Path, tmp_path: Path
) -> None:
    loop = make_content(corpus_folder, tmp_path, aligned_share=0.0, people_share=1.0, distil_from=3)
    assert (loop.sampler.batch(0).phones == UNKNOWN_PHONE).all()
    before, after = (
        loop.losses(loop.module, step, "train", torch.Generator().manual_seed(0)) for step in (2, 3)
    )
    assert before["phone"] == before["match"] == 0
    assert after["phone"] > 1.0
    after["phone"].backward()
    assert loop.module.reference.phones.weight.grad is None, "the teacher does not learn from its pupil"
    assert loop.module.encoder.phones.weight.grad.abs().max() > 0


@pytest.mark.heavy
@pytest.mark.parametrize("make", [make_content, make_synthesizer])
def test_a_loss_that_is_no_number_ends_the_run(make: Any, corpus_folder: Path, tmp_path: Path) -> None:
    loop = make(corpus_folder, tmp_path)
    loop.update()
    with torch.no_grad():
        next(loop.module.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match=rf"step 1 is not finite; lower {loop.name}\.learning_rate"):
        loop.update()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA GPU")
@pytest.mark.parametrize("make", [make_content, make_synthesizer])
def test_a_run_goes_on_from_cpu_to_gpu_and_back(make: Any, corpus_folder: Path, tmp_path: Path) -> None:
    losses = [make(corpus_folder, tmp_path, device).validate() for device in ("cpu", "cuda")]
    for name, value in losses[0].items():
        assert losses[1][name] == pytest.approx(value, rel=0.05, abs=0.05), name
    for device in ("cpu", "cuda", "cpu"):
        loop = make(corpus_folder, tmp_path / "run", device)
        loop.resume()
        loop.train(QUIET, deadline=0.0)
    assert loop.step == 3


@pytest.mark.heavy
def test_a_checkpoint_has_a_page_of_samples(corpus_folder: Path, tmp_path: Path) -> None:
    """The judges on conversions between two recordings that stand for development readers."""
    people = tmp_path / "people"
    people.mkdir()
    for reader, name in ((289, "target_awb"), (587, "target_slt")):
        shutil.copy(DEMO / f"{name}.flac", people / f"{reader}-1-0001.flac")
    loop = make_synthesizer(corpus_folder, tmp_path / "run", steps=1)
    loop.pages = SamplePages(people, tmp_path / "samples", PitchExtractor().eval(), pairs=1)
    before = {name: value.clone() for name, value in loop.module.state_dict().items()}
    loop.show(QUIET)
    text = (tmp_path / "samples" / "step_0.md").read_text()
    rows = {row.split("|")[1].strip(): row for row in text.splitlines() if row.startswith("|")}
    assert {"source", "AutoVoice", "AutoVoice into its own speaker", "target"} <= set(rows)
    assert re.search(r"\d\.\d+ \(", rows["AutoVoice"])
    assert "words wrong, Whisper base" in text
    for name in re.findall(r"\]\((.*png)\)", text):
        assert (tmp_path / "samples" / name).stat().st_size > 10_000
    assert text.count(".png") == 2
    assert all(torch.equal(value, before[name]) for name, value in loop.module.state_dict().items())
    assert loop.module.training


class TestVoice:
    """A trained voice: what is published is what was trained, and it can be served."""

    @pytest.fixture(scope="class")
    def voice(self, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        run = tmp_path_factory.mktemp("run")
        content = make_content(corpus_folder, run, steps=1)
        synthesizer = make_synthesizer(corpus_folder, run, steps=1)
        content.train(QUIET)
        synthesizer.train(QUIET)
        settings = TrainConfig(seed=5, content=content.config, synthesizer=synthesizer.config)
        publish(settings, content, synthesizer, PitchExtractor(), run / "voice.safetensors", QUIET)
        self.check_weights(run / "voice.safetensors", content.average.module, synthesizer.average.module)
        return run / "voice.safetensors"

    @staticmethod
    def check_weights(path: Path, encoders: KeyedEncoder, synthesizer: torch.nn.Module) -> None:
        checkpoint = load_checkpoint(path)
        for found, trained in (
            (checkpoint.content_encoder, encoders.encoder),
            (checkpoint.reference_encoder, encoders.reference),
            (checkpoint.synthesizer, synthesizer),
        ):
            for name, value in found.state_dict().items():
                torch.testing.assert_close(value, trained.state_dict()[name], rtol=0, atol=0)

    @pytest.mark.heavy
    def test_its_checkpoint_says_what_it_was_made_of(self, voice: Path, corpus_folder: Path) -> None:
        checkpoint = load_checkpoint(voice)
        metadata = checkpoint.metadata
        assert metadata["steps"] == {"content": 1, "synthesizer": 1}
        assert metadata["train"]["synthesizer"]["adversarial_from"] == 0
        assert metadata["corpus"]["speakers"] == 3
        assert set(metadata["corpus"]["hours"]) == {"kokoro", "people"}

    @pytest.mark.slow
    def test_it_becomes_a_repository(self, voice: Path, tmp_path: Path) -> None:
        agreements = build_repository(load_checkpoint(voice), tmp_path / "models")
        assert max(one.worst for one in agreements) <= 1


@pytest.mark.heavy
def test_the_command_goes_on_where_it_stopped_and_writes_a_voice(tmp_path: Path) -> None:
    data, settings, checkpoint = (
        make_corpus(tmp_path / "data"),
        tmp_path / "train.toml",
        tmp_path / "voice.safetensors",
    )
    (data / "features").rename(tmp_path / "not_measured")
    size = "batch_size = 2\ncrop_frames = 40\nsteps = 2\ncheckpoint_steps = 2\n"
    settings.write_text(f"[content]\n{size}reference_frames = 60\n[synthesizer]\n{size}unpaired_items = 1\n")
    pitch = tmp_path / "pitch.safetensors"
    save_pitch_extractor(pitch, PitchExtractor())
    options = ["--data", data, "--run", tmp_path / "run", "--checkpoint", checkpoint, "--config", settings]
    options += ["--pitch", pitch]
    app = typer.Typer()
    app.command()(main)

    def train(*more: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [*map(str, options), "--device", "cpu", *more])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    code, output = train("--minutes", "0")
    assert (code, checkpoint.exists()) == (0, False)
    assert "stopped at the deadline, step 1" in output
    code, output = train()
    assert code == 0, output
    assert "content resumed at step 1" in output
    assert load_checkpoint(checkpoint).metadata["steps"] == {"content": 2, "synthesizer": 2}
    settings.write_text(settings.read_text().replace("batch_size = 2", "batch_size = 3"))
    code, output = train()
    assert code == 2
    assert "content.batch_size = 2, and now it is 3" in " ".join(output.split())
    assert output.count("error:") == 1


def test_config_refuses_unknown_settings_and_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    for text, says in (
        ("stepz = 3\n", "unknown setting stepz; see TrainConfig"),
        ("[content]\nblend = 1\n", r"unknown setting content\.blend; see ContentConfig"),
        ("[synthesizer]\nsteps = 0\n", "steps must be at least 1, not 0"),
        ("[synthesizer]\npeople_share = 1.5\n", "people_share must be between 0 and 1"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=says) as refusal:
            TrainConfig.read(path)
        assert str(path) in str(refusal.value)


def test_the_shipped_settings_are_read() -> None:
    settings = TrainConfig.read(DEFAULT_CONFIG)
    assert settings != TrainConfig()


def test_a_device_that_is_not_there_is_named() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="'abacus'"):
        choose_device("abacus")
    if not torch.cuda.is_available():
        assert choose_device("auto").type == "cpu"
        with pytest.raises(ValueError, match="no CUDA GPU"):
            choose_device("cuda")
