"""The trainer on a corpus of tones: its data line up, its losses measure what they should, and it resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from autovoice_training.train.blend import blend
from rich.console import Console
from toy_corpus import FRAMES, PHONES, VOICES, make_sampler, make_trainer, tone

from autovoice_export.base.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from autovoice_export.base.stages.mel import MelAnalysis
from autovoice_export.base.stages.pitch_extractor import PitchExtractor
from autovoice_export.base.stages.synthesizer import Synthesizer, SynthesizerConfig
from autovoice_export.base.stages.voice import VOICE_SIZE
from autovoice_export.base.stages.voice_encoder import PhoneClassifier, VoiceEncoder
from autovoice_plugins.geometry import HOP, SAMPLE_RATE
from autovoice_training.corpus.reader import Corpus, CorpusError
from autovoice_training.train.config import TrainConfig
from autovoice_training.train.data import APPROXIMATE_WEIGHT, Pair, PairSampler
from autovoice_training.train.features import extract, read_features
from autovoice_training.train.losses import EnvelopeLoss, MelLoss, SpeakerLoss
from autovoice_training.train.perturbation import perturb_mel
from autovoice_training.train.publish import publish


def test_missing_corpus_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="make corpus"):
        Corpus(tmp_path)


def test_features_are_those_of_the_stages_that_serve_the_voice(corpus_folder: Path, tmp_path: Path) -> None:
    """Above all the embeddings: an encoder without its weights gives every voice the same embedding."""
    corpus = Corpus(corpus_folder)
    torch.manual_seed(0)
    encoder = VoiceEncoder(PhoneClassifier())
    extract(corpus, tmp_path, encoder.classifier, PitchExtractor(), Console(quiet=True))
    for name, (pitch, _) in VOICES.items():
        features = read_features(tmp_path, name)
        assert features.f0.shape == features.periodicity.shape == (4 * FRAMES,)
        assert features.median_f0 == pytest.approx(pitch, rel=0.01)
        audio = torch.from_numpy(corpus.audio(name)[: FRAMES * HOP].astype(np.float32) / 32768.0)
        with torch.no_grad():
            expected = encoder(audio.unsqueeze(0))[0].numpy()
        np.testing.assert_allclose(features.embeddings[0], expected, atol=1e-5)


def test_batches_depend_on_seed_and_step_alone(corpus_folder: Path) -> None:
    first, again = make_sampler(corpus_folder), make_sampler(corpus_folder)
    again.batch(3)
    torch.testing.assert_close(first.batch(9).target, again.batch(9).target, rtol=0, atol=0)
    assert not torch.equal(first.batch(9).target, first.batch(10).target)


def test_frames_of_a_batch_are_two_frames_late(corpus_folder: Path) -> None:
    """A crop of the whole utterance starts at its first frame, which the features reach at index 2."""
    sampler = make_sampler(corpus_folder, crop_frames=FRAMES)
    by_voice = {u.speaker: u for u in sampler.groups["p1"]}
    source, target = by_voice["low_w0"], by_voice["low"]
    batch = sampler._collate([Pair(source, target, perturb=False)], np.random.default_rng(0))
    stored = sampler.features["low"].f0[target.start_frame : target.start_frame + FRAMES]
    assert batch.f0[0, :2].tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(batch.f0[0, 2:].numpy(), stored[:-2])
    labels = sampler.corpus.phones("low_w0")[source.start_frame : source.start_frame + FRAMES]
    assert batch.phones[0, :2].tolist() == [-1, -1]
    np.testing.assert_array_equal(batch.phones[0, 2:].numpy(), labels[:-2])


def test_sources_are_other_voices_saying_the_same(corpus_folder: Path) -> None:
    sampler = make_sampler(corpus_folder)
    random = np.random.default_rng(1)
    for _ in range(50):
        pair = sampler._training_pair(random)
        assert pair.source.speaker != pair.target.speaker
        assert pair.source.group == pair.target.group
        assert pair.source.split == pair.target.split == "train"


def test_recorded_people_say_their_own_words_or_lend_their_voice(corpus_folder: Path) -> None:
    """Nothing is aligned with them: they are never the target of somebody else's sentence."""
    corpus = Corpus(corpus_folder)
    corpus.speakers["high"] = replace(corpus.speakers["high"], engine="recording")
    features = corpus_folder / "features"
    options = {"human_share": 0.5, "altered": 0.0, "seed": 5, "batch_size": 6, "unpaired_items": 2}
    sampler = PairSampler(corpus, features, crop_frames=100, self_share=0.5, recorded_share=1.0, **options)
    random = np.random.default_rng(1)
    pairs = [sampler._training_pair(random) for _ in range(50)]
    own = [pair for pair in pairs if pair.source is pair.target]
    assert 10 < len(own) < 40
    assert {pair.target.speaker for pair in own} == {"high"}
    assert {pair.target.speaker for pair in pairs if pair.source is not pair.target} == {"low", "low_w0"}
    unpaired = [sampler._unpaired(random) for _ in range(20)]
    assert {pair.target.speaker for pair in unpaired} == {"high"}
    assert {pair.blend for pair in unpaired} == {"high"}

    sampler = PairSampler(corpus, features, crop_frames=100, self_share=0.5, recorded_share=0.0, **options)
    pairs = [sampler._unpaired(random) for _ in range(20)]
    assert {pair.target.speaker for pair in pairs} == {"low", "low_w0"}


