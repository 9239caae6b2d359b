"""Options that several commands of `autovoice` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

ENGINE = "Engine"
RESULT = "Result"

TargetOption = Annotated[
    Path,
    typer.Option(
        "--target",
        "-t",
        metavar="FILE",
        help="A recording of the target voice, or a .npy made by `embed`.",
    ),
]
RepositoryOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Model repository. Default: $AUTOVOICE_REPOSITORY, else the checkout's model_repository.",
        rich_help_panel=ENGINE,
    ),
]
DeviceOption = Annotated[
    Literal["auto", "cuda", "cpu"], typer.Option(help="Where the models run.", rich_help_panel=ENGINE)
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="CPU threads per model. Default: the usable cores, up to 4.",
        rich_help_panel=ENGINE,
    ),
]
FallbackOption = Annotated[
    Literal["cpu", "passthrough", "raise"],
    typer.Option(
        help="When the engine fails: use the CPU, hand back the unconverted input (flagged), or stop.",
        rich_help_panel=ENGINE,
    ),
]
EmbedFallbackOption = Annotated[
    Literal["cpu", "raise"],
    typer.Option(help="When the engine fails: use the CPU, or stop.", rich_help_panel=ENGINE),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace outputs that exist.", rich_help_panel=RESULT)
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=RESULT),
]
