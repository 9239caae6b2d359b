"""People's recordings: joined to utterances, kept apart for the judges, refused where unusable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from autovoice_training.corpus import recordings, render
from autovoice_training.corpus.build import speaker_jobs
from autovoice_training.corpus.config import CorpusConfig
from autovoice_training.corpus.reader import Corpus
from autovoice_training.corpus.render import Job
from autovoice_training.corpus.store import write_index
from autovoice_training.corpus.voices import MissingVoiceError, Voice


def person(name: str, split: str) -> Voice:
    return Voice(name, name, "female", "recording", "words-data", split, f"{name}/*.*", labelled=False)


def word(seconds: float, rate: int, level: float, number: int) -> np.ndarray:
    """A buzz of its own pitch between 0.3 s of silence on either side."""
    time = np.arange(round(seconds * rate)) / rate
    pause = np.zeros(round(0.3 * rate))
    buzz = sum(np.sin(2 * np.pi * (100.0 + 5 * number) * k * time) / k for k in range(1, 20))
    return np.concatenate([pause, level * buzz, pause])


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve words of one person, with what real folders have: an empty channel, silence, a telephone."""
    monkeypatch.setattr(recordings, "SHARE", tmp_path / "share")
    folder = tmp_path / "share" / "anna"
    folder.mkdir(parents=True)
    for number in range(12):
        level = 0.02 * (1 + number)
        audio = word(1.2, 44100, level, number)
        soundfile.write(folder / f"w{number:02d}.ogg", np.stack([np.zeros_like(audio), audio], axis=1), 44100)
    soundfile.write(folder / "silent.wav", np.zeros(44100), 44100)
    soundfile.write(folder / "telephone.wav", word(1.2, 8000, 0.2, 1), 8000)
    return tmp_path / "share"


def test_words_become_level_utterances_without_their_pauses(share: Path) -> None:
    anna = person("anna", "train")
    said, rate = recordings.utterances(anna, 2, seed=0)
    assert rate == 44100  # neither the silent nor the telephone's file counts
    assert len(said) == 2
    for audio in said:
        assert audio.dtype == np.int16
        assert len(audio) % 240 == 0
        # Four words of 1.2 s with at most 0.16 s around each: the fourth goes past five seconds.
        assert 5.0 <= len(audio) / 24000 < 5.0 + 1.36
        loudness = np.sqrt(np.mean(audio.reshape(-1, 240).astype(float) ** 2, axis=1))
        assert loudness.max() < 2.0 * np.median(loudness)
        assert np.mean(loudness < 10.0) < 0.13
    again, _ = recordings.utterances(anna, 2, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(said, again, strict=True))
    other, _ = recordings.utterances(anna, 2, seed=1)
    assert not all(np.array_equal(a, b) for a, b in zip(said, other, strict=False))


def test_who_said_little_gives_little(share: Path) -> None:
    said, _ = recordings.utterances(person("anna", "train"), 50, seed=0)
    assert 2 <= len(said) <= 3


def test_absent_recordings_name_their_package(share: Path) -> None:
    recordings.require(person("anna", "train"))
    with pytest.raises(
        MissingVoiceError, match=r"share/otto/\*\.\* are not installed: apt-get install words-data"
    ):
        recordings.require(person("otto", "train"))


def test_kept_utterances_are_judged_and_never_trained_on(
    share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voices = (person("anna", "train"), person("bea", "valid"), person("carl", "test"))
    monkeypatch.setattr(recordings, "RECORDED_VOICES", voices)
    monkeypatch.setattr(recordings, "RECORDED", {voice.name: voice for voice in voices})
    monkeypatch.setattr(recordings, "KEPT", 1)
    monkeypatch.setattr(recordings, "KEPT_OF", 3)
    monkeypatch.setattr(recordings, "UTTERANCE_SECONDS", 3.0)
    for name in ("bea", "carl"):
        (share / name).symlink_to(share / "anna")
    root = tmp_path / "corpus"
    root.mkdir()
    render.run_job(root, Job("recorded", "anna", (("", "", "train"),) * 9), seed=0)
    recordings.write_sets(root, seed=0)
    write_index(root, seed=0)

    corpus = Corpus(root)
    assert corpus.speakers["anna"].engine == "recording"
    assert {utterance.split for utterance in corpus.utterances} == {"train"}
    assert (corpus.phones("anna") == -1).all()
    trained = corpus.audio("anna")
    sets = {}
    for name, stranger in (("dev_recorded", "bea"), ("eval_recorded", "carl")):
        described = json.loads((root / name / "voices.json").read_text())
        sentences = [path.stem for path in (root / name).glob("*/*.flac")]
        assert len(set(sentences)) == len(sentences) == 2
        assert {voice: facts["seen"] for voice, facts in described.items()} == {"anna": True, stranger: False}
        files = sorted((root / name / "anna").glob("*.flac"))
        assert len(files) == 1
        sets[name], rate = soundfile.read(files[0], dtype="int16")
        assert rate == 24000
    everything, _ = recordings.utterances(voices[0], 3, seed=0)
    assert np.array_equal(sets["dev_recorded"], everything[0])
    assert np.array_equal(sets["eval_recorded"], everything[1])
    assert np.array_equal(trained, everything[2])


def test_nobody_who_is_judged_is_trained_on() -> None:
    names = {voice.name for voice in recordings.RECORDED_VOICES}
    assert len(names) == len(recordings.RECORDED_VOICES)
    jobs = {
        job.name
        for job in speaker_jobs(CorpusConfig(), {part: [] for part in PARTS})
        if job.kind == "recorded"
    }
    assert jobs == {voice.name for voice in recordings.RECORDED_VOICES if voice.split == "train"}
    assert speaker_jobs(CorpusConfig(recorded=0), {part: [] for part in PARTS}) == []


PARTS = ("parallel", "valid", "free", "espeak", "evaluation", "development")


def _absent() -> str | None:
    try:
        for voice in recordings.RECORDED_VOICES:
            recordings.require(voice)
    except MissingVoiceError as missing:
        return str(missing)
    return None


@pytest.mark.skipif(_absent() is not None, reason=str(_absent()))
@pytest.mark.parametrize("voice", recordings.RECORDED_VOICES, ids=lambda voice: voice.name)
def test_every_installed_recording_is_speech(voice: Voice) -> None:
    (audio, *_), rate = recordings.utterances(voice, 1, seed=0)
    assert rate >= recordings.LEAST_RATE
    loudness = np.sqrt(np.mean((audio / 32768.0).reshape(-1, 240) ** 2, axis=1))
    assert np.abs(audio).max() < 0.98 * 32768
    assert -32 < 20 * np.log10(np.sqrt(np.mean(loudness**2))) < -20
    # Syllables rise and fall; hiss and tones do not.
    assert np.percentile(loudness, 90) > 4 * np.percentile(loudness, 10)
