"""The `autovoice` command: options, exit codes and error lines over the Python API.

Exit codes: 0 done, 1 the conversion itself failed, 2 the caller's mistake, 130 interrupted, 143 told to stop.
A failure is one line on stderr. What a command does lives in `cli_<command>.py`, imported when it runs, so
that `--help` does not wait for ONNX Runtime.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from autovoice.cli.build import BuildCommand, build
from autovoice.cli.console import report_error
from autovoice.cli.conversions import convert, embed, stream
from autovoice.cli.import_voice import app as import_app
from autovoice.cli.options import JsonOption, RepositoryOption
from autovoice.cli.serve import serve

# Typer brings its own copy of click in newer versions and the package in older ones; BadParameter is the name
# it exports in both, and the base of all its usage errors is two steps up.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="autovoice",
    help="Voice conversion: the words, melody and timing of one recording in the voice of another.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


for _command in (convert, embed, stream):
    app.command()(_command)


@app.command()
def voices(
    repository: RepositoryOption = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="List those of a server: grpc://host:port or http://host:port. Its key: $AUTOVOICE_API_KEY.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """List the voices of the model repository or of a server."""
    from autovoice.cli.voices import show_voices

    return show_voices(repository, server, as_json=as_json)


@app.command()
def info(
    repository: RepositoryOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Load every model and check it against its configuration.")
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Show a server instead: http://host:port. Its key: $AUTOVOICE_API_KEY."
        ),
    ] = None,
    ready: Annotated[
        bool, typer.Option("--ready", help="With --server: only check that it is ready (exit code 0 or 1).")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Show the model repository, engines, versions and devices, or what a server does and how fast."""
    if server is not None:
        from autovoice.cli.server_info import check_ready, show_server

        return check_ready(server) if ready else show_server(server, as_json=as_json)
    from autovoice.cli.info import show_info

    return show_info(repository, check=check, as_json=as_json)


app.add_typer(import_app, name="import")
app.command()(serve)
app.command(cls=BuildCommand)(build)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from autovoice import __version__

        print(f"autovoice {__version__}")
        raise typer.Exit


def report_usage_error(error: Any) -> None:
    """Write what is wrong with the options and how to see the right ones."""
    message = error.format_message().rstrip(".")
    if message:  # it is empty after a bare `autovoice`, which has printed the help
        report_error(f"{message}; see {error.ctx.command_path} --help" if error.ctx else message)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        code = app(list(arguments), prog_name="autovoice", standalone_mode=False)
        sys.stdout.flush()
    except _UsageError as error:
        report_usage_error(error)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED  # what newer versions of Typer return
    except BrokenPipeError:  # the reader of stdout left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from autovoice.errors import VoiceConversionError

        if not isinstance(error, VoiceConversionError):
            raise  # a defect of ours: its traceback is what a report needs
        report_error(error)
        return error.exit_code
    if code == INTERRUPTED:
        report_error("interrupted; finished outputs are kept, the current one was not written")
    return code if isinstance(code, int) else 0


def main() -> None:
    """Entry point of the `autovoice` script."""
    from autovoice.errors import PassthroughWarning

    # An orchestrator's request to stop must leave as little behind as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # The commands flag passed-through results themselves, in one line each.
    warnings.simplefilter("ignore", PassthroughWarning)
    sys.exit(run(sys.argv[1:]))
