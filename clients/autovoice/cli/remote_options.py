"""Options of the commands that can leave the work to a Triton server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

SERVER = "Server"

ServerOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Leave the work to a server: grpc://host:port or http://host:port, with TLS grpcs:// or https://.",
        rich_help_panel=SERVER,
    ),
]
ApiKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Key that the server asks for. Default: $AUTOVOICE_API_KEY, else none.",
        rich_help_panel=SERVER,
    ),
]
TlsCaOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PEM",
        help="Authorities that may vouch for the server. Default: the usual ones.",
        rich_help_panel=SERVER,
    ),
]
TlsCertificateOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PEM", help="Certificate of this client, where the server asks.", rich_help_panel=SERVER
    ),
]
TlsKeyOption = Annotated[
    Path | None, typer.Option(metavar="PEM", help="Its private key.", rich_help_panel=SERVER)
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Limit for one request, its retries included. Default: 60 for a server, none here.",
        rich_help_panel=SERVER,
    ),
]
RetriesOption = Annotated[
    int,
    typer.Option(metavar="N", help="How often a transient failure is tried again.", rich_help_panel=SERVER),
]


def server_settings(
    server: str | None,
    api_key_file: Path | None,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    timeout: float | None,
    retries: int,
) -> dict[str, Any]:
    """The options above as arguments of `PipelineConfig`.

    Raises:
        typer.BadParameter: options of a server without a server.
        ConfigurationError: the key file cannot be read.
    """
    settings: dict[str, Any] = {"timeout_seconds": timeout, "retries": retries}
    files = {
        "--api-key-file": api_key_file,
        "--tls-ca": tls_ca,
        "--tls-certificate": tls_certificate,
        "--tls-key": tls_key,
    }
    if server is None:
        given = [name for name, file in files.items() if file is not None]
        if given:
            raise typer.BadParameter(f"{given[0]} is for a server; give --server too, or leave it out")
        return settings
    settings |= {
        "backend": server,
        "tls_root_certificates": tls_ca,
        "tls_client_certificate": tls_certificate,
        "tls_client_key": tls_key,
    }
    if api_key_file is not None:
        from autovoice.cli.serve import API_KEY_VARIABLE, read_key

        settings["api_key"] = read_key(api_key_file, API_KEY_VARIABLE)
    return settings
