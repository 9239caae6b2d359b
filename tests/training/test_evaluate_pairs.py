"""Which conversions an evaluation makes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from autovoice_training.evaluate.dataset import Dataset, Voice, open_dataset
from autovoice_training.evaluate.pairs import choose_pairs

SENTENCES = tuple(f"e{number:02d}" for number in range(12))


def voice(name: str, sex: str, seen: bool, human: str = "", sentences: tuple[str, ...] = SENTENCES) -> Voice:
    return Voice(name, human or name, sex, seen, sentences)


def dataset(*voices: Voice) -> Dataset:
    return Dataset(Path(), {one.name: one for one in voices}, dict.fromkeys(SENTENCES, "words"))


CAST = dataset(
    voice("ann", "female", True),
    voice("eve", "female", True),
    voice("eve_again", "female", True, human="eve"),
    voice("bob", "male", True),
    voice("dan", "male", True),
    voice("ned", "male", False),
    voice("ron", "male", False),
    voice("sue", "female", False, sentences=SENTENCES[3:9]),
    voice("kid", "child", False),
)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 80))
def test_no_sentence_is_used_for_two_purposes(seed: int, count: int) -> None:
    pairs = choose_pairs(CAST, count, seed)
    assert len(set(pairs)) == len(pairs) == count
    for pair in pairs:
        source, target = CAST.voices[pair.source], CAST.voices[pair.target]
        assert source.human != target.human
        assert pair.sentence in source.sentences
        assert pair.sentence in target.sentences
        enrolment = pair.enrolment(target)
        assert enrolment
        assert pair.references
        assert len({pair.sentence, *pair.references, *enrolment}) == 1 + len(pair.references) + len(enrolment)
        assert {*pair.references, *enrolment} <= set(target.sentences)
        assert pair.sentence not in pair.enrolment(source)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000))
def test_every_condition_and_every_speaker_is_heard_alike(seed: int) -> None:
    pairs = choose_pairs(CAST, 64, seed)
    cells = Counter(pair.cell for pair in pairs)
    assert len(cells) == 8
    assert set(cells.values()) == {8}
    humans = Counter(CAST.voices[pair.target].human for pair in pairs)
    for seen in (True, False):
        counts = [humans[one.human] for one in CAST.voices.values() if one.seen == seen]
        assert max(counts) <= 2 * min(counts)


def test_the_seed_decides() -> None:
    assert choose_pairs(CAST, 40, 3) == choose_pairs(CAST, 40, 3)
    assert choose_pairs(CAST, 40, 3) != choose_pairs(CAST, 40, 4)


def test_cells_are_named_by_what_the_voices_are() -> None:
    pairs = choose_pairs(dataset(voice("ann", "female", True), voice("ned", "male", False)), 2, 0)
    assert {(pair.source, pair.cell) for pair in pairs} == {
        ("ann", "seen source, unseen target, cross sex"),
        ("ned", "unseen source, seen target, cross sex"),
    }


def test_a_small_set_gives_what_it_has() -> None:
    small = dataset(voice("ann", "female", True, sentences=SENTENCES[:3]), voice("bob", "male", True))
    assert len(choose_pairs(small, 100, 0)) == 6


def test_speakers_without_a_common_sentence_convert_any() -> None:
    halves = dataset(
        voice("ann", "female", True, sentences=SENTENCES[:6]),
        voice("bob", "male", True, sentences=SENTENCES[5:]),
        voice("dan", "male", True, sentences=SENTENCES[6:]),
    )
    pairs = choose_pairs(halves, 100, 0)
    assert {pair.sentence for pair in pairs if {pair.source, pair.target} == {"ann", "bob"}} == {SENTENCES[5]}
    assert {pair.sentence for pair in pairs if (pair.source, pair.target) == ("ann", "dan")} == {
        *SENTENCES[:6]
    }
    assert all(set(pair.references) <= set(halves.voices[pair.target].sentences) for pair in pairs)


def test_one_speaker_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="one speaker only"):
        choose_pairs(dataset(voice("ann", "female", True), voice("ann_b", "female", True, human="ann")), 1, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("ann", "bob"):
        (tmp_path / name).mkdir()
        for number, sentence in enumerate(SENTENCES[:3]):
            stereo = np.full((100 + number, 2), [0.5, 0.25])
            soundfile.write(tmp_path / name / f"{sentence}.flac", stereo, 24000)
    facts = {"human": "x", "sex": "male", "seen": True, "aligned_to": None, "native_rate": 16000}
    (tmp_path / "voices.json").write_text(json.dumps({"ann": facts, "bob": facts}))
    (tmp_path / "texts.json").write_text(json.dumps(dict.fromkeys(SENTENCES, "words")))
    return tmp_path


def test_a_set_is_read_from_its_folder(folder: Path) -> None:
    opened = open_dataset(folder)
    assert opened.voices["ann"].sentences == SENTENCES[:3]
    audio, rate = opened.load_joined("bob", ("e02", "e00"))
    assert (len(audio), rate) == (202, 24000)
    np.testing.assert_allclose(audio, 0.375, atol=1e-4)


def test_an_incomplete_set_is_refused_by_name(folder: Path) -> None:
    (folder / "bob" / "e01.flac").unlink()
    with pytest.raises(ValueError, match="bob has 2 recordings"):
        open_dataset(folder)
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        open_dataset(folder / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="no voices"):
        open_dataset(folder / "empty")


def test_a_folder_of_recordings_needs_no_description(folder: Path) -> None:
    (folder / "voices.json").unlink()
    (folder / "texts.json").unlink()
    audio, rate = soundfile.read(folder / "bob" / "e01.flac")
    (folder / "bob" / "e01.flac").unlink()
    soundfile.write(folder / "bob" / "e01.wav", audio, rate)
    opened = open_dataset(folder)
    assert opened.texts == {}
    assert opened.voices["bob"] == Voice("bob", "bob", "unknown", False, SENTENCES[:3])
    assert opened.load("bob", "e01")[0].shape == (101,)
