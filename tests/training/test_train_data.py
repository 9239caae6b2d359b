"""What training is shown: features of the corpus, and batches whose parts belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from toy_corpus import FRAMES, UTTERANCES, VOICES, glide, make_corpus, make_sampler

from autovoice_export.base.stages.pitch_extractor import PitchExtractor
from autovoice_export.base.stages.speaker_encoder import SpeakerEncoder
from autovoice_export.base.stages.voice import TOKENS
from autovoice_plugins.geometry import HOP
from autovoice_training.corpus.reader import Corpus, CorpusError
from autovoice_training.train.config import StageConfig
from autovoice_training.train.content import KeyedEncoder
from autovoice_training.train.data import SILENCE, UNKNOWN_PHONE, Item, Sampler
from autovoice_training.train.features import measure

QUIET = Console(quiet=True)
WHOLE = StageConfig(batch_size=4, crop_frames=FRAMES)


def test_missing_corpus_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="make corpus"):
        Corpus(tmp_path)


class TestFeatures:
    @pytest.fixture
    def own_corpus(self, tmp_path: Path) -> Path:
        """A corpus that a test may change."""
        return make_corpus(tmp_path / "corpus", ("low", "high"))

    def test_they_are_those_of_the_stages_that_serve_the_voice(
        self, own_corpus: Path, tmp_path: Path
    ) -> None:
        """Above all the identities: an encoder without its weights gives every voice the same."""
        corpus, encoder = Corpus(own_corpus), SpeakerEncoder.from_resemblyzer()
        measure(corpus, tmp_path / "features", PitchExtractor(), QUIET)
        for name in ("low", "high"):
            with np.load(tmp_path / "features" / f"{name}.npz") as found:
                voiced = found["pitch"][found["pitch"][:, 0] > 0, 0]
                assert found["pitch"].shape == (UTTERANCES * FRAMES, 2)
                assert found["mel"].shape == (UTTERANCES * FRAMES, 80)
                assert np.median(voiced) == pytest.approx(VOICES[name][0], rel=0.05)
                audio = torch.from_numpy(corpus.audio(name)[: FRAMES * HOP].astype(np.float32) / 32768.0)
                with torch.no_grad():
                    expected = encoder(audio.unsqueeze(0))[0].numpy()
                np.testing.assert_allclose(found["identities"][0], expected, atol=1e-5)

    def test_they_are_measured_again_on_other_audio_and_by_another_extractor(
        self, own_corpus: Path, tmp_path: Path
    ) -> None:
        folder, extractor = tmp_path / "features", PitchExtractor()

        def measured() -> dict[str, int]:
            measure(Corpus(own_corpus), folder, extractor, QUIET)
            return {path.stem: path.stat().st_mtime_ns for path in folder.iterdir()}

        first = measured()
        assert measured() == first, "nothing has changed"
        path = own_corpus / "speakers" / "low" / "audio.npy"
        np.save(path, glide(170.0, len(np.load(path)) // HOP))
        other_audio = measured()
        assert {name for name in first if other_audio[name] != first[name]} == {"low"}
        with torch.no_grad():
            extractor.output.bias[0] = -1.0  # less is voiced
        other_extractor = measured()
        assert {name for name in first if other_extractor[name] != other_audio[name]} == {"low", "high"}


def test_batches_depend_on_seed_and_step_alone(corpus_folder: Path) -> None:
    options = {"unpaired_items": 1, "history": 20, "plain_share": 0.5, "encoder": KeyedEncoder().reference}
    first, again = (make_sampler(corpus_folder, **options) for _ in range(2))
    again.batch(3)
    for name, value in vars(first.batch(9)).items():
        torch.testing.assert_close(vars(again.batch(9))[name], value, rtol=0, atol=0)
    assert not torch.equal(first.batch(9).target, first.batch(10).target)
    assert not torch.equal(
        make_sampler(corpus_folder, **options, seed=6).batch(9).target, first.batch(9).target
    )


class TestItems:
    @pytest.fixture
    def sampler(self, corpus_folder: Path) -> Sampler:
        """Crops of whole utterances, so that they start at the first frame."""
        return make_sampler(corpus_folder, WHOLE, reference_frames=60)

    def test_source_and_target_line_up_frame_by_frame(self, sampler: Sampler) -> None:
        source, target = sampler.utterances["low"][1], sampler.utterances["high"][1]
        batch = sampler._collate([Item(source, target, paired=True, perturb=False)], np.random.default_rng(0))
        frames = slice(FRAMES, 2 * FRAMES)
        own, wanted = sampler.features["low"], sampler.features["high"]
        level = batch.target[0].numpy() - wanted.mel[frames].astype(np.float32)
        np.testing.assert_allclose(level, level.mean(), atol=1e-5)
        # One frame of the future, for the encoder's look-ahead.
        ahead = slice(FRAMES, 2 * FRAMES + 1)
        np.testing.assert_allclose(
            batch.source[0].numpy() - own.mel[ahead].astype(np.float32), level.mean(), atol=1e-5
        )
        np.testing.assert_array_equal(batch.pitch[0].numpy(), wanted.pitch[frames])
        np.testing.assert_array_equal(batch.phones[0].numpy(), sampler.corpus.phones("low")[frames])
        audio = sampler.corpus.audio("high")[FRAMES * HOP : 2 * FRAMES * HOP] / 32768.0
        np.testing.assert_allclose(batch.audio[0].numpy(), audio * np.exp(level.mean() / 2), atol=1e-5)

    def test_what_is_behind_an_utterance_is_silent_and_unknown(self, corpus_folder: Path) -> None:
        sampler = make_sampler(corpus_folder, StageConfig(crop_frames=FRAMES + 30), reference_frames=60)
        last = sampler.utterances["low"][-1]
        batch = sampler._collate([Item(last, last, paired=True, perturb=False)], np.random.default_rng(0))
        silence = batch.target[0, FRAMES:]
        assert silence.max() < -20
        torch.testing.assert_close(batch.source[0, FRAMES:-1], silence)
        assert (batch.phones[0, FRAMES:] == UNKNOWN_PHONE).all()
        assert batch.audio[0, FRAMES * HOP :].abs().max() == 0
        assert batch.pitch[0, FRAMES:].abs().max() == 0

    def test_the_past_is_what_was_said_before(self, corpus_folder: Path) -> None:
        history = FRAMES + 20
        sampler = make_sampler(corpus_folder, WHOLE, reference_frames=60, history=history)
        said = sampler.utterances["low"]
        items = [Item(said[number], said[number], paired=True, perturb=False) for number in range(3)]
        batch = sampler._collate(items, np.random.default_rng(0))
        assert batch.past.tolist() == [0, FRAMES, history]
        stored = sampler.features["low"].mel.astype(np.float32)
        for number, past in enumerate(batch.past.tolist()):
            mel, first = batch.source[number].numpy(), number * FRAMES
            level = mel[history:-1] - stored[first : first + FRAMES]
            np.testing.assert_allclose(level, level.mean(), atol=1e-5)
            heard = mel[history - past : history] - stored[first - past : first]
            np.testing.assert_allclose(heard, level.mean(), atol=1e-5)
            np.testing.assert_allclose(mel[: history - past], SILENCE + level.mean(), atol=1e-5)

    def test_the_source_s_melody_covers_its_past(self, corpus_folder: Path) -> None:
        sampler = make_sampler(corpus_folder, WHOLE, reference_frames=60, history=50)
        said = sampler.utterances["low"]
        items = [Item(one, one, paired=True, perturb=False, reverse=True) for one in said[:2]]
        batch = sampler._collate(items, np.random.default_rng(0))
        pitch = sampler.features["low"].pitch
        np.testing.assert_array_equal(batch.melody[0, 50:].numpy(), pitch[:FRAMES])
        assert batch.melody[0, :50].abs().max() == 0
        np.testing.assert_array_equal(batch.melody[1].numpy(), pitch[FRAMES - 50 : 2 * FRAMES])
        assert batch.usual_f0.tolist() == pytest.approx([sampler.features["low"].median_f0] * 2)
        assert batch.reverse.all()

    def test_consecutive_frames_of_a_reference_have_their_phones(self, sampler: Sampler) -> None:
        said = sampler.utterances["high"][:1]
        mel, _, phones = sampler._reference(said, np.random.default_rng(0))
        store = sampler.features["high"].mel[:FRAMES].astype(np.float32)
        first = int(np.flatnonzero((store == mel[0]).all(axis=1))[0])
        np.testing.assert_array_equal(mel, store[first : first + 60])
        np.testing.assert_array_equal(phones, sampler.corpus.phones("high")[first : first + 60])

    def test_unpaired_items_keep_the_words_and_the_melody_in_the_new_register(self, sampler: Sampler) -> None:
        source, target = sampler.utterances["low"][0], sampler.utterances["high"][1]
        batch = sampler._collate(
            [Item(source, target, paired=False, perturb=False)], np.random.default_rng(0)
        )
        torch.testing.assert_close(batch.source[0, :FRAMES], batch.target[0])
        own, wanted = sampler.features["low"], sampler.features["high"]
        expected = own.pitch[:FRAMES, 0] * wanted.median_f0 / own.median_f0
        np.testing.assert_allclose(batch.pitch[0, :, 0].numpy(), expected, rtol=1e-5)
        assert (batch.identity[0].numpy() @ wanted.identities.T).max() > 0.999
        np.testing.assert_array_equal(batch.source_identity[0].numpy(), own.identities[0])

    def test_a_reference_is_what_else_the_target_has_said(self, sampler: Sampler) -> None:
        random = np.random.default_rng(1)
        sampler.reference_frames = None
        pairs = [sampler._pair(random, "train") for _ in range(60)]
        references = [sampler._references(random, pair) for pair in pairs]
        for pair, others in zip(pairs, references, strict=True):
            assert pair.target not in others
            assert {one.speaker for one in others} == {pair.target.speaker}
        assert {len(others) for others in references} == {1, 2, 3}
        sampler.utterances["low"] = sampler.utterances["low"][:1]
        (only,) = sampler.utterances["low"]
        assert sampler._references(random, Item(only, only, paired=True, perturb=False)) == [only]

    def test_frames_of_a_reference_are_speech(self, corpus_folder: Path) -> None:
        sampler = make_sampler(corpus_folder, encoder=KeyedEncoder().reference)
        features, said = sampler.features["low"], sampler.utterances["low"][:2]
        features.mel[FRAMES // 2 : FRAMES] = SILENCE
        mel, keys, _ = sampler._reference(said, np.random.default_rng(0))
        assert mel.shape == (TOKENS, 80)
        assert mel.max(axis=1).min() > -15
        for row, key in zip(mel, keys, strict=True):
            frames = np.flatnonzero((features.mel == row).all(axis=1))
            assert any(np.array_equal(sampler.keys["low"][frame], key) for frame in frames)

    def test_shares_decide_who_speaks(self, corpus_folder: Path) -> None:
        shares = {"aligned_share": 0.5, "people_share": 0.25}
        options = {"plain_share": 0.4, "reversed_share": 0.3}
        sampler = make_sampler(corpus_folder, StageConfig(crop_frames=100, **shares), **options)
        random = np.random.default_rng(1)
        pairs = [sampler._pair(random, "train") for _ in range(400)]
        aligned = [pair for pair in pairs if pair.source is not pair.target]
        assert len(aligned) == pytest.approx(200, abs=50)
        for pair in aligned:
            assert pair.source.group == pair.target.group
            assert {pair.source.speaker, pair.target.speaker} == {"low", "high"}
        own = [pair for pair in pairs if pair.source is pair.target]
        assert sum(pair.target.speaker == "reader" for pair in own) == pytest.approx(len(own) / 4, abs=25)
        reverse = [pair for pair in own if pair.reverse]
        assert len(reverse) == pytest.approx(0.3 * len(own), abs=30)
        assert sum(pair.perturb for pair in reverse) == pytest.approx(0.5 * len(reverse), abs=20)
        assert sum(pair.perturb for pair in own) == pytest.approx(0.45 * len(own), abs=30)
        assert not any(pair.reverse for pair in aligned)
        assert {pair.target.split for pair in pairs} == {"train"}
        assert {sampler._pair(random, "valid").target.split for _ in range(20)} == {"valid"}


def test_keys_of_a_frame_hear_one_frame_of_the_future() -> None:
    """A batch has that frame; without it content would be a frame late."""
    torch.manual_seed(0)
    module, mel = KeyedEncoder().eval(), torch.rand(1, 31, 80) + 0.1
    other = mel.clone()
    other[:, 20] *= 3.0
    with torch.no_grad():
        (before, _), (after, _) = module(mel), module(other)
    assert before.shape[1] == 30
    changed = (before - after).abs().amax(dim=2)[0] > 1e-5
    assert changed.nonzero().min().item() == 19