def test_unpaired_items_keep_the_melody_in_the_new_register(corpus_folder: Path) -> None:
    sampler = make_sampler(corpus_folder)
    by_voice = {u.speaker: u for u in sampler.groups["p0"]}
    item = Pair(by_voice["low"], by_voice["high"], perturb=False, blend="high")
    batch = sampler._collate([item], np.random.default_rng(0))
    assert batch.weight.max().item() == 0.0
    torch.testing.assert_close(batch.source, batch.target)
    ratio = sampler.features["high"].median_f0 / sampler.features["low"].median_f0
    steps = batch.f0[0, 3:] - batch.f0[0, 2:-1]
    torch.testing.assert_close(steps, torch.full_like(steps, ratio), rtol=1e-3, atol=1e-3)
    voices = sampler.features["high"].embeddings.mean(axis=0)
    assert batch.embedding.shape == (1, VOICE_SIZE)
    assert batch.embedding[0].numpy() @ voices / np.linalg.norm(voices) > 0.9


def test_approximated_sounds_weigh_little_and_are_not_labels(corpus_folder: Path) -> None:
    sampler = make_sampler(corpus_folder)
    by_voice = {u.speaker: u for u in sampler.groups["p0"]}
    phones = np.array([0, 1, 2, -1], np.int16)
    mixed = sampler._weight(by_voice["low"], by_voice["high"], phones)
    np.testing.assert_allclose(mixed, [1, 1, APPROXIMATE_WEIGHT, 1])
    np.testing.assert_allclose(sampler._weight(by_voice["low"], by_voice["low_w0"], phones), 1)
    pair = [Pair(by_voice["high"], by_voice["low"], perturb=False)]
    batch = sampler._collate(pair, np.random.default_rng(0))
    assert PHONES.index("th") not in batch.phones.unique().tolist()
    assert PHONES.index("aa") in batch.phones.unique().tolist()


def test_loss_ignores_what_is_above_the_native_nyquist() -> None:
    loss = MelLoss()
    generator = torch.Generator().manual_seed(0)
    low = (
        torch.nn.functional.avg_pool1d(torch.randn(2, 1, 24000, generator=generator), 9, 1, 4).squeeze(1)
        * 0.1
    )
    time = torch.arange(24000) / SAMPLE_RATE
    whistle = low + 0.05 * torch.sin(2 * torch.pi * 10000 * time)
    weight = torch.ones(2, 100)
    deaf = loss(whistle, low, torch.tensor([16000.0, 16000.0]), weight)
    hears = loss(whistle, low, torch.tensor([44100.0, 44100.0]), weight)
    for heard, unheard in zip(hears, deaf, strict=True):
        assert heard > 5 * unheard + 0.05


def test_loss_follows_the_weight_of_frames() -> None:
    loss = MelLoss()
    audio = torch.randn(1, 24000, generator=torch.Generator().manual_seed(0)) * 0.1
    broken = audio.clone()
    broken[:, 12000:] *= 3.0
    rate = torch.tensor([48000.0])
    first = torch.cat([torch.ones(1, 44), torch.zeros(1, 56)], dim=1)
    assert max(value.item() for value in loss(broken, audio, rate, first)) < 1e-6
    logarithmic, relative = loss(
        broken, audio, rate, torch.cat([torch.zeros(1, 56), torch.ones(1, 44)], dim=1)
    )
    assert logarithmic.item() == pytest.approx(np.log(3.0), abs=0.15)
    assert relative.item() == pytest.approx(2.0, abs=0.1)


def test_envelope_loss_depends_on_the_envelope_alone() -> None:
    """A known tilt costs its depth; level, pauses, what lies above 7 kHz and fine structure cost nothing."""
    analysis = MelAnalysis()
    loss = EnvelopeLoss(analysis)
    generator = torch.Generator().manual_seed(0)
    target = 1e-4 * torch.ones(1, 60, 80)
    weight = torch.ones(1, 60)
    tilt = torch.linspace(-1.0, 1.0, 80)
    assert loss(target * 30.0, target, weight).item() < 1e-3
    tilted = loss(target * torch.exp(tilt), target, weight).item()
    assert 0.8 * 0.5 / 3**0.5 < tilted < 0.5 / 3**0.5
    fine = torch.where(torch.arange(80) % 2 == 0, 1.0, -1.0)
    assert loss(target * torch.exp(fine), target, weight).item() < 0.1
    whistle = target.clone()
    whistle[:, :, -2:] *= 3.0
    assert loss(whistle, target, weight).item() < 0.03
    pause = target.clone()
    pause[:, 30:] *= 1e-6
    noisy = pause.clone()
    noisy[:, 30:] *= torch.rand(1, 30, 80, generator=generator) + 0.01
    assert loss(noisy, pause, weight).item() < 1e-3
    half = torch.cat([torch.ones(1, 30), torch.zeros(1, 30)], dim=1)
    noisy = target.clone()
    noisy[:, 30:] *= torch.exp(tilt)
    assert loss(noisy, target, half).item() < 1e-3


