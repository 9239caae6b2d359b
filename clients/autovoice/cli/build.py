"""`autovoice build` and `autovoice import`, which need the build tools: the package autovoice_export."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core

from autovoice.cli.options import RepositoryOption

import_app = typer.Typer(
    help="Bring a voice of another project into the model repository.", no_args_is_help=True
)


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


@import_app.callback()
def _sources() -> None:
    """With a callback, the name of the source stays in the command even while there is one only."""


@import_app.command()
def rvc(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="VOICE.pth", help="RVC v1 or v2 checkpoint, or a ZIP archive with it and its index."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the voice: lower case letters, digits, _ and -.")],
    index: Annotated[Path | None, typer.Option(metavar="FILE", help="The voice's feature index.")] = None,
    contentvec: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="ContentVec: a folder with config.json and model.safetensors, or hubert_base.pt. Not needed "
            "where the repository has it.",
        ),
    ] = None,
    pitch: Annotated[Literal["yin", "rmvpe"], typer.Option(help="Pitch tracker.")] = "yin",
    rmvpe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="rmvpe.pt. Not needed where the repository has it."),
    ] = None,
    unvoiced: Annotated[
        Literal["zero", "interpolate"],
        typer.Option(
            help="F0 where there is none: as the voice was trained; interpolate for training of 2026."
        ),
    ] = "zero",
    speaker: Annotated[int, typer.Option(metavar="N", min=0, help="Default speaker.")] = 0,
    repository: RepositoryOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write a new version of a voice that exists.")
    ] = False,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Content encoder and synthesizer in float16, for GPUs.")
    ] = False,
) -> int:
    """Import a voice made with RVC, check it against PyTorch and report."""
    from autovoice import PipelineConfig

    result: int = build_tools("rvc.command").import_rvc(
        checkpoint=checkpoint,
        name=name,
        repository=PipelineConfig(repository=repository).repository_path(),
        index=index,
        contentvec=contentvec,
        pitch=pitch,
        rmvpe=rmvpe,
        unvoiced=unvoiced,
        speaker=speaker,
        replace=replace,
        half=fp16,
    )
    return result


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
