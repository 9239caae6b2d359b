"""The evaluation's sets of synthesisers, and the command's errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from autovoice_training.corpus import spoken, voices
from autovoice_training.corpus.config import CorpusConfig
from autovoice_training.evaluate.sets import open_folder


def _absent() -> str | None:
    try:
        for voice in voices.VOICES.values():
            voice.require()
    except voices.MissingVoiceError as missing:
        return str(missing)
    return None


@pytest.mark.slow
@pytest.mark.skipif(_absent() is not None, reason=str(_absent()))
def test_every_synthesiser_says_every_sentence_and_the_diphone_voices_in_time(tmp_path: Path) -> None:
    spoken.write_sets(tmp_path, lambda line: None, sentences=3)
    for name, count in (("dev", 9), ("eval", 13)):
        speakers = open_folder(tmp_path / name).speakers
        assert len(speakers) == count
        assert all(speaker.sources[0].text for speaker in speakers)
        for sentence in (f"{name[0]}{number:02d}" for number in range(3)):
            lengths = set()
            for voice in (speaker.name for speaker in speakers):
                audio, rate = soundfile.read(tmp_path / name / voice / f"{sentence}.flac")
                assert rate == 24000
                assert -29 < 20 * np.log10(np.sqrt(np.mean(audio**2))) < -22
                if voices.VOICES[voice].engine == "diphone":
                    lengths.add(len(audio))
            assert len(lengths) == 1
    kept = (tmp_path / "dev" / "voices.json").stat().st_mtime_ns
    spoken.write_sets(tmp_path, pytest.fail)
    assert (tmp_path / "dev" / "voices.json").stat().st_mtime_ns == kept


def test_a_missing_voice_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(voices, "_FESTIVAL_VOICES", tmp_path)
    with pytest.raises(voices.MissingVoiceError, match=r"apt-get install fest(vox-kallpc16k|ival)"):
        voices.VOICES["kal"].require()


@pytest.mark.parametrize(("content", "named"), [("group = 3", "'group'"), ("blends = -1", "blends = -1")])
def test_a_bad_setting_is_refused_by_name(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=named):
        CorpusConfig.from_toml(path)


def test_the_shipped_config_is_the_default() -> None:
    path = Path(__file__).parents[2] / "training" / "corpus.toml"
    assert CorpusConfig.from_toml(path) == CorpusConfig()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "people").mkdir()
    training = Path(__file__).parents[2] / "training"
    command = [sys.executable, "-m", "autovoice_training.corpus", "--people", str(tmp_path / "people")]
    files = ["--config", str(training / "corpus.toml"), "--sets", str(training / "sets.toml")]
    folders = ["--out", str(tmp_path / "corpus"), "--cache", str(tmp_path / "cache")]
    done = subprocess.run([*command, *files, *folders], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "READER-CHAPTER-UTTERANCE.flac" in done.stderr
    assert not (tmp_path / "corpus").exists()
