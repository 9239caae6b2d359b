"""Options that every benchmark understands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Quick: TypeAlias = Annotated[
    bool, typer.Option("--quick", help="Few repeats of little audio, to see whether it runs at all.")
]
Repository: TypeAlias = Annotated[
    Path | None, typer.Option(help="Model repository; found as `autovoice` finds it if left out.")
]
Speech: TypeAlias = Annotated[
    Path | None, typer.Option(help="Folder of recordings; those of the demo if left out.")
]
Results: TypeAlias = Annotated[Path, typer.Option(help="Folder of the JSON file.")]
