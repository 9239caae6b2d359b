"""`autovoice voices`: the voices of a repository or a server."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from autovoice.cli.console import make_table, print_table
from autovoice.cli.options import (
    ApiKeyFileOption,
    JsonOption,
    RepositoryOption,
    ServerOption,
    TlsCaOption,
    TlsCertificateOption,
    TlsKeyOption,
    pipeline_config,
    require_one_place,
)

if TYPE_CHECKING:
    from autovoice import VoiceInfo


def voices(
    as_json: JsonOption = False,
    repository: RepositoryOption = None,
    server: ServerOption = None,
    api_key_file: ApiKeyFileOption = None,
    tls_ca: TlsCaOption = None,
    tls_certificate: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
) -> int:
    """List the voices of the model repository or of a server."""
    from autovoice import list_voices

    require_one_place(repository, server)
    config = pipeline_config(
        repository=repository,
        server=server,
        api_key_file=api_key_file,
        tls_ca=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
    )
    found = list_voices(config)
    if as_json:
        print(json.dumps([voice.to_dict() for voice in found], indent=2))
    elif found:
        print_voices(found)
    else:
        print("no voices")
    return 0


def print_voices(found: Iterable[VoiceInfo]) -> None:
    """Write a table with a row for each voice."""
    headers = ("voice", "family", "Hz", "speakers", "pitch", "index", "checkpoint", "version")
    table = make_table(*headers, right=("Hz", "speakers", "version"))
    for voice in found:
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
    print_table(table)
