"""`autovoice import`: voices of other projects as models of the repository.

What an import does lives in the package autovoice_export, for which the extra "export" is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from autovoice.cli.build import build_tools

app = typer.Typer(help="Bring a voice of another project into the model repository.", no_args_is_help=True)


@app.callback()
def _sources() -> None:
    """Keeps the name of the source in the command even while there is one only."""


@app.command()
def rvc(
    checkpoint: Annotated[Path, typer.Argument(metavar="VOICE.pth", help="RVC v1 or v2 checkpoint.")],
    name: Annotated[str, typer.Option(help="Name of the voice: lower case letters, digits, _ and -.")],
    index: Annotated[Path | None, typer.Option(metavar="FILE", help="The voice's feature index.")] = None,
    contentvec: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="ContentVec: a folder with config.json and model.safetensors, or hubert_base.pt. Not needed "
            "where the repository has it.",
        ),
    ] = None,
    pitch: Annotated[Literal["yin", "rmvpe"], typer.Option(help="Pitch tracker.")] = "yin",
    rmvpe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="rmvpe.pt. Not needed where the repository has it."),
    ] = None,
    unvoiced: Annotated[
        Literal["zero", "interpolate"],
        typer.Option(
            help="F0 where there is none: as the voice was trained; interpolate for training of 2026."
        ),
    ] = "zero",
    speaker: Annotated[int, typer.Option(metavar="N", min=0, help="Default speaker.")] = 0,
    repository: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Model repository. Default: $AUTOVOICE_REPOSITORY, else the checkout's model_repository.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write a new version of a voice that exists.")
    ] = False,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Content encoder and synthesizer in float16, for GPUs.")
    ] = False,
) -> int:
    """Import a voice made with RVC, check it against PyTorch and report."""
    from autovoice import PipelineConfig

    result: int = build_tools("rvc.command").import_rvc(
        checkpoint=checkpoint,
        name=name,
        repository=PipelineConfig(repository=repository).repository_path(),
        index=index,
        contentvec=contentvec,
        pitch=pitch,
        rmvpe=rmvpe,
        unvoiced=unvoiced,
        speaker=speaker,
        replace=replace,
        half=fp16,
    )
    return result
