"""What training adds for unheard voices: the equaliser, the phone classifier and its loss, a warm start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from autovoice_training.train.equaliser import colour, equalise, move_formants, random_curve
from autovoice_training.train.phones import train_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor
from toy_corpus import make_sampler, make_trainer, tone

from autovoice_export.base.stages.pitch_extractor import PitchExtractor
from autovoice_export.base.stages.voice import pack, unpack, with_identity
from autovoice_export.base.stages.voice_encoder import PhoneClassifier, VoiceEncoder
from autovoice_training.corpus.reader import Corpus
from autovoice_training.train.__main__ import choose_device
from autovoice_training.train.data import DELAY_SAMPLES
from autovoice_training.train.features import extract, read_features
from autovoice_training.train.losses import PhoneLoss, SpeakerLoss
from autovoice_training.train.publish import publish

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def classifier() -> PhoneClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PhoneClassifier().eval()


def noise(seconds: float) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(round(seconds * 24000))).astype(np.float32)


@torch.no_grad()
def test_a_coloured_embedding_is_that_of_coloured_audio(classifier: PhoneClassifier) -> None:
    """On noise, whose level is the same in every frame; one phone, so that the posteriors are out of play."""
    encoder = VoiceEncoder(classifier)
    encoder.classifier.output.bias[3] += 1e3
    curve = random_curve(np.random.default_rng(3))
    plain = noise(3.0)
    coloured = equalise(plain, curve)
    assert np.sqrt(np.mean(coloured**2)) == pytest.approx(np.sqrt(np.mean(plain**2)), rel=1e-3)
    before, expected = (encoder(torch.from_numpy(audio)[None])[0].numpy() for audio in (plain, coloured))
    found = unpack(torch.from_numpy(colour(before, 1.0, curve))[None])
    wanted = unpack(torch.from_numpy(expected)[None])
    untouched = unpack(torch.from_numpy(before)[None])
    # The level of the whole, which the coloured audio keeps, is the first cosine.
    error = (found.sums - wanted.sums)[0, 3, 1:].abs().max()
    change = (untouched.sums - wanted.sums)[0, 3, 1:].abs().max()
    encoder.classifier.output.bias[3] -= 1e3
    assert error < 0.1 * change
    torch.testing.assert_close(found.identity, untouched.identity)


@given(factor=st.floats(0.9, 1.1), formant=st.floats(900.0, 2500.0))
@settings(deadline=None, max_examples=15)
def test_formants_move_and_harmonics_stay(factor: float, formant: float) -> None:
    time = np.arange(24000) / 24000
    gains = [np.exp(-(((150.0 * k - formant) / 400.0) ** 2)) for k in range(1, 40)]
    audio = 0.02 * sum(g * np.sin(2 * np.pi * 150.0 * k * time) for k, g in enumerate(gains, start=1))
    audio += 1e-3 * np.random.default_rng(0).standard_normal(24000)
    moved = move_formants(audio.astype(np.float32), factor)
    assert moved.shape == audio.shape
    assert np.sqrt(np.mean(moved**2)) == pytest.approx(np.sqrt(np.mean(audio**2)), rel=1e-3)

    def harmonics(samples: np.ndarray) -> np.ndarray:
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(24000)))
        return np.array([spectrum[150 * k] for k in range(1, 40)])

    def centre(samples: np.ndarray) -> float:
        power = harmonics(samples) ** 2
        return float((power * 150.0 * np.arange(1, 40)).sum() / power.sum())

    assert centre(moved) / centre(audio) == pytest.approx(factor, rel=0.03)
    between = np.abs(np.fft.rfft(moved * np.hanning(24000)))[75::150][:20]
    assert between.max() < 0.1 * harmonics(moved).max()


@torch.no_grad()
def test_an_embedding_with_moved_formants_is_that_of_moved_audio(classifier: PhoneClassifier) -> None:
    encoder = VoiceEncoder(classifier)
    encoder.classifier.output.bias[3] += 1e3
    spectrum = np.fft.rfft(noise(3.0))
    hertz = np.fft.rfftfreq(72000, 1 / 24000)
    gain = 0.05 + np.exp(-(((hertz - 1500.0) / 600.0) ** 2))
    plain = np.fft.irfft(spectrum * gain).astype(np.float32)
    moved = move_formants(plain, 1.1)
    before, expected = (encoder(torch.from_numpy(audio)[None])[0].numpy() for audio in (plain, moved))
    found = unpack(torch.from_numpy(colour(before, 1.1, np.zeros(80)))[None]).sums[0, 3, 1:]
    wanted, untouched = (unpack(torch.from_numpy(one)[None]).sums[0, 3, 1:] for one in (expected, before))
    encoder.classifier.output.bias[3] -= 1e3
    assert (found - wanted).abs().max() < 0.35 * (untouched - wanted).abs().max()


def test_altered_voices_are_what_pairs_aim_at(corpus_folder: Path) -> None:
    """Of an unpaired item, the first two here, only the voice counts; its audio is what the source sings."""
    plain, altered = make_sampler(corpus_folder, altered=0.0), make_sampler(corpus_folder, altered=1.0)
    for step in range(3):
        first, second = plain.batch(step), altered.batch(step)
        assert torch.equal(first.sample, first.altered)
        assert torch.equal(first.target[2:], first.altered[2:])
        assert torch.equal(second.target[2:], second.altered[2:])
        for sample, changed in zip(second.sample, second.altered, strict=True):
            assert not torch.equal(sample, changed)
        voice = unpack(second.embedding)
        assert voice.sums.isfinite().all()
        # The first item's draws are the same in both but for the alteration that comes after them.
        torch.testing.assert_close(unpack(first.embedding).identity[0], voice.identity[0])
        assert not torch.allclose(unpack(first.embedding).sums[0], voice.sums[0])


def test_the_sample_of_an_unpaired_item_is_its_target_voice(corpus_folder: Path) -> None:
    sampler = make_sampler(corpus_folder, altered=0.0, unpaired_items=6)
    batch = sampler.batch(0)
    voices = {name: sampler.corpus.audio(name).astype(np.float32) / 32768.0 for name in sampler.targets}
    whose = []
    for sample, source in zip(batch.sample.numpy(), batch.source.numpy(), strict=True):
        whose.append([name for name, audio in voices.items() if _contains(audio, sample)])
        # What the source says is its own audio at another level.
        assert not np.array_equal(sample, source)
    assert all(whose)
    assert len({names[0] for names in whose}) > 1


def _contains(audio: np.ndarray, sample: np.ndarray) -> bool:
    length = int(np.flatnonzero(sample)[-1]) + 1
    starts = range(0, len(audio) - length + 1, 240)
    return any(np.array_equal(audio[start : start + length], sample[:length]) for start in starts)


@torch.no_grad()
def test_an_altered_voice_has_an_identity_of_its_own() -> None:
    loss = SpeakerLoss()
    time = np.arange(48000) / 24000
    buzz = sum(np.sin(2 * np.pi * 120.0 * k * time) / k for k in range(1, 40))
    sample = (0.1 * buzz * (1.0 + 0.5 * np.sin(2 * np.pi * 3.0 * time))).astype(np.float32)
    changed = equalise(move_formants(sample, 1.1), random_curve(np.random.default_rng(1)))
    first, second = (torch.from_numpy(audio)[None] for audio in (sample, changed))
    identity = loss.encoder.embed_window(first)
    torch.testing.assert_close(loss.altered_identity(identity, first, first), identity)
    altered = loss.altered_identity(identity, first, second)
    torch.testing.assert_close(altered, loss.encoder.embed_window(second))
    assert (altered * identity).sum() < 0.97

    # A result with the voice before the alteration is worse off for that voice being a wrong answer.
    other = torch.nn.functional.normalize(torch.ones_like(identity), dim=1)
    assert loss(first, altered, other, identity) > loss(first, altered, other, altered) + 0.1


def test_an_embedding_takes_another_identity() -> None:
    random = torch.Generator().manual_seed(0)
    identity, other = (
        torch.nn.functional.normalize(torch.rand(2, 256, generator=random), dim=1) for _ in range(2)
    )
    shares, sums = torch.rand(2, 41, generator=random), torch.randn(2, 41, 24, generator=random)
    embedding = with_identity(pack(identity, shares, sums), other)
    torch.testing.assert_close(torch.linalg.vector_norm(embedding, dim=1), torch.ones(2))
    for found, wanted in zip(unpack(embedding), (other, shares, sums), strict=True):
        torch.testing.assert_close(found, wanted)


def test_phone_loss_hears_other_words_and_not_another_level(classifier: PhoneClassifier) -> None:
    loss = PhoneLoss(classifier)
    first = torch.from_numpy(tone(110.0, 100) / np.float32(32768.0))[None]
    second = torch.from_numpy(noise(1.0))[None].requires_grad_()
    same, quieter, other = (classifier.mel(audio) for audio in (first, first * 0.3, second))
    assert loss(same, same).item() == pytest.approx(0.0, abs=1e-6)
    assert loss(quieter, same).item() < 1e-3
    assert loss(other, same).item() > 10 * loss(quieter, same).item()
    loss(other, same).backward()
    assert second.grad is not None
    assert second.grad.abs().max() > 0


def test_words_are_compared_frame_by_frame(corpus_folder: Path, tmp_path: Path) -> None:
    """A synthesizer that hands on its source loses no words, one that is a frame late does."""
    trainer = make_trainer(corpus_folder, tmp_path / "run", steps=2)
    batch = trainer.sampler.batch(0)
    late = torch.nn.functional.pad(batch.source, (DELAY_SAMPLES, 0))
    found = []
    for shift in (0, 240):
        audio = torch.nn.functional.pad(late, (shift, 0))[:, : batch.source.shape[1]]
        trainer.synthesize = lambda *_, audio=audio: audio  # type: ignore[method-assign]
        found.append(trainer.losses(trainer.modules, batch, None)["words"].item())
    assert 4 * found[0] < found[1]


def test_classifier_learns_and_is_kept(corpus_folder: Path, tmp_path: Path) -> None:
    """The tones of the corpus do not differ by phone; which phones there are can be learnt."""
    corpus = Corpus(corpus_folder)
    path = tmp_path / "phones.pt"
    console = Console(quiet=True)
    trained = train_classifier(corpus, path, 12, 0, torch.device("cpu"), console)
    audio: Tensor = torch.from_numpy(tone(110.0, 150) / np.float32(32768.0))[None]
    with torch.no_grad():
        heard = trained(trained.mel(audio))[0].softmax(dim=1).mean(dim=2)[0]
    assert heard[:3].sum() > 0.9, "the corpus has these phones only"
    again = train_classifier(corpus, path, 12, 0, torch.device("cpu"), console)
    for one, other in zip(trained.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_new_run_can_start_from_another_voice(corpus_folder: Path, tmp_path: Path) -> None:
    first = make_trainer(corpus_folder, tmp_path / "first", steps=2)
    first.train(Console(quiet=True))
    publish(first, PitchExtractor(), tmp_path / "first.safetensors", Console(quiet=True))
    second = make_trainer(corpus_folder, tmp_path / "second", steps=2)
    taken = second.start_from(tmp_path / "first.safetensors")
    state = first.average.module.state_dict()
    assert taken == len(state)
    for name, value in second.modules.state_dict().items():
        torch.testing.assert_close(value, state[name])
        torch.testing.assert_close(second.average.module.state_dict()[name], state[name])
    assert len(second.started_from) == 64


def test_a_new_classifier_can_start_from_another_voice(corpus_folder: Path, tmp_path: Path) -> None:
    first = make_trainer(corpus_folder, tmp_path / "first", steps=2)
    with torch.no_grad():
        first.classifier.output.bias.fill_(3.0)
    publish(first, PitchExtractor(), tmp_path / "first.safetensors", Console(quiet=True))
    quiet, device = Console(quiet=True), torch.device("cpu")
    path = tmp_path / "phones.pt"
    found = train_classifier(Corpus(corpus_folder), path, 1, 0, device, quiet, tmp_path / "first.safetensors")
    # One step of the optimiser moves a bias by no more than the learning rate.
    assert (found.output.bias - 3.0).abs().max() < 0.1


def test_no_steps_keep_the_classifier_of_the_checkpoint(corpus_folder: Path, tmp_path: Path) -> None:
    first = make_trainer(corpus_folder, tmp_path / "first", steps=2)
    publish(first, PitchExtractor(), tmp_path / "first.safetensors", Console(quiet=True))
    corpus, cpu, quiet = Corpus(corpus_folder), torch.device("cpu"), Console(quiet=True)
    kept = train_classifier(corpus, tmp_path / "a.pt", 0, 9, cpu, quiet, tmp_path / "first.safetensors")
    for one, other in zip(kept.parameters(), first.classifier.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="--start-from"):
        train_classifier(corpus, tmp_path / "b.pt", 0, 9, cpu, quiet)


def test_embeddings_of_another_classifier_are_made_again(corpus_folder: Path, tmp_path: Path) -> None:
    corpus, quiet = Corpus(corpus_folder), Console(quiet=True)
    first, second = PhoneClassifier().eval(), PhoneClassifier().eval()
    found = []
    for classifier in (first, second, second):
        extract(corpus, tmp_path, classifier, PitchExtractor(), quiet)
        path = tmp_path / "low.voice.npz"
        found.append((read_features(tmp_path, "low").embeddings, path.stat().st_mtime_ns))
    assert not np.array_equal(found[0][0], found[1][0])
    assert found[1][1] == found[2][1], "made with the same classifier: nothing to do"


def test_a_device_that_is_not_there_is_named() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="'abacus'"):
        choose_device("abacus")
    if not torch.cuda.is_available():
        assert choose_device("auto").type == "cpu"
        with pytest.raises(ValueError, match="no CUDA GPU"):
            choose_device("cuda")
