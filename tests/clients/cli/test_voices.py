"""Imported voices on the command line: `voices`, `--voice` with its settings, and one-line refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from toy_voices import RATE, build_toy_voices

from autovoice import PipelineConfig, RvcSettings, VoiceConversionPipeline
from autovoice.cli.main import run

SETTINGS = ["--speaker", "2", "--index-rate", "0.5", "--protect", "0.1", "--rms-mix", "1"]


@pytest.fixture(autouse=True)
def use_repository(toy_voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOVOICE_REPOSITORY", str(toy_voices))


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """0.6 s of noise that swells."""
    path = tmp_path / "speech.wav"
    noise = np.random.default_rng(2).standard_normal(9600) * np.linspace(0, 0.2, 9600)
    soundfile.write(path, noise.clip(-1, 1), RATE, subtype="FLOAT")
    return path


def test_convert_with_a_voice_and_settings(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.wav"
    command = ["convert", str(speech), "--voice", "anna", "-o", str(out), "--pitch-shift", "3", *SETTINGS]
    assert run([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["errors"] == []
    assert report["results"][0]["pitch_shift_semitones"] == 3.0
    audio, _ = soundfile.read(speech, dtype="float32")
    with VoiceConversionPipeline(PipelineConfig(), voice="anna") as pipeline:
        expected = pipeline.convert(
            audio,
            source_sample_rate=RATE,
            pitch_shift_semitones=3.0,
            voice_settings=RvcSettings(2, 0.5, 0.1, 1.0),
        )
    written, rate = soundfile.read(out, dtype="float32")
    assert (rate, written.size) == (RATE, audio.size)
    np.testing.assert_allclose(written, expected.clip(-1, 1), atol=1.1 / 32768)


def test_stream_reports_the_latency_of_the_core_and_the_context(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = []
    for core in ([], ["--core-ms", "100"]):
        out = tmp_path / f"live{len(core)}.wav"
        command = ["stream", "--simulate", str(speech), "--voice", "cleo", "-o", str(out), *SETTINGS, *core]
        assert run([*command, "--chunk-ms", "50", "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
        assert soundfile.info(out).samplerate == 48_000
        assert soundfile.info(out).frames == 28_800
    (usual, short) = (report["algorithmic_ms"] for report in reports)
    assert usual - short == pytest.approx(140)
    assert 280 < usual < 330  # 240 ms of core, 40 ms of context, resampling to 16 kHz


def test_voices_lists_them(toy_voices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["voices"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["voice", "family", "Hz", "speakers", "pitch", "index", "checkpoint", "version"]
    assert lines[2] == ["anna", "rvc", "40000", "3", "yes", "yes", "v2", "1"]
    assert [line[0] for line in lines[1:]] == ["voice_conversion", "anna", "bert", "cleo"]
    bare = build_toy_voices(tmp_path / "bare", {"dora": 32_000}, has_f0="0", has_index="0", version="v1")
    assert run(["voices", "--repository", str(bare), "--json"]) == 0
    (dora,) = json.loads(capsys.readouterr().out)
    assert dora == {
        "name": "dora",
        "family": "rvc",
        "sample_rate": 32_000,
        "speakers": 3,
        "f0": False,
        "index": False,
        "checkpoint": "v1",
        "version": 1,
        "defaults": {"speaker": 1, "index_rate": 0.75, "protect": 0.25, "rms_mix": 0.5},
    }


def test_info_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [voice["name"] for voice in facts["voices"]] == ["voice_conversion", "anna", "bert", "cleo"]
    assert run(["info"]) == 0
    assert "cleo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--target"),
        (["--voice", "dora"], "'dora'"),
        (["--voice", "Anna"], "'Anna'"),
        (["--voice", "anna", "--target", "friend.npy"], "takes none"),
        (["--voice", "anna", "--pitch-shift", "auto"], "give semitones"),
        (["--voice", "anna", "--speaker", "3"], "speaker is 3"),
        (["--voice", "anna", "--speaker", "-1"], "speaker is -1"),
        (["--voice", "anna", "--speaker", "one"], "--speaker"),
        (["--voice", "anna", "--index-rate", "1.5"], "index_rate is 1.5; give a number from 0 to 1"),
        (["--voice", "anna", "--protect", "0.6"], "protect is 0.6; give a number from 0 to 0.5"),
        (["--voice", "anna", "--rms-mix", "nan"], "rms_mix is nan"),
        (["--speaker", "0", "--target", "friend.npy"], "settings of imported voices"),
    ],
)
@pytest.mark.parametrize("command", ["convert", "stream"])
def test_mistakes_are_one_line_each(
    speech: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    arguments: list[str],
    says: str,
) -> None:
    """Two sources, so that what is wrong with both is said once."""
    also = speech.with_name("also.wav")
    also.write_bytes(speech.read_bytes())
    sources: list[Any] = [speech, also, "-o", tmp_path / "out"]
    if command == "stream":
        sources = ["--simulate", speech, "-o", tmp_path / "out.wav"]
    assert run([command, *(str(source) for source in sources), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("autovoice: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err
    assert {path.name for path in tmp_path.iterdir()} == {"speech.wav", "also.wav"}


def test_more_mistakes(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, says in (
        (["voices", "--server", "ftp://here"], "ftp://here"),
        (["voices", "--server", "grpc://h:1", "--repository", str(tmp_path)], "contradict"),
        (["voices", "--repository", str(tmp_path / "nowhere")], "nowhere"),
        (["stream", "--simulate", str(speech), "--voice", "anna", "--core-ms", "0"], "core_seconds is 0"),
    ):
        assert run(arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert says in captured.err
    assert run(["voices", "--server", "grpc://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
