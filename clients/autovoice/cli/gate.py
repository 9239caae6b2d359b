"""`autovoice gate`: try a release before anything serves it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autovoice.cli.console import load_engine, make_table, print_table, shown
from autovoice.cli.options import JsonOption

if TYPE_CHECKING:
    from autovoice.gate.report import Check

_KEYS = "Signatures"
_STYLES = {"passed": "green", "refused": "bold red", "left out": "dim", "not run": "dim"}


def gate(
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="The release to try.")],
    against: Annotated[
        int | None,
        typer.Option(
            metavar="M", min=1, help="Release to compare with. Default: the parent of N, if it is there."
        ),
    ] = None,
    releases: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the releases.")] = Path(
        "releases"
    ),
    suite: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Recordings to convert (source*) and of target voices (target*). Default: those that come "
            "with AutoVoice.",
        ),
    ] = None,
    judges: Annotated[
        bool,
        typer.Option(
            "--judges/--no-judges", help="Ask the judges of words, identity, melody and naturalness."
        ),
    ] = True,
    loads: Annotated[int, typer.Option(metavar="COUNT", min=1, help="How often the release is loaded.")] = 20,
    rounds: Annotated[
        int, typer.Option(metavar="COUNT", min=1, help="Requests of each kind that are timed.")
    ] = 100,
    requests: Annotated[
        int, typer.Option(metavar="COUNT", min=10, help="Requests over which memory has to stay flat.")
    ] = 100,
    public_key: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="Key that must have signed the release.", rich_help_panel=_KEYS),
    ] = None,
    certificate_chain: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PEM",
            help="Root certificate, by which the signer's must be vouched for.",
            rich_help_panel=_KEYS,
        ),
    ] = None,
    signing_key: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="Private key that signs the report.", rich_help_panel=_KEYS),
    ] = None,
    certificate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PEM",
            help="Certificate of the signing key, then those up to the root's.",
            rich_help_panel=_KEYS,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Try a release in a server of its own and keep the report in it; exit code 1 refuses it."""
    from contextlib import ExitStack

    from autovoice.cli.releases import signing_key_of, trusted_key_of
    from autovoice.errors import ConfigurationError
    from autovoice.releases.release import read_release

    load_engine()
    from autovoice.gate.gate import GateOptions, run_gate
    from autovoice.gate.report import write_report
    from autovoice.gate.serving import ServedRelease
    from autovoice.gate.suite import read_suite

    signer = signing_key_of(signing_key, certificate)
    options = GateOptions(trusted_key_of(public_key, certificate_chain), judges, loads, rounds, requests)
    path = releases / str(number)
    parent = read_release(path).parent
    if against is None and parent is not None and (releases / str(parent)).is_dir():
        against = parent
    if against == number:
        raise ConfigurationError(
            f"release {number} cannot be compared with itself; give another by --against"
        )
    recordings = read_suite(suite)
    show = _show if sys.stderr.isatty() else _ignore
    with ExitStack() as stack:
        other = None
        if against is not None:
            other = stack.enter_context(ServedRelease(releases / str(against)))
        report = run_gate(path, other, recordings, options, show)
    content = report.to_dict()
    write_report(content, path, signer)
    if as_json:
        print(json.dumps(content, indent=2))
    else:
        _print(report.checks)
        verdict = "passed" if report.passed else "is refused"
        compared = f", compared with {against}" if against is not None else ""
        judged = "" if report.judges else ", without the judges"
        print(f"\nrelease {number} {verdict}{compared}{judged}")
    return 0 if report.passed else 1


def _show(check: Check) -> None:
    """Say on a terminal what was found, as long as the table is not there."""
    print(f"{check.name}: {check.verdict}", file=sys.stderr, flush=True)


def _ignore(check: Check) -> None:
    """Where nobody watches, the table is enough."""


def _print(checks: Sequence[Check]) -> None:
    from rich.text import Text

    table = make_table("check", "verdict", "figure", "limit", "reason")
    for check in checks:
        verdict = Text(check.verdict, style=_STYLES[check.verdict])
        table.add_row(check.name, verdict, *map(shown, (check.figure, check.limit, check.reason)))
    print_table(table)
