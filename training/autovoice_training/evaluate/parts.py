"""What each part of the synthesizer gives: ``python -m autovoice_training.evaluate.parts``.

A voice converts between the development readers as it is, and with parts of the synthesizer switched off: the
network, of which then neither a correction nor a choice comes, and the warp of the source's envelopes.
Without the network a fixed share of the target's looked-up envelope is taken.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from autovoice import VoiceConversionError
from autovoice.atomic import atomic_path
from autovoice_export.base.checkpoint import Checkpoint, load_checkpoint
from autovoice_export.base.stages.synthesizer import Synthesizer
from autovoice_training.evaluate.judging import RESULT, Jury
from autovoice_training.evaluate.pairs import choose_pairs
from autovoice_training.evaluate.report import with_interval
from autovoice_training.evaluate.runtime import StageConverter
from autovoice_training.evaluate.sets import DEVELOPMENT, open_people
from autovoice_training.evaluate.summary import MEASURES, summarise

SHARES = {"none": -30.0, "a third": -0.7, "two thirds": 0.7, "all": 30.0}
"""Of the target's envelope, as log odds."""
SHIFTS = (-1.0, -0.5, 0.5, 1.0)
COLUMNS = (
    "spk_nearer_target",
    "spk_similarity",
    "spk_similarity_source",
    "whisper_wer",
    "distill_mos",
)

console = Console()


def variants(checkpoint: Checkpoint) -> Iterator[tuple[str, Checkpoint]]:
    """Voices by name, from the least to the whole synthesizer."""
    for warp in (False, True):
        for share, log_odds in SHARES.items():
            part = copy.deepcopy(checkpoint.synthesizer)
            _silence(part, log_odds)
            if not warp:
                part.warps.copy_(torch.eye(part.config.envelope_size).expand_as(part.warps))
            kind = "warped and moved" if warp else "moved"
            name = f"no network, source's envelopes {kind}, of the target's {share}"
            yield name, replace(checkpoint, synthesizer=part)
    yield "all", checkpoint
    for shift in SHIFTS:
        part = copy.deepcopy(checkpoint.synthesizer)
        with torch.no_grad():
            _bias(part.share).add_(shift)
        name = f"all, log odds of the target's share {shift:+.1f}"
        yield name, replace(checkpoint, synthesizer=part)


@torch.no_grad()
def _silence(synthesizer: Synthesizer, log_odds: float) -> None:
    """Leaves of what the network says only a share of the target that is the same everywhere."""
    for layer, bias in ((synthesizer.correction, 0.0), (synthesizer.share, log_odds)):
        layer.weight.zero_()
        _bias(layer).fill_(bias)


def _bias(layer: torch.nn.Conv1d) -> torch.Tensor:
    assert layer.bias is not None
    return layer.bias


def main(
    checkpoint: Annotated[Path, typer.Option(help="The voice.")] = Path(
        "training/checkpoints/base.safetensors"
    ),
    people: Annotated[Path, typer.Option(help="Recordings of readers in LibriSpeech's layout.")] = Path(
        "data/librispeech"
    ),
    pairs: Annotated[int, typer.Option(min=1, help="Conversions between development readers.")] = 20,
    out: Annotated[Path, typer.Option(help="The table, Markdown.")] = Path("data/evaluate/parts.md"),
    cache: Annotated[Path, typer.Option(help="Folder for what the judges said.")] = Path(
        "data/cache/evaluate"
    ),
) -> None:
    """Measures what each part of the synthesizer gives, between speakers."""
    try:
        chosen = choose_pairs(open_people(people, DEVELOPMENT), pairs)
        voice = load_checkpoint(checkpoint)
    except (OSError, ValueError, RuntimeError, VoiceConversionError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    torch.set_num_threads(1)
    lines = [
        "# What each part of the synthesizer gives",
        "",
        f"{len(chosen)} conversions between development readers; in brackets 95 % bootstrap intervals.",
        "",
        f"| | {' | '.join(MEASURES[name].title for name in COLUMNS)} |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name, variant in variants(voice):
        jury = Jury(functools.partial(StageConverter, variant), cache)
        verdicts = [jury.judge(pair) for pair in track(chosen, name, console=console)]
        (summary,) = summarise([name] * len(verdicts), verdicts).values()
        figures = summary[RESULT]
        cells = [with_interval(figures[column], MEASURES[column]) for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    console.print("\n".join(lines[4:]), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
