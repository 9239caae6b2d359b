"""``python -m autovoice_training.train.blend A B``: the mean of two checkpoints of one run.

Weights from before and after a change of the loss average to a voice that keeps most of what each is
better at (Wortsman et al. 2022, model soups).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from autovoice_export.base.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint


def blend(first: Checkpoint, second: Checkpoint) -> Checkpoint:
    """Averages two checkpoints, weight by weight; the pitch regression is the second's.

    Raises:
        CheckpointError: their stages differ in shape.
    """
    for name in ("content_encoder", "synthesizer"):
        if getattr(first, name).config != getattr(second, name).config:
            raise CheckpointError(
                f"the {name} of the two checkpoints differ in shape: blend those of one run"
            )
        _average(getattr(first, name), getattr(second, name))
    steps = [checkpoint.metadata.get("step") for checkpoint in (first, second)]
    metadata = {**second.metadata, "mean_of_steps": steps}
    return replace(second, metadata=metadata)


@torch.no_grad()
def _average(first: nn.Module, second: nn.Module) -> None:
    """Writes the mean of both into the second."""
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        other.lerp_(one, 0.5)


def main(
    first: Annotated[Path, typer.Argument(help="Checkpoint, safetensors.")],
    second: Annotated[Path, typer.Argument(help="Another one of the same run, the later.")],
    out: Annotated[Path, typer.Option(help="Where the mean is written.")],
) -> None:
    """Writes the mean of two checkpoints."""
    try:
        mean = blend(load_checkpoint(first), load_checkpoint(second))
    except CheckpointError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    save_checkpoint(
        out,
        mean.content_encoder,
        mean.synthesizer,
        mean.target_pitch,
        mean.phone_classifier,
        mean.pitch_extractor,
        mean.metadata,
    )


if __name__ == "__main__":
    typer.run(main)
