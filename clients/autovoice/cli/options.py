"""Options that several commands of `autovoice` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

ENGINE = "Engine"
IMPORTED = "Imported voice (default: the voice's own)"
RESULT = "Result"

TargetOption = Annotated[
    Path | None,
    typer.Option(
        "--target",
        "-t",
        metavar="FILE",
        help="For the base voice: a recording of the target, or a .npy made by `embed`.",
    ),
]
VoiceOption = Annotated[
    str | None,
    typer.Option(
        "--voice",
        "-v",
        metavar="NAME",
        help="An imported voice, which needs no --target; `autovoice voices` lists them. Default: the base "
        "voice.",
    ),
]
SpeakerOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Speaker of a voice that holds several.", rich_help_panel=IMPORTED),
]
IndexRateOption = Annotated[
    float | None,
    typer.Option(metavar="X", help="Content from the voice's index, 0 to 1 (all).", rich_help_panel=IMPORTED),
]
ProtectOption = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Keep voiceless sounds from the index, 0 (most) to 0.5 (not at all).",
        rich_help_panel=IMPORTED,
    ),
]
RmsMixOption = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Loudness, 0 (the source's) to 1 (the voice's own).",
        rich_help_panel=IMPORTED,
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
SkipExistingOption = Annotated[
    bool,
    typer.Option(
        "--skip-existing", help="Leave outputs that exist and convert the rest.", rich_help_panel=RESULT
    ),
]
ProvenanceOption = Annotated[
    bool,
    typer.Option(
        "--provenance/--no-provenance",
        help="Say in the output's metadata that it is converted speech.",
        rich_help_panel=RESULT,
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=RESULT),
]
