"""``autovoice build``: the model repository from its sources, and TensorRT plans or engines of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from autovoice_export.tensorrt.engines import EngineBuildOptions
    from autovoice_export.tensorrt.plans import PlanOptions

PLANS = "TensorRT"
ENGINES = "TensorRT for RTX"
BOTH = "TensorRT and TensorRT for RTX"
EXPORT = "ONNX"
PANELS = {"onnx": {EXPORT}, "tensorrt": {PLANS, BOTH}, "tensorrt-rtx": {ENGINES, BOTH}}
"""Panels of the options that belong to each engine."""


def build(
    context: typer.Context,
    engine: Annotated[
        Literal["onnx", "tensorrt", "tensorrt-rtx"],
        typer.Option(help="Export the base voice to ONNX, or build plans or engines of what was exported."),
    ] = "onnx",
    repository: Annotated[
        Path | None,
        typer.Option(
            "--repository", "--out", metavar="DIR", help="Model repository. Default: the checkout's."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights (safetensors).", rich_help_panel=EXPORT)
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="Untrained weights, no checkpoint.", rich_help_panel=EXPORT)
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the untrained weights.", rich_help_panel=EXPORT)] = 0,
    instance_count: Annotated[
        int, typer.Option(min=1, help="Copies of each model on a server.", rich_help_panel=EXPORT)
    ] = 1,
    intra_op_threads: Annotated[
        int,
        typer.Option(min=0, help="ONNX Runtime threads of each copy; 0 for all.", rich_help_panel=EXPORT),
    ] = 1,
    precision: Annotated[
        Literal["fp32", "fp16"],
        typer.Option(help="Pitch, phase, inputs, outputs and states stay FP32."),
    ] = "fp32",
    plugins: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Plugin library, or its folder. Default: $AUTOVOICE_PLUGINS.",
            rich_help_panel=PLANS,
        ),
    ] = None,
    hardware_compatibility: Annotated[
        Literal["none", "ampere_plus", "same_compute_capability"],
        typer.Option(help="Other GPUs that may run the plans, at some cost in speed.", rich_help_panel=PLANS),
    ] = "none",
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Measured kernels. Default: in the repository.", rich_help_panel=PLANS
        ),
    ] = None,
    workspace_mb: Annotated[
        int | None,
        typer.Option(min=1, metavar="MB", help="GPU memory to try kernels in.", rich_help_panel=PLANS),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this model; may be repeated.", rich_help_panel=BOTH),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build what is up to date too.", rich_help_panel=BOTH)
    ] = False,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Takes the engines.", rich_help_panel=ENGINES)
    ] = Path("engines"),
    compute_capability: Annotated[
        str,
        typer.Option(metavar="LIST", help="Of the cards, as 8.9 or 8.6,8.9,12.0.", rich_help_panel=ENGINES),
    ] = "8.6,8.9,12.0",
) -> None:
    """Write the model repository, TensorRT plans into it, or engines of TensorRT for RTX of it."""
    others = {EXPORT, PLANS, BOTH, ENGINES} - PANELS[engine]
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if getattr(option, "rich_help_panel", None) in others and source and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"{option.opts[0]} does not belong to --engine {engine}")
    if engine == "onnx":
        from autovoice_export.base.build import run_build
        from autovoice_export.config_types import Instances

        instances = Instances("auto", instance_count, intra_op_threads)
        run_build(checkpoint, repository, random=random, seed=seed, instances=instances, precision=precision)
        return
    if engine == "tensorrt-rtx":
        from autovoice_export.tensorrt.engines import EngineBuildOptions

        capabilities = tuple(item.strip() for item in compute_capability.split(","))
        _build_engines(
            repository, output, EngineBuildOptions(capabilities, precision, tuple(model or ()), force)
        )
        return
    from autovoice_export.tensorrt.plans import PlanOptions

    options = PlanOptions(
        precision=precision,
        hardware_compatibility=hardware_compatibility,
        plugins=plugins,
        timing_cache=timing_cache,
        workspace_mb=workspace_mb,
        models=tuple(model or ()),
        force=force,
    )
    _build_plans(repository, options)


def _build_plans(repository: Path | None, options: PlanOptions) -> None:
    from rich.console import Console

    from autovoice.config import PipelineConfig
    from autovoice.errors import RepositoryError
    from autovoice_export.repository_writer import finish_interrupted_change
    from autovoice_export.tensorrt.plans import build_plans

    console = Console(stderr=True)
    root = PipelineConfig(repository=repository).repository_path()
    try:
        finish_interrupted_change(root)
        with _shown_progress(console) as progress:
            done = build_plans(root, options, progress)
    except OSError as error:
        raise RepositoryError(f"plans of {root} could not be written: {error}") from error
    for name, manifest in done:
        if manifest is None:
            console.print(f"{name:24} up to date", highlight=False)
            continue
        worst = max(manifest.deviation, key=lambda output: manifest.deviation[output], default="")
        share = f", worst {manifest.deviation[worst]:.1%} of the tolerance ({worst})" if worst else ""
        console.print(
            f"{name:24} {manifest.precision} for {manifest.gpu.name}{share}", highlight=False, soft_wrap=True
        )


def _build_engines(repository: Path | None, folder: Path, options: EngineBuildOptions) -> None:
    from rich.console import Console

    from autovoice.config import PipelineConfig
    from autovoice.errors import OutputError
    from autovoice_export.tensorrt.engines import build_engines, refused

    console = Console(stderr=True)
    root = PipelineConfig(repository=repository).repository_path()
    try:
        with _shown_progress(console) as progress:
            results = build_engines(root, folder, options, progress)
    except OSError as error:
        raise OutputError(f"engines could not be written to {folder}: {error}") from error
    heading = f"{'model':24} {'time':>10} {'file':>9} {'layers':>6} {'weights':>9} {'activations':>11}"
    console.print(heading, highlight=False, soft_wrap=True)
    for result in results:
        if made := result.manifest:
            took = f"{made.seconds:.1f} s" if result.built else "up to date"
            sizes = [
                f"{size / 1e6:.1f} MB" for size in (result.size, made.weights_bytes, made.activation_bytes)
            ]
            console.print(
                f"{result.model:24} {took:>10} {sizes[0]:>9} {made.layers:6} {sizes[1]:>9} {sizes[2]:>11} "
                f"{made.precision}",
                highlight=False,
                soft_wrap=True,
            )
    for result in results:
        if result.refusal:
            console.print(f"{result.model}: {result.refusal}", highlight=False, markup=False, soft_wrap=True)
    if failure := refused(results):
        raise failure


@contextmanager
def _shown_progress(console: Any) -> Iterator[Any]:
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from autovoice_export.tensorrt.plans import Progress
    from autovoice_export.tensorrt.runtime import Report

    phase_column = TextColumn("{task.fields[phase]}")
    columns = TextColumn("{task.description:24}"), BarColumn(), TimeElapsedColumn(), phase_column
    bars = Bars(*columns, console=console)

    class Shown(Progress):
        @contextmanager
        def model(self, name: str) -> Iterator[Report]:
            bars.start()  # only now: an error before has its line to itself
            task = bars.add_task(name, total=1.0, phase="")

            def report(phase: str, share: float) -> None:
                bars.update(task, completed=share, phase=phase)

            yield report
            bars.update(task, completed=1.0, phase="")

    try:
        yield Shown()
    finally:
        if bars.live.is_started:
            bars.stop()
