"""``python -m autovoice_training.train.ablation``: short runs with one idea less each.

All begin with the same weights, see the same batches as far as their settings allow, differ from the first in
the settings of ``ablation.toml`` alone, and are judged on the development sets.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from autovoice.atomic import atomic_path
from autovoice_training.evaluate.conditions import harder_conditions
from autovoice_training.evaluate.dataset import open_dataset
from autovoice_training.evaluate.judging import RESULT, SOURCE, Jury
from autovoice_training.evaluate.pairs import choose_pairs
from autovoice_training.evaluate.report import environment
from autovoice_training.evaluate.running import Task, judge_tasks
from autovoice_training.evaluate.runtime import RepositoryConverter, export_checkpoint
from autovoice_training.evaluate.summary import summarise
from autovoice_training.train.config import DEFAULT_CONFIG, TrainConfig, tomllib

DEFAULT_RUNS = DEFAULT_CONFIG.with_name("ablation.toml")
RESULTS = DEFAULT_CONFIG.parent / "results"
CACHE = Path("data/cache/evaluate")
NOISE = "pink noise at 20 dB"
NOISY_PAIRS = 12
# Conditions of the people who recorded words are told apart by this prefix.
PEOPLE = "people, "
COLUMNS = (
    ("words wrong, %", "all", "word_error_rate"),
    ("similarity, heard", "seen target", "similarity_target"),
    ("similarity, never heard", "unseen target", "similarity_target"),
    ("rank-1, heard, %", "seen target", "identified"),
    ("rank-1, never heard, %", "unseen target", "identified"),
    ("MCD, dB", "all", "mcd"),
    ("words wrong in noise, %", NOISE, "word_error_rate"),
    ("similarity, people never heard", PEOPLE + "unseen target", "similarity_target"),
    ("rank-1, people never heard, %", PEOPLE + "unseen target", "identified"),
)
console = Console()


def read_runs(path: Path, base: TrainConfig) -> dict[str, TrainConfig]:
    """The settings of every run by its name.

    Raises:
        ValueError: an unknown setting or a bad value.
    """
    described = tomllib.loads(path.read_text())
    shared = described.pop("shared", {})
    return {
        name: base.changed({**shared, **changes}, f"{path}: {name}") for name, changes in described.items()
    }


def write_config(config: TrainConfig, path: Path) -> None:
    """Writes settings as TOML."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in asdict(config).items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def figure(summary: dict[str, Any] | None, measure: str) -> float | None:
    """A figure of the voice under test, percentages as such; None where it was not measured."""
    if summary is None:
        return None
    if measure == "word_error_rate":
        found = summary["word_error_rates"].get(RESULT)
    else:
        found = summary["figures"][RESULT].get(measure)
    if found is None:
        return None
    return float(found["value"]) * (100.0 if measure in ("word_error_rate", "identified") else 1.0)


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each run, a column for each of COLUMNS; under them the unconverted source's words."""
    lines = [f"| run | {' | '.join(title for title, _, _ in COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, result in results.items():
        cells = []
        for _, condition, measure in COLUMNS:
            value = figure(result.get(condition), measure)
            digits = 1 if value is None or value > 10 else 2
            cells.append("not measured" if value is None else f"{value:.{digits}f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    everything = next(iter(results.values()))["all"]
    source = everything["word_error_rates"].get(SOURCE)
    if source:
        lines += ["", f"Words wrong in the unconverted sources: {100 * source['value']:.1f} %."]
    return lines


def main(
    start_from: Annotated[Path, typer.Option(help="Checkpoint that every run begins with.")],
    runs: Annotated[Path, typer.Option(help="What each run changes, TOML.")] = DEFAULT_RUNS,
    data: Annotated[Path, typer.Option(help="Corpus made by autovoice_training.corpus.")] = Path(
        "data/corpus"
    ),
    folder: Annotated[Path, typer.Option(help="Folder of the runs; finished ones are kept.")] = Path(
        "data/ablation"
    ),
    classifier: Annotated[
        Path, typer.Option(help="Phone classifier of a run, trained by autovoice_training.train.")
    ] = Path("data/run/phones.pt"),
    pairs: Annotated[int, typer.Option(min=1, help="Conversions to judge of each run.")] = 32,
    out: Annotated[Path, typer.Option(help="Table to write, Markdown.")] = RESULTS / "ablation_runs.md",
) -> None:
    """Trains and judges every run, then writes the table."""
    try:
        configs = read_runs(runs, TrainConfig.read(DEFAULT_CONFIG))
        weights = classifier.read_bytes()
    except (ValueError, OSError) as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(2) from None
    results: dict[str, dict[str, Any]] = {}
    for name, config in configs.items():
        run = folder / name.replace(" ", "_")
        judged = run / "summaries.json"
        if judged.exists():
            _check_settings(config, run)
        else:
            write_config(config, run / "train.toml")
            (run / "phones.pt").write_bytes(weights)
            voice = run / "voice.safetensors"
            _train(data=data, run=run, checkpoint=voice, config=run / "train.toml", start_from=start_from)
            console.print(f"judging {name}")
            with atomic_path(judged) as temporary:
                temporary.write_text(json.dumps(judge(voice, data, pairs)))
        results[name] = json.loads(judged.read_text())
    first = next(iter(configs.values()))
    hardware = environment(None)["hardware"]
    command = shlex.join(["python", "-m", "autovoice_training.train.ablation", *sys.argv[1:]])
    lines = [
        "# Runs with one idea less",
        "",
        f"Each {first.steps} steps of {first.batch_size} crops from one checkpoint, judged by {pairs} "
        f"conversions of the development set, {NOISY_PAIRS} with {NOISE} and {pairs} between people who "
        f"recorded words. `{command}` on "
        f"{hardware['processor']}, {hardware['cores']} cores.",
        "",
        *table(results),
        "",
    ]
    out.write_text("\n".join(lines))
    console.print(f"table: {out}")


def judge(checkpoint: Path, data: Path, pairs: int) -> dict[str, Any]:
    """Figures of a checkpoint by condition, on the development sets of a corpus.

    Plain conversions, noisy ones of understood sources, and plain ones between people who recorded words.
    """
    summaries: dict[str, Any] = {}
    noise = next(one for one in harder_conditions() if one.name == NOISE)
    with tempfile.TemporaryDirectory(prefix="autovoice_ablation_") as scratch:
        repository = Path(scratch) / "repository"
        export_checkpoint(checkpoint, repository)
        open_repository = functools.partial(RepositoryConverter, repository)
        for prefix, folder in (("", "dev"), (PEOPLE, "dev_recorded")):
            dataset = open_dataset(data / folder)
            chosen = choose_pairs(dataset, pairs, seed=0)
            converter = open_repository()
            jury = Jury(dataset, lambda converter=converter: converter, CACHE)
            understood = [pair for pair in chosen if jury.understands(pair.source)]
            converter.close()
            tasks = [Task(pair) for pair in chosen]
            tasks += [Task(pair, noise) for pair in understood[:NOISY_PAIRS]]
            verdicts = judge_tasks(dataset, tasks, open_repository, CACHE, os.cpu_count() or 1, lambda: None)
            for condition, summary in summarise(verdicts).items():
                summaries[prefix + condition] = asdict(summary)
    return summaries


def _check_settings(config: TrainConfig, run: Path) -> None:
    try:
        config.check_saved(asdict(TrainConfig.read(run / "train.toml")), run)
    except ValueError as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(2) from None


def _train(**options: object) -> None:
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    subprocess.run([sys.executable, "-m", "autovoice_training.train", *words], check=True)


if __name__ == "__main__":
    typer.run(main)
