"""Evaluates a model repository or a checkpoint: `python -m autovoice_training.evaluate --help`."""

from __future__ import annotations

import enum
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from autovoice import VoiceConversionError
from autovoice_training.evaluate import sets
from autovoice_training.evaluate.conditions import harder_conditions
from autovoice_training.evaluate.floor import FloorLine, check_floors
from autovoice_training.evaluate.pairs import choose_pairs, own_voices
from autovoice_training.evaluate.report import environment, write_json, write_markdown
from autovoice_training.evaluate.running import Task, judge_tasks
from autovoice_training.evaluate.runtime import RepositoryConverter, export_checkpoint
from autovoice_training.evaluate.sets import EvaluationSet, MissingSetError
from autovoice_training.evaluate.summary import summarise

PAIRS = {sets.DEVELOPMENT: 20, sets.EVALUATION: 40}
# The synthesisers that the voice was once trained on tell little of natural speech.
SYNTHESISER_PAIRS = 12
# One of each combination of sexes.
DRAWN_PAIRS = 4

console = Console()


class Kind(str, enum.Enum):
    """Which speakers: those to decide by, or those to measure a finished voice on."""

    development = sets.DEVELOPMENT
    evaluation = sets.EVALUATION


class Only(str, enum.Enum):
    """One set alone."""

    people = sets.PEOPLE
    kokoro = sets.KOKORO
    synthesisers = sets.SYNTHESISERS


def evaluate(
    kind: Annotated[
        Kind,
        typer.Option("--set", help="Decide on development; measure evaluation once a voice is finished."),
    ] = Kind.development,
    repository: Annotated[Path, typer.Option(help="Model repository to evaluate.")] = Path(
        "model_repository"
    ),
    checkpoint: Annotated[
        Path | None, typer.Option(help="Evaluate this checkpoint, exported for the purpose, instead.")
    ] = None,
    people: Annotated[
        Path | None, typer.Option(help="Recordings of readers in LibriSpeech's layout. [data/librispeech]")
    ] = None,
    corpus: Annotated[Path, typer.Option(help="Corpus with the sets that it rendered.")] = Path(
        "data/corpus"
    ),
    folder: Annotated[
        Path | None,
        typer.Option(help="Judge these recordings alone: a folder for each voice, one recording will do."),
    ] = None,
    only: Annotated[Only | None, typer.Option(help="Judge this set alone.")] = None,
    pairs: Annotated[
        int | None,
        typer.Option(min=1, help="Conversions of each set, beside every voice into itself. [20, or 40]"),
    ] = None,
    harder: Annotated[
        int, typer.Option(min=0, help="Of those, so many again under each harder condition.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results. [data/evaluate, or training/results]")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Folder for what the judges said.")] = Path(
        "data/cache/evaluate"
    ),
    seed: Annotated[int, typer.Option(help="Of the draw of pairs.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = min(2, os.cpu_count() or 1),
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 below a floor.")] = False,
) -> None:
    """Converts between speakers never heard in training, judges the results, writes JSON, Markdown, PNG."""
    with tempfile.TemporaryDirectory(prefix="autovoice_evaluate_") as scratch:
        try:
            opened, skipped = _open_sets(kind.value, people, corpus, folder, only)
            if checkpoint is not None:
                repository = Path(scratch) / "repository"
                export_checkpoint(checkpoint, repository)
            facts = {**environment(repository), "set": kind.value, "seed": seed}
            # Tried here first: what is wrong with a repository should not come out of a worker's traceback.
            converter = RepositoryConverter(repository)
            converter.embed(own_voices(opened[0])[0].reference())
            converter.close()
        except ModuleNotFoundError as error:
            _fail(f"{error}; the judges come with pip install 'autovoice[judge]'")
        except (OSError, ValueError, RuntimeError, VoiceConversionError) as error:
            _fail(str(error))
        for reason in skipped:
            console.print(f"[yellow]skipped:[/yellow] {escape(reason)}", highlight=False, soft_wrap=True)
        out = out or Path("training/results" if kind is Kind.evaluation else "data/evaluate")
        out.mkdir(parents=True, exist_ok=True)
        tasks = []
        for one in opened:
            count = SYNTHESISER_PAIRS if one.name == sets.SYNTHESISERS else pairs or PAIRS[kind.value]
            tasks += _tasks(one, count, harder, seed, out)
        columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("judging", total=len(tasks))
            verdicts = judge_tasks(
                tasks,
                functools.partial(RepositoryConverter, repository),
                cache,
                workers,
                lambda: progress.advance(bar),
            )
    groups = [task.group for task in tasks]
    summaries = summarise(groups, verdicts)
    asked = {only.value} if only else set() if folder else {one.value for one in Only}
    floors = check_floors(summaries, asked, kind.value)
    write_json(out / "evaluation.json", facts, groups, verdicts, summaries, floors)
    pictures = [task.drawing.name for task in tasks if task.drawing]
    write_markdown(out / "evaluation.md", facts, summaries, floors, pictures, skipped)
    _print_floors(floors)
    console.print(f"tables: {out / 'evaluation.md'}")
    if check and not all(line.passed for line in floors):
        raise typer.Exit(1)


def _fail(message: str) -> None:
    console.print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(2) from None


def _open_sets(
    kind: str, people: Path | None, corpus: Path, folder: Path | None, only: Only | None
) -> tuple[list[EvaluationSet], list[str]]:
    """The sets there are, and for each other one why it is skipped."""
    if folder is not None:
        return [sets.open_folder(folder)], []
    readers = people or Path("data/librispeech")
    ways: dict[str, Callable[[], EvaluationSet]] = {
        sets.PEOPLE: lambda: sets.open_people(readers, kind),
        sets.KOKORO: lambda: sets.open_rendered(corpus, sets.KOKORO, kind),
        sets.SYNTHESISERS: lambda: sets.open_rendered(corpus, sets.SYNTHESISERS, kind),
    }
    opened, skipped = [], []
    for name, way in ways.items():
        if only is not None and name != only.value:
            continue
        try:
            opened.append(way())
        except MissingSetError as error:
            # Who names a folder wants it judged.
            if name == sets.PEOPLE and people is not None:
                raise
            skipped.append(f"{name}: {error}")
    if not opened:
        raise MissingSetError(f"there is nothing to judge; {'; '.join(skipped)}")
    return opened, skipped


def _tasks(one: EvaluationSet, count: int, harder: int, seed: int, out: Path) -> list[Task]:
    chosen = choose_pairs(one, count, seed)
    drawings = [out / f"{one.name}_{number}.png" for number in range(1, 1 + DRAWN_PAIRS)]
    tasks = [
        Task(one.name, pair, drawing=drawings[number] if number < DRAWN_PAIRS else None)
        for number, pair in enumerate(chosen)
    ]
    own = own_voices(one)
    tasks += [
        Task(one.name, pair, drawing=None if number else out / f"{one.name}_own.png")
        for number, pair in enumerate(own)
    ]
    tasks += [
        Task(one.name, pair, condition) for condition in harder_conditions() for pair in chosen[:harder]
    ]
    return tasks


def _print_floors(floors: list[FloorLine]) -> None:
    table = Table("requirement", "measured", "", "aim")
    for line in floors:
        table.add_row(
            line.requirement, line.measured, "[green]pass" if line.passed else "[red]FAIL", line.aim
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(evaluate)