def test_speaker_loss_wants_the_target_and_not_the_source() -> None:
    loss = SpeakerLoss()
    voices = torch.stack([torch.from_numpy(tone(pitch, 160) / 32768.0).float() for pitch in (110.0, 240.0)])
    with torch.no_grad():
        own = loss.encoder.embed_window(voices)
    other = own.flip(0)
    assert (own[0] @ own[1]).item() < 0.85
    right = loss(voices, own, other, own).item()
    assert right < loss(voices, other, own, other).item() - 0.5
    # Where the target is the source itself there is nothing to keep away from but the other target.
    assert loss(voices, own, own, own).item() <= right


def test_perturbation_moves_formants_and_keeps_time() -> None:
    mel = torch.full((4, 30, 80), 1e-6)
    mel[:, 10:20, 40] = 1.0
    result = perturb_mel(mel, 50.0, 8000.0, (20.0, 60.0), torch.Generator().manual_seed(2))
    assert torch.isfinite(result).all()
    assert (result > 0).all()
    loud = result.sum(dim=2)
    assert (loud[:, 10:20].min(dim=1).values > 3 * loud[:, :10].max(dim=1).values).all()
    peaks = result[:, 15].argmax(dim=1)
    assert len(set(peaks.tolist())) > 1
    assert ((peaks - 40).abs() <= 8).all()


def test_resumed_run_equals_an_uninterrupted_one(corpus_folder: Path, tmp_path: Path) -> None:
    console = Console(quiet=True)
    straight = make_trainer(corpus_folder, tmp_path / "straight", steps=4)
    straight.train(console)
    make_trainer(corpus_folder, tmp_path / "broken", steps=4).train(console, deadline_seconds=0.0)
    resumed = make_trainer(corpus_folder, tmp_path / "broken", steps=4)
    assert resumed.resume()
    assert resumed.step == 1
    resumed.train(console)
    for (name, expected), value in zip(
        straight.modules.state_dict().items(), resumed.modules.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA GPU")
def test_a_run_goes_on_from_cpu_to_gpu_and_back(corpus_folder: Path, tmp_path: Path) -> None:
    console = Console(quiet=True)
    gpu = torch.device("cuda")
    on_cpu = make_trainer(corpus_folder, tmp_path / "cpu", steps=4)
    on_gpu = make_trainer(corpus_folder, tmp_path / "gpu", steps=4, device="cuda")
    batch = on_cpu.sampler.batch(0)
    expected = on_cpu.losses(on_cpu.modules, batch, None)
    found = on_gpu.losses(on_gpu.modules, batch.to(gpu), None)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, atol=0.02, rtol=0.05, msg=name)
    on_gpu.train(console, deadline_seconds=0.0)
    back = make_trainer(corpus_folder, tmp_path / "gpu", steps=4)
    assert back.resume()
    back.train(console)
    assert back.step == 4
    publish(back, PitchExtractor(), tmp_path / "voice.safetensors", console)


def test_the_speaker_loss_can_be_trained_through_on_a_gpu() -> None:
    """cuDNN refuses to go back through an LSTM that is in evaluation mode."""
    assert SpeakerLoss().encoder.lstm.training


@pytest.mark.slow
def test_training_learns_and_publishes(corpus_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(corpus_folder, tmp_path / "run", steps=30)
    before = trainer.validate()["mel"]
    trainer.train(Console(quiet=True))
    assert trainer.validate()["mel"] < 0.8 * before
    publish(trainer, PitchExtractor(), tmp_path / "voice.safetensors", Console(quiet=True))
    checkpoint = load_checkpoint(tmp_path / "voice.safetensors")
    assert checkpoint.metadata["step"] == 30
    average = trainer.average.module["synthesizer"].state_dict()
    for name, value in checkpoint.synthesizer.state_dict().items():
        torch.testing.assert_close(value, average[name])


def test_blend_is_the_mean_of_two_checkpoints() -> None:
    first, second = Checkpoint.untrained(1), Checkpoint.untrained(2)
    before = [[p.clone() for p in c.synthesizer.parameters()] for c in (first, second)]
    mean = blend(first, second)
    for one, other, middle in zip(*before, mean.synthesizer.parameters(), strict=True):
        torch.testing.assert_close(middle.data, (one + other) / 2)
    smaller = replace(first, synthesizer=Synthesizer(SynthesizerConfig(channels=8)))
    with pytest.raises(CheckpointError, match="synthesizer"):
        blend(smaller, second)


def test_config_refuses_unknown_settings(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text("stepz = 3\n")
    with pytest.raises(ValueError, match="stepz"):
        TrainConfig.read(path)
