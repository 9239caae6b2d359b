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
from autovoice_training.evaluate.judging import SYSTEMS

ROOT = Path(__file__).resolve().parents[2]
app = typer.Typer()
app.command()(evaluate)


def call(*options: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(option) for option in options])
    return result.exit_code, result.output


@pytest.mark.heavy
@pytest.mark.parametrize("harder", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_any_folder_of_recordings_is_judged(evaluation_set: Path, tmp_path: Path, harder: int) -> None:
    conditions = harder_conditions() if harder else []
    data = tmp_path / "recordings"
    shutil.copytree(evaluation_set, data)
    (data / "texts.json").unlink()
    (data / "voices.json").unlink()
    out = tmp_path / "results"
    options = ("--data", data, "--out", out, "--cache", tmp_path / "cache", "--workers", 1)
    code, said = call(
        "--repository", ROOT / "model_repository", *options, "--pairs", 1, "--harder", harder, "--check"
    )
    assert code == 1, f"one pair is below the floor: {said}"
    report = json.loads((out / "evaluation.json").read_text())
    names = [one["condition"] for one in report["conversions"]]
    assert names == ["as recorded", *(condition.name for condition in conditions)]
    for conversion in report["conversions"]:
        assert set(conversion["scores"]) == set(SYSTEMS)
        assert conversion["scores"]["result"]["word_errors"] is None
        assert 0.3 < conversion["scores"]["result"]["similarity_target"] < 1.0
    text = (out / "evaluation.md").read_text()
    for condition in conditions:
        assert f"## {condition.name[0].upper()}{condition.name[1:]} (1 pairs)" in text
    for picture in ("pair_1.png", "similarity.png"):
        assert (out / picture).stat().st_size > 10000


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--data", "no/such/folder"), "no/such/folder is missing"),
        (("--repository", "no/such/repository"), "no/such/repository"),
        (("--checkpoint", "no/such/checkpoint"), "no/such/checkpoint does not exist"),
    ],
)
def test_what_is_missing_is_named_in_one_line(
    evaluation_set: Path, tmp_path: Path, options: tuple[str, str], named: str
) -> None:
    code, said = call("--data", evaluation_set, "--out", tmp_path / "out", *options)
    assert code == 2
    assert named in said.replace("\n", "")
    assert not (tmp_path / "out").exists()
