"""Who is evaluated, and which conversions an evaluation makes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from autovoice_training.evaluate import sets
from autovoice_training.evaluate.audio import RATE
from autovoice_training.evaluate.pairs import choose_pairs, own_voices
from autovoice_training.evaluate.sets import Clip, EvaluationSet, Speaker, open_folder, open_people


def speaker(name: str, sex: str, sentences: int = 1) -> Speaker:
    clips = tuple(Clip(Path(f"e{number}.flac")) for number in range(sentences))
    return Speaker(name, sex, clips, clips, clips)


def cast(women: int, men: int, sentences: int = 1) -> EvaluationSet:
    return EvaluationSet(
        "cast",
        tuple(
            speaker(f"{sex}_{number}", sex, sentences)
            for sex, count in (("female", women), ("male", men))
            for number in range(count)
        ),
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 60), st.integers(2, 6), st.integers(2, 6), st.integers(1, 3))
def test_pairs_are_different_and_balanced_over_the_sexes(
    seed: int, count: int, women: int, men: int, sentences: int
) -> None:
    everybody = cast(women, men, sentences)
    pairs = choose_pairs(everybody, count, seed)
    assert len(set(pairs)) == len(pairs) <= count
    assert all(pair.source.name != pair.target.name for pair in pairs)
    assert pairs == choose_pairs(everybody, count, seed)
    first = pairs[: 4 * min(women, men)]
    if len(pairs) >= len(first) == 4 * min(women, men):
        combinations = Counter((pair.source.sex, pair.target.sex) for pair in first)
        assert set(combinations.values()) == {min(women, men)}


@pytest.mark.parametrize(("women", "count", "times"), [(10, 40, 2), (5, 20, 2), (4, 48, 6)])
def test_whole_rounds_use_every_speaker_alike(women: int, count: int, times: int) -> None:
    pairs = choose_pairs(cast(women, women, sentences=3), count)
    assert len(pairs) == count
    assert set(Counter(pair.source.name for pair in pairs).values()) == {times}
    assert set(Counter(pair.target.name for pair in pairs).values()) == {times}


def test_a_small_set_gives_what_it_has() -> None:
    assert len(choose_pairs(cast(2, 0), 40)) == 2
    assert len(choose_pairs(cast(3, 2), 40)) == 20
    assert len(choose_pairs(cast(1, 1, sentences=2), 40)) == 4


def test_every_speaker_is_converted_into_itself() -> None:
    everybody = cast(2, 1)
    pairs = own_voices(everybody)
    assert [(pair.source, pair.target) for pair in pairs] == 2 * [(one, one) for one in everybody.speakers]
    assert [pair.enrolment_as_reference for pair in pairs] == [False] * 3 + [True] * 3


def test_the_target_is_heard_with_the_same_sentence_where_it_has_it() -> None:
    pair = choose_pairs(cast(2, 0, sentences=2), 4)[3]
    assert pair.target_clip == pair.clip
    other = speaker("other", "female", 1)
    assert choose_pairs(EvaluationSet("x", (pair.source, other)), 4)[-1].target_clip.path.stem == "e0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two voices of six sentences."""
    for name in ("ann", "bob"):
        (tmp_path / name).mkdir()
        for number in range(6):
            stereo = np.full((1000 + number, 2), [0.5, 0.25])
            soundfile.write(tmp_path / name / f"e{number}.flac", stereo, RATE)
    (tmp_path / "voices.json").write_text(json.dumps({"ann": {"sex": "female"}, "bob": {"sex": "male"}}))
    (tmp_path / "texts.json").write_text(json.dumps({"e0": "some words"}))
    return tmp_path


def test_no_recording_serves_for_two_purposes(folder: Path) -> None:
    ann, bob = open_folder(folder).speakers
    assert (ann.name, ann.sex, bob.sex) == ("ann", "female", "male")
    stems = [[clip.path.stem for clip in use] for use in (ann.sources, ann.references, ann.enrolment)]
    assert stems == [["e0", "e1"], ["e2", "e3"], ["e4", "e5"]]
    assert [clip.text for clip in ann.sources] == ["some words", None]
    itself = own_voices(open_folder(folder))
    assert [pair.enrolment_as_reference for pair in itself] == [False, False], "the reference is another one"
    assert len(itself[0].reference()) == 2005
    assert len(replace(itself[0], enrolment_as_reference=True).reference()) == 2009
    np.testing.assert_allclose(ann.sources[0].load(), 0.375, atol=1e-4)


def test_speakers_heard_in_training_are_left_out(folder: Path) -> None:
    (folder / "voices.json").write_text(json.dumps({"bob": {"seen": True}}))
    with pytest.raises(ValueError, match="has 1 voices; a conversion needs two"):
        open_folder(folder)


def test_one_recording_is_cut_in_two(folder: Path) -> None:
    for path in (folder / "bob").glob("*"):
        path.unlink()
    noise = np.random.default_rng(0).standard_normal(6 * 16000) * 0.1
    noise[3 * 16000 : 3 * 16000 + 4000] = 0.0
    soundfile.write(folder / "bob" / "long.wav", noise, 16000)
    bob = open_folder(folder).speakers[1]
    assert bob.sources == bob.references == (Clip(folder / "bob" / "long.wav", 0),)
    first, second = (clips[0].load() for clips in (bob.sources, bob.enrolment))
    assert len(first) + len(second) == 6 * RATE
    assert 3.0 * RATE < len(first) < 3.25 * RATE, "cut where it is quiet"
    soundfile.write(folder / "bob" / "long.wav", np.tile(noise, 6), 16000)
    assert len(bob.sources[0].load()) == sets.MAX_SECONDS * RATE
    soundfile.write(folder / "bob" / "long.wav", noise[:16000], 16000)
    with pytest.raises(ValueError, match=r"long.wav has 1.0 s; give voice bob"):
        open_folder(folder)


def test_what_is_wrong_with_a_folder_is_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        open_folder(folder / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="has 0 voices"):
        open_folder(folder / "empty")
    (folder / "ann" / "e0.flac").write_text("no audio")
    with pytest.raises(ValueError, match=r"e0.flac cannot be read"):
        open_folder(folder).speakers[0].sources[0].load()
    soundfile.write(folder / "bob" / "e.wav", np.zeros((100, 1)), RATE)
    with pytest.raises(ValueError, match=r"e.wav is silent"):
        open_folder(folder).speakers[1].sources[0].load()


def test_readers_are_those_kept_out_of_training(tmp_path: Path) -> None:
    development, evaluation = (
        sets.held_out()["people"][kind] for kind in (sets.DEVELOPMENT, sets.EVALUATION)
    )
    assert (len(development), len(evaluation)) == (10, 20)
    assert not set(development) & set(evaluation)
    for reader in (*development[:2], evaluation[0], 9999):
        soundfile.write(tmp_path / f"{reader}-1-0000.flac", np.full(5 * 16000, 0.1), 16000)
    (tmp_path / "speakers.tsv").write_text(f"reader\tsex\n{development[0]}\tF\n")
    found = open_people(tmp_path, sets.DEVELOPMENT).speakers
    assert {one.name for one in found} == {f"reader_{reader}" for reader in development[:2]}
    assert {one.sex for one in found} == {"female", "unknown"}
    with pytest.raises(sets.MissingSetError, match="has 1 of the evaluation readers"):
        open_people(tmp_path, sets.EVALUATION)
    with pytest.raises(sets.MissingSetError, match=r"openslr\.org/12"):
        open_people(tmp_path / "nowhere", sets.EVALUATION)
