"""`autovoice verify`: whether a release is as it was published, and who signed it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    release: Annotated[
        str,
        typer.Argument(metavar="RELEASE", help="Its folder, s3://bucket/prefix/N or oci://registry/name:N."),
    ],
    public_key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Key that must have signed the release.")
    ] = None,
    certificate_chain: Annotated[
        list[Path] | None,
        typer.Option(metavar="PEM", help="Root certificate, by which the signer's must be vouched for."),
    ] = None,
) -> None:
    """Check every byte of a release, and its signature."""
    from rich.filesize import decimal

    from autovoice.cli.releases import trusted_key_of
    from autovoice.releases.release import GATE_FILENAME, SIGNATURE_FILENAME
    from autovoice.releases.stores import fetched
    from autovoice.releases.verifying import verify as verify_release

    key = trusted_key_of(public_key, certificate_chain)
    with fetched(release) as folder:
        found = verify_release(folder, key)
        if key is not None:
            signed = f"signed by {key}"
        elif (folder / SIGNATURE_FILENAME).exists():
            signed = "its signature was not checked: no key was given"
        else:
            signed = "not signed"
        gated = "with" if (folder / GATE_FILENAME).exists() else "without"
    size = decimal(sum(file.size for file in found.files.values()))
    print(
        f"release {found.number} is as it was published: {len(found.files)} files, {size}, {signed}, {gated} "
        "a report of the gate"
    )
