"""`autovoice build`: where the runtime ends and the build tools begin."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import typer
import typer.core


def build() -> None:
    """Write the model repository, or TensorRT plans into it (needs the build tools)."""
    raise AssertionError("BuildCommand runs the build tools' own command")


class BuildCommand(typer.core.TyperCommand):
    """Stands for the command of the build tools, which the runtime does without, until somebody calls it."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """The context of the tools' own command, with its options and its help.

        Raises:
            ConfigurationError: the tools are not installed.
        """
        tools = build_tools("build_command")
        app = typer.Typer(add_completion=False)
        settings = {"help_option_names": ["-h", "--help"]}
        app.command(name="build", context_settings=settings)(_naming_what_is_missing(tools.build))
        return typer.main.get_command(app).make_context(info_name, args, *rest, **extra)


def build_tools(module: str) -> Any:
    """A module of the build tools.

    Raises:
        ConfigurationError: they, or what they need, are not installed.
    """
    try:
        return importlib.import_module(f"autovoice_export.{module}")
    except ImportError as error:
        raise _missing(error) from error


def _naming_what_is_missing(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except ModuleNotFoundError as error:
            raise _missing(error) from error

    return run


def _missing(error: ImportError) -> Exception:
    from autovoice.errors import ConfigurationError

    return ConfigurationError(
        f"the build tools are not installed ({error}); run `pip install 'autovoice[export]'`"
    )
