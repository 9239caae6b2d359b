"""The `autovoice` command: options, exit codes and error lines over the Python API.

Exit codes: 0 done, 1 the conversion itself failed, 2 the caller's mistake, 130 interrupted, 143 told to stop.
A failure is one line on stderr. Each command is a function in the module of its name, which imports the
engine when it runs, so that `--help` does not wait for ONNX Runtime.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from autovoice.cli.console import INTERRUPTED, report_error, report_warning

# Typer brings its own copy of click in newer versions and the package in older ones; BadParameter is the name
# it exports in both, and the base of all its usage errors is two steps up.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

COMMANDS = (
    "convert",
    "embed",
    "stream",
    "voices",
    "info",
    "serve",
    "publish",
    "gate",
    "verify",
    "rollout",
    "build",
    "import",
)


def make_app(command: str | None = None) -> typer.Typer:
    """The command line: all of it, or, which takes less time, one of `COMMANDS` alone."""
    app = typer.Typer(
        name="autovoice",
        help="Voice conversion: the words, melody and timing of one recording in the voice of another.",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_options)
    for name in (command,) if command in COMMANDS else COMMANDS:
        module = importlib.import_module(f"autovoice.cli.{'build' if name == 'import' else name}")
        if name == "import":
            app.add_typer(module.import_app, name="import")
        elif name == "rollout":
            app.add_typer(module.rollout_app, name="rollout")
        elif name == "build":
            app.command(cls=module.BuildCommand)(module.build)
        else:
            app.command()(getattr(module, name))
    return app


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


def empty_value(arguments: Sequence[str]) -> str | None:
    """What has an empty value, as `-o "$NAME"` has with a variable that is not set; None where nothing has.

    As a path it would be the working folder. What comes after `--` is for another program.
    """
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for position, argument in enumerate(ours):
        if not argument:
            before = ours[position - 1] if position else ""
            return before if before.startswith("-") else "an argument"
        if argument.startswith("--") and argument.endswith("="):
            return argument[:-1]
    return None


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    empty = empty_value(arguments)
    if empty is not None:
        report_error(f"{empty} is empty; give it a value, or leave it out")
        return 2
    try:
        app = make_app(arguments[0] if arguments else None)
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

        if isinstance(error, VoiceConversionError):
            report_error(error)
            return error.exit_code
        if isinstance(error, OSError) and error.strerror:  # no permission, a name too long, a full disk
            report_error(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
            return 2
        raise  # a defect of ours: its traceback is what a report needs
    if code == INTERRUPTED:
        report_error("interrupted; finished outputs are kept, the current one was not written")
    return code if isinstance(code, int) else 0


def main() -> None:
    """Entry point of the `autovoice` script."""
    from autovoice.errors import AudioFileWarning, PassthroughWarning

    # An orchestrator's request to stop must leave as little behind as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would explain a failed TLS handshake in its own way
    # The commands flag passed-through results themselves, in one line each.
    warnings.simplefilter("ignore", PassthroughWarning)
    python_shows = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, AudioFileWarning):
            report_warning(message)
        else:
            python_shows(message, category, *place, **more)

    warnings.showwarning = show
    # The name of a file need not be valid in the terminal's encoding; to say it must not fail.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))
