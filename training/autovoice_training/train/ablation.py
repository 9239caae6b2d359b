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
from autovoice_training.evaluate.floor import NOT_MEASURED, shown
from autovoice_training.evaluate.judging import OWN, RESULT
from autovoice_training.evaluate.pairs import choose_pairs, own_voices
from autovoice_training.evaluate.report import environment
from autovoice_training.evaluate.running import Task, judge_tasks
from autovoice_training.evaluate.runtime import RepositoryConverter, export_checkpoint
from autovoice_training.evaluate.sets import DEVELOPMENT, KOKORO, PEOPLE, open_people, open_rendered
from autovoice_training.evaluate.summary import MEASURES, WORD_ERROR_RATE, summarise
from autovoice_training.train.config import DEFAULT_CONFIG, TrainConfig, tomllib

DEFAULT_RUNS = DEFAULT_CONFIG.with_name("ablation.toml")
RESULTS = DEFAULT_CONFIG.parent / "results"
CACHE = Path("data/cache/evaluate")
NOISE = "pink noise at 20 dB"
NOISY_PAIRS = 12
# Title, set, row and measure of each column.
COLUMNS = (
    ("similarity, people", PEOPLE, RESULT, "spk_similarity"),
    ("nearer to target, people, %", PEOPLE, RESULT, "spk_nearer_target"),
    ("words wrong, people, %", PEOPLE, RESULT, WORD_ERROR_RATE),
    ("words wrong, people in noise, %", f"{PEOPLE}, {NOISE}", RESULT, WORD_ERROR_RATE),
    ("DistillMOS, people", PEOPLE, RESULT, "distill_mos"),
    ("own voice: similarity to the file", PEOPLE, OWN, "spk_similarity_file"),
    ("own voice: DistillMOS", PEOPLE, OWN, "distill_mos"),
    ("similarity, Kokoro", KOKORO, RESULT, "spk_similarity"),
    ("words wrong, Kokoro, %", KOKORO, RESULT, WORD_ERROR_RATE),
    ("DistillMOS, Kokoro", KOKORO, RESULT, "distill_mos"),
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


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each run, a column for each of COLUMNS."""
    lines = [f"| run | {' | '.join(title for title, *_ in COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, result in results.items():
        cells = []
        for _, group, row, measure in COLUMNS:
            figure = result.get(group, {}).get(row, {}).get(measure)
            cells.append(shown(figure["value"], MEASURES[measure]) if figure else NOT_MEASURED)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(
    start_from: Annotated[Path, typer.Option(help="Checkpoint that every run begins with.")],
    runs: Annotated[Path, typer.Option(help="What each run changes, TOML.")] = DEFAULT_RUNS,
    data: Annotated[Path, typer.Option(help="Corpus made by autovoice_training.corpus.")] = Path(
        "data/corpus"
    ),
    people: Annotated[Path, typer.Option(help="Recordings of readers in LibriSpeech's layout.")] = Path(
        "data/librispeech"
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
                temporary.write_text(json.dumps(judge(voice, data, people, pairs)))
        results[name] = json.loads(judged.read_text())
    first = next(iter(configs.values()))
    hardware = environment(None)["hardware"]
    command = shlex.join(["python", "-m", "autovoice_training.train.ablation", *sys.argv[1:]])
    lines = [
        "# Runs with one idea less",
        "",
        f"Each {first.steps} steps of {first.batch_size} crops from one checkpoint, judged by {pairs} "
        f"conversions of each development set, {NOISY_PAIRS} of them with {NOISE}, and by every speaker into "
        f"its own voice. `{command}` on "
        f"{hardware['processor']}, {hardware['cores']} cores.",
        "",
        *table(results),
        "",
    ]
    out.write_text("\n".join(lines))
    console.print(f"table: {out}")


def judge(checkpoint: Path, data: Path, people: Path, pairs: int) -> dict[str, Any]:
    """Figures of a checkpoint on the development sets, by set, row and measure."""
    noise = next(one for one in harder_conditions() if one.name == NOISE)
    tasks = []
    for one in (open_people(people, DEVELOPMENT), open_rendered(data, KOKORO, DEVELOPMENT)):
        chosen = choose_pairs(one, pairs)
        tasks += [Task(one.name, pair) for pair in (*chosen, *own_voices(one))]
        tasks += [Task(one.name, pair, noise) for pair in chosen[:NOISY_PAIRS]]
    with tempfile.TemporaryDirectory(prefix="autovoice_ablation_") as scratch:
        repository = Path(scratch) / "repository"
        export_checkpoint(checkpoint, repository)
        open_repository = functools.partial(RepositoryConverter, repository)
        verdicts = judge_tasks(tasks, open_repository, CACHE, os.cpu_count() or 1)
    return {
        group: {row: {name: asdict(one) for name, one in figures.items()} for row, figures in rows.items()}
        for group, rows in summarise([task.group for task in tasks], verdicts).items()
    }


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
