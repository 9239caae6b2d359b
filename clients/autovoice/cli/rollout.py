"""`autovoice rollout`: from one release to the next, and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from autovoice.cli.console import make_table, print_table, shown

rollout_app = typer.Typer(
    help="Move the requests of `autovoice serve --rollout` from one release to the next, and back.",
    no_args_is_help=True,
)
FolderOption = Annotated[
    Path,
    typer.Option(
        "--rollout",
        metavar="DIR",
        envvar="AUTOVOICE_ROLLOUT",
        help="The rollout folder of `autovoice serve --rollout`.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]
_FOLDER = Path("rollout")


@rollout_app.command()
def promote(
    number: Annotated[int, typer.Argument(metavar="N", help="The release.")],
    folder: FolderOption = _FOLDER,
    canary: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Percent of the requests, step by step. Default: 1,10,50,100."),
    ] = None,
    hold: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long each step lasts: 60s, 5m. Default: 60s.")
    ] = None,
    shadow: Annotated[
        int | None,
        typer.Option(
            metavar="PERCENT",
            help="Before the first step, and as long as one, send a copy of so many requests to the release; "
            "its answers go to nobody. Default: 0.",
        ),
    ] = None,
    require_gate: Annotated[
        bool | None,
        typer.Option(
            "--require-gate/--no-require-gate",
            help="Refuse a release that no gate let pass. Default: where the promoted release passed one.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Give release N more and more of the requests, and in the end all of them.

    A promotion that was interrupted goes on where it was. Ctrl-C stops it, and the release keeps its share.
    Where the service runs with --in-place, it has all at once; --canary, --hold and --shadow are then not
    available.
    """
    from autovoice.rollout import promotion
    from autovoice.rollout.state import HOLD_SECONDS, STEPS, RolloutFolder

    plan = None
    if (canary, hold, shadow) != (None, None, None):
        plan = promotion.Plan(
            STEPS if canary is None else promotion.parse_steps(canary),
            HOLD_SECONDS if hold is None else promotion.parse_duration(hold),
            shadow or 0,
        )
    promotion.promote(RolloutFolder(folder), number, plan, needs_gate=require_gate, report=_report)
    return 0


@rollout_app.command()
def rollback(
    number: Annotated[
        int | None,
        typer.Argument(
            metavar="[M]",
            help="The release to go back to. Default: the promoted one while another is on trial, else the "
            "one promoted before it.",
            show_default=False,
        ),
    ] = None,
    folder: FolderOption = _FOLDER,
) -> int:
    """End the trial of a release, or go back to a former one."""
    from autovoice.rollout import promotion
    from autovoice.rollout.state import RolloutFolder

    promotion.roll_back(RolloutFolder(folder), number, report=_report)
    return 0


@rollout_app.command()
def status(folder: FolderOption = _FOLDER, as_json: JsonOption = False) -> int:
    """Which release has which requests, and which servers run."""
    from autovoice.rollout.state import RolloutFolder
    from autovoice.rollout.status import read_status

    found = read_status(RolloutFolder(folder))
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return 0
    for line in found.lines():
        print(shown(line))
    table = make_table("release", "requests", "server", "pid", right=("requests", "pid"))
    for number, entry in sorted(found.servers.items()):
        is_kept = found.mode == "in-place" and number not in (found.stable, found.candidate)
        waiting = "loaded" if is_kept else "starting"
        state = "draining" if entry.draining else "ready" if entry.ready else waiting
        table.add_row(str(number), f"{found.shares.get(number, 0)} %", state, str(entry.pid or ""))
    if found.servers:
        print_table(table)
    return 0


@rollout_app.command()
def history(folder: FolderOption = _FOLDER, as_json: JsonOption = False) -> int:
    """What happened, and why."""
    from autovoice.rollout.state import RolloutFolder

    events = RolloutFolder(folder).history()
    if as_json:
        print(json.dumps([asdict(event) for event in events], indent=1))
        return 0
    table = make_table("time", "release", "what", "why")
    for event in events:
        table.add_row(
            event.time[:19],
            "" if event.release is None else str(event.release),
            event.event,
            shown(event.reason),
        )
    print_table(table)
    return 0


def _report(line: str) -> None:
    print(shown(line), flush=True)
