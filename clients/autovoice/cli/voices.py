"""`autovoice voices`, and how every command turns `--voice` and its settings into a configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from autovoice import PipelineConfig, RvcSettings, VoiceInfo, list_voices
from autovoice.errors import ConfigurationError


def voice_config(
    voice: str | None,
    settings: tuple[int | None, float | None, float | None, float | None],
    **options: Any,
) -> PipelineConfig:
    """The configuration for a voice; with no setting at all, none is asked for."""
    chosen = RvcSettings(*settings)
    return PipelineConfig(voice=voice, voice_settings=None if chosen == RvcSettings() else chosen, **options)


def show_voices(repository: Path | None, server: str | None, *, as_json: bool) -> int:
    """Print the voices of a repository or of a server.

    Raises:
        ConfigurationError: both are given, or the server wants another API key.
        InferenceError: the server does not answer.
        RepositoryError: no repository, or a voice whose config does not fit together.
    """
    if server is not None and repository is not None:
        raise ConfigurationError("--repository and --server contradict each other; give one of them")
    found = list_voices(PipelineConfig(backend=server or "embedded", repository=repository))
    if as_json:
        print(json.dumps([voice.to_dict() for voice in found], indent=2))
    elif found:
        Console().print(voice_table(found))
    else:
        print("no voices")
    return 0


def voice_table(voices: Sequence[VoiceInfo]) -> Table:
    """One row per voice."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("voice", no_wrap=True)
    table.add_column("family")
    table.add_column("Hz", justify="right")
    table.add_column("speakers", justify="right")
    for column in ("pitch", "index", "checkpoint"):
        table.add_column(column)
    table.add_column("version", justify="right")
    for voice in voices:
        table.add_row(
            voice.name,
            voice.family,
            str(voice.sample_rate),
            "any" if voice.speakers is None else str(voice.speakers),
            "yes" if voice.f0 else "no",
            "yes" if voice.index else "no",
            voice.checkpoint or "",
            str(voice.version or ""),
        )
    return table
