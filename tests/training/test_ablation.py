"""Runs with one idea less: what they change, and the table of what that gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autovoice_training.train.ablation import (
    COLUMNS,
    DEFAULT_RUNS,
    NOISE,
    read_runs,
    table,
    write_config,
)
from autovoice_training.train.config import DEFAULT_CONFIG, TrainConfig


def test_the_shipped_runs_differ_from_the_first_in_one_setting() -> None:
    runs = read_runs(DEFAULT_RUNS, TrainConfig.read(DEFAULT_CONFIG))
    first, *others = runs.values()
    assert len(others) >= 4
    for name, config in list(runs.items())[1:]:
        changed = {key for key, value in vars(config).items() if value != getattr(first, key)}
        assert len(changed) == 1, name


def test_a_run_is_the_base_with_its_changes(tmp_path: Path) -> None:
    path = tmp_path / "runs.toml"
    path.write_text("[shared]\nsteps = 7\n[all]\n[bare]\nformant_factors = [1.0]\nseed = 3\n")
    runs = read_runs(path, TrainConfig(words_weight=0.9))
    assert runs["all"] == TrainConfig(words_weight=0.9, steps=7)
    assert runs["bare"] == TrainConfig(words_weight=0.9, steps=7, formant_factors=(1.0,), seed=3)
    write_config(runs["bare"], tmp_path / "run" / "train.toml")
    assert TrainConfig.read(tmp_path / "run" / "train.toml") == runs["bare"]


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.toml"
    path.write_text("[all]\n[bare]\nword_weight = 0.0\n")
    with pytest.raises(ValueError, match="bare: unknown setting word_weight"):
        read_runs(path, TrainConfig())


def summaries(wrong: float) -> dict[str, Any]:
    figures = {measure: {"value": 0.5} for _, _, _, measure in COLUMNS}
    result = {"result": {**figures, "whisper_wer": {"value": wrong}}, "own_voice": figures}
    return {"people": result, f"people, {NOISE}": result}


def test_the_table_has_a_row_for_each_run() -> None:
    lines = table({"everything": summaries(0.123), "no words": summaries(0.3)})
    assert lines[2] == (
        "| everything | 0.50 | 50 | 12.3 | 12.3 | 0.50 | 0.50 | 0.50 | not measured | not measured | "
        "not measured |"
    )
    assert lines[3].startswith("| no words | 0.50 | 50 | 30.0 |")
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 2}
