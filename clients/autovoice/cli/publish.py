"""`autovoice publish`: a model repository becomes a release."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autovoice.cli.options import RepositoryOption


def publish(
    repository: RepositoryOption = None,
    to: Annotated[
        str,
        typer.Option(
            metavar="PLACE", help="Folder of the releases, s3://bucket/prefix or oci://registry/name."
        ),
    ] = "releases",
    number: Annotated[
        int | None, typer.Option(metavar="N", help="Of the release. Default: the one after the newest.")
    ] = None,
    signing_key: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="Private key to sign the release with. Default: it is not signed."),
    ] = None,
    certificate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PEM",
            help="Certificate of that key; again for each one between it and the root that verifiers know.",
        ),
    ] = None,
) -> None:
    """Publish the model repository as a release: numbered, hashed, never changed again."""
    from rich.filesize import decimal

    from autovoice import PipelineConfig
    from autovoice.cli.releases import signing_key_of
    from autovoice.releases.stores import publish_to

    key = signing_key_of(signing_key, certificate)
    source = PipelineConfig(repository=repository).repository_path()
    release, address = publish_to(source, to, number, key=key)
    size = sum(file.size for file in release.files.values())
    print(f"published release {release.number} to {address}: {len(release.files)} files, {decimal(size)}")
