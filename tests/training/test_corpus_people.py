"""A folder of readers becomes one speaker each, cut in two, without those who are held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from autovoice_training.corpus import people, store
from autovoice_training.corpus.reader import Corpus


def _recording(path: Path, rate: int = 16000) -> None:
    """Three seconds of noise with a pause from 1.3 to 1.5 s."""
    noise = np.random.default_rng(len(path.stem)).standard_normal(3 * rate) * 0.1
    noise[int(1.3 * rate) : int(1.5 * rate)] *= 0.001
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise, rate)


@pytest.fixture
def readers(tmp_path: Path) -> Path:
    """Readers 19 and 26 in LibriSpeech's folders, 103 beside them."""
    folder = tmp_path / "LibriSpeech" / "train-clean-100"
    for number in range(3):
        _recording(folder / "19" / "198" / f"19-198-{number:04d}.flac")
    _recording(folder / "26" / "495" / "26-495-0000.flac")
    _recording(folder / "103-1240-0000.flac")
    _recording(folder / "notes.flac")
    (folder.parent / "SPEAKERS.TXT").write_text(";ID  |SEX|\n19   | F | train-clean-100\n26   | M | x\n")
    return folder


def test_each_reader_is_a_speaker_whose_recordings_are_cut_at_the_pause(
    readers: Path, tmp_path: Path
) -> None:
    assert people.gather(tmp_path / "corpus", readers, frozenset({26})) == 2
    store.write_index(tmp_path / "corpus", ["reader_19", "reader_103"], 0)
    corpus = Corpus(tmp_path / "corpus")
    assert {name: speaker.sex for name, speaker in corpus.speakers.items()} == {
        "reader_19": "female",
        "reader_103": "unknown",
    }
    assert all(speaker.native_rate == 16000 for speaker in corpus.speakers.values())
    first, second, *others = (u for u in corpus.utterances if u.speaker == "reader_19")
    assert len(others) == 4
    assert 130 <= first.frames <= 150
    assert first.frames + second.frames == 300
    assert len({first.group, second.group}) == 2
    audio = corpus.audio("reader_19")[: 240 * 300].astype(float) / 32768
    assert 20 * np.log10(np.sqrt(np.mean(audio**2))) == pytest.approx(-23, abs=1)
    assert (corpus.phones("reader_19") == -1).all()


def test_of_a_reader_with_many_recordings_some_are_taken_from_everywhere(tmp_path: Path) -> None:
    for number in range(30):
        _recording(tmp_path / "in" / f"7-1-{number:04d}.flac")
    people.gather(tmp_path / "out", tmp_path / "in", frozenset())
    store.write_index(tmp_path / "out", ["reader_7"], 0)
    assert len(Corpus(tmp_path / "out").utterances) == 2 * 10


def test_sexes_are_read_from_a_table_of_tabs_too(readers: Path) -> None:
    (readers / "speakers.tsv").write_text("reader\tsex\n19\tM\n")
    assert people.sexes(readers) == {19: "male"}


def test_a_folder_without_recordings_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no READER-CHAPTER-UTTERANCE.flac: give --people"):
        people.gather(tmp_path / "corpus", tmp_path, frozenset())
