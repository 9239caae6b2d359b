"""Evaluates a model repository or a checkpoint: `python -m autovoice_training.evaluate --help`."""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from autovoice import VoiceConversionError
from autovoice_training.evaluate.conditions import PLAIN, harder_conditions
from autovoice_training.evaluate.dataset import open_dataset
from autovoice_training.evaluate.floor import FloorLine, check_floor
from autovoice_training.evaluate.judging import Jury
from autovoice_training.evaluate.pairs import choose_pairs
from autovoice_training.evaluate.plots import draw_similarity
from autovoice_training.evaluate.report import environment, write_json, write_markdown
from autovoice_training.evaluate.running import Task, judge_tasks
from autovoice_training.evaluate.runtime import RepositoryConverter, export_checkpoint
from autovoice_training.evaluate.summary import summarise

QUICK_PAIRS = 12
# One of each combination of unseen sources with seen and unseen targets of same and other sex.
DRAWN_PAIRS = 4

console = Console()


def evaluate(
    repository: Annotated[Path, typer.Option(help="Model repository to evaluate.")] = Path(
        "model_repository"
    ),
    checkpoint: Annotated[
        Path | None, typer.Option(help="Evaluate this checkpoint, exported for the purpose, instead.")
    ] = None,
    data: Annotated[
        Path, typer.Option(help="Folder with a folder of recordings for each voice, see dataset.py.")
    ] = Path("data/corpus/eval"),
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("training/results"),
    cache: Annotated[Path, typer.Option(help="Folder for what the judges said.")] = Path(
        "data/cache/evaluate"
    ),
    pairs: Annotated[int, typer.Option(min=1, help="Conversions to judge.")] = 128,
    harder: Annotated[
        int, typer.Option(min=0, help="Of those, so many again under each harder condition.")
    ] = 8,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"Judge {QUICK_PAIRS} conversions, all plain.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the draw of pairs.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = min(2, os.cpu_count() or 1),
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 below the floor.")] = False,
) -> None:
    """Converts recordings between the voices of a folder, judges the results, writes JSON, Markdown, PNG."""
    with tempfile.TemporaryDirectory(prefix="autovoice_evaluate_") as scratch:
        try:
            if checkpoint is not None:
                repository = Path(scratch) / "repository"
                export_checkpoint(checkpoint, repository)
            dataset = open_dataset(data)
            chosen = choose_pairs(dataset, QUICK_PAIRS if quick else pairs, seed)
            # Tried here first: what is wrong with a repository should not come out of a worker's traceback.
            converter = RepositoryConverter(repository)
            converter.embed(*dataset.load(chosen[0].target, chosen[0].references[0]))
        except (OSError, ValueError, RuntimeError, VoiceConversionError) as error:
            console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None
        jury = Jury(dataset, lambda: converter, cache)
        natural = jury.natural_range()
        # Words tell what a condition costs only where the recogniser understands the source.
        understood = [pair for pair in chosen if jury.understands(pair.source)] or chosen
        converter.close()
        facts = {**environment(repository), "seed": seed}
        out.mkdir(parents=True, exist_ok=True)
        drawings = [out / f"pair_{number}.png" for number in range(1, 1 + min(DRAWN_PAIRS, len(chosen)))]
        tasks = [Task(pair, drawing=path) for pair, path in itertools.zip_longest(chosen, drawings)]
        if not quick:
            tasks += [Task(pair, one) for one in harder_conditions() for pair in understood[:harder]]
        columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("judging", total=len(tasks))
            verdicts = judge_tasks(
                dataset,
                tasks,
                functools.partial(RepositoryConverter, repository),
                cache,
                workers,
                lambda: progress.advance(bar),
            )
    summaries = summarise(verdicts)
    floor = check_floor(verdicts, summaries, natural)
    draw_similarity([one for one in verdicts if one.condition == PLAIN.name], out / "similarity.png")
    write_json(out / "evaluation.json", facts, verdicts, summaries, floor, natural)
    pictures = ["similarity.png", *(path.name for path in drawings)]
    write_markdown(out / "evaluation.md", facts, summaries, floor, pictures)
    _print_floor(floor)
    console.print(f"tables: {out / 'evaluation.md'}")
    if check and not all(line.passed for line in floor):
        raise typer.Exit(1)


def _print_floor(floor: list[FloorLine]) -> None:
    table = Table("requirement", "measured", "")
    for line in floor:
        table.add_row(line.requirement, line.measured, "[green]pass" if line.passed else "[red]FAIL")
    console.print(table)


if __name__ == "__main__":
    typer.run(evaluate)
