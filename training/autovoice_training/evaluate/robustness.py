"""All conditions on some pairs: ``python -m autovoice_training.evaluate.robustness``."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from autovoice import VoiceConversionError
from autovoice_training.evaluate.conditions import condition_table, conditions, judge_condition, natural_range
from autovoice_training.evaluate.dataset import Dataset, at_judge_rate, open_dataset
from autovoice_training.evaluate.judging import Jury
from autovoice_training.evaluate.pairs import Pair, choose_pairs
from autovoice_training.evaluate.report import environment
from autovoice_training.evaluate.runtime import RepositoryConverter, export_checkpoint
from autovoice_training.evaluate.speaker import Embedding, embed, mean_embedding

# Other pairs than those of the evaluation, whose draw has seed 0.
SEED = 1

console = Console()


def understood_pairs(dataset: Dataset, count: int, jury: Jury) -> list[Pair]:
    """Conversions whose source the recogniser understands, drawn from all cells of the design."""
    drawn = choose_pairs(dataset, 40 * count, SEED)
    return [pair for pair in drawn if jury.understands(pair.source)][:count]


def main(
    repository: Annotated[Path, typer.Option(help="Model repository to evaluate.")] = Path(
        "model_repository"
    ),
    checkpoint: Annotated[
        Path | None, typer.Option(help="Evaluate this checkpoint, exported for the purpose, instead.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Evaluation set.")] = Path("data/corpus/eval"),
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("training/results"),
    cache: Annotated[Path, typer.Option(help="Folder for what the judges said.")] = Path(
        "data/cache/evaluate"
    ),
    pairs: Annotated[int, typer.Option(min=1, help="Conversions for each condition.")] = 8,
) -> None:
    """Converts under every condition, judges the results, writes conditions.json and conditions.md."""
    with tempfile.TemporaryDirectory(prefix="autovoice_robustness_") as scratch:
        try:
            if checkpoint is not None:
                repository = Path(scratch) / "repository"
                export_checkpoint(checkpoint, repository)
            dataset = open_dataset(data)
            converter = RepositoryConverter(repository)
        except (OSError, ValueError, RuntimeError, VoiceConversionError) as error:
            console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None
        jury = Jury(dataset, lambda: converter, cache)
        chosen = understood_pairs(dataset, pairs, jury)
        facts = environment(repository) | {
            "command": shlex.join(["python", "-m", "autovoice_training.evaluate.robustness", *sys.argv[1:]])
        }
        work = [(pair, condition) for condition in conditions() for pair in chosen]
        findings = [
            judge_condition(dataset, converter, pair, condition, _enrol(dataset, pair))
            for pair, condition in track(work, "judging", console=console)
        ]
        converter.close()
    natural = natural_range(dataset)
    out.mkdir(parents=True, exist_ok=True)
    report = {**facts, "natural": natural, "findings": [asdict(finding) for finding in findings]}
    (out / "conditions.json").write_text(json.dumps(report, indent=1) + "\n")
    hardware = facts["hardware"]
    lines = [
        "# Conditions",
        "",
        f"{len(chosen)} conversions a condition, of sentences never trained on, from sources that the "
        f"recogniser understands. `{facts['command']}` on {hardware['processor']}, "
        f"{hardware['cores']} cores.",
        "",
        *condition_table(findings, natural),
        "",
    ]
    (out / "conditions.md").write_text("\n".join(lines))
    console.print(f"table: {out / 'conditions.md'}")


def _enrol(dataset: Dataset, pair: Pair) -> dict[str, Embedding]:
    """Mean embedding of every speaker from sentences that the conversion has not heard."""
    enrolled: dict[str, Embedding] = {}
    for name, voice in dataset.voices.items():
        sentences = pair.enrolment(voice)
        enrolled[name] = mean_embedding([_embedding(dataset, name, sentence) for sentence in sentences])
    return enrolled


_known: dict[tuple[Path, str, str], Embedding] = {}


def _embedding(dataset: Dataset, name: str, sentence: str) -> Embedding:
    key = (dataset.root, name, sentence)
    if key not in _known:
        _known[key] = embed(at_judge_rate(*dataset.load(name, sentence)))
    return _known[key]


if __name__ == "__main__":
    typer.run(main)
