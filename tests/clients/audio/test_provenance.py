"""Converted speech says so in its metadata, unless asked not to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from autovoice import write_audio
from autovoice.audio.files import read_audio
from autovoice.audio.provenance import PROVENANCE_COMMENT, provenance_tags
from autovoice.cli.main import run

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "demo" / "source_rms.flac"
TARGET = ROOT / "demo" / "target_awb.flac"
RATE = 24_000
TONE = np.sin(np.arange(RATE) * 0.1).astype(np.float32)


def comment_of(path: Path) -> str:
    with soundfile.SoundFile(path) as file:
        return str(file.comment)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "opus"])
def test_every_format_keeps_the_tag_and_the_samples(tmp_path: Path, suffix: str) -> None:
    tagged, plain = tmp_path / f"tagged.{suffix}", tmp_path / f"plain.{suffix}"
    write_audio(tagged, TONE, RATE, tags=provenance_tags())
    write_audio(plain, TONE, RATE)
    assert comment_of(tagged) == PROVENANCE_COMMENT
    assert PROVENANCE_COMMENT not in comment_of(plain)
    np.testing.assert_array_equal(read_audio(tagged)[0], read_audio(plain)[0])


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    audio, rate = soundfile.read(SOURCE, dtype="float32")
    soundfile.write(path, audio[: rate // 2], rate)
    return path


@pytest.mark.parametrize("command", [["convert"], ["stream", "--chunk-ms", "200", "--simulate"]])
def test_commands_tag_unless_told_otherwise(
    repository: Path, speech: Path, tmp_path: Path, command: list[str]
) -> None:
    common = [*command, str(speech), "-t", str(TARGET), "--repository", str(repository), "-o"]
    assert run([*common, str(tmp_path / "tagged.wav")]) == 0
    assert run([*common, str(tmp_path / "plain.wav"), "--no-provenance"]) == 0
    assert comment_of(tmp_path / "tagged.wav") == PROVENANCE_COMMENT
    assert comment_of(tmp_path / "plain.wav") == ""
    tagged, plain = (read_audio(tmp_path / f"{name}.wav")[0] for name in ("tagged", "plain"))
    np.testing.assert_array_equal(tagged, plain)
