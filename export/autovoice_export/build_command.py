"""``autovoice build``: the model repository from its sources, or TensorRT plans from the repository."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from autovoice_export.tensorrt.plans import PlanOptions

PLANS = "TensorRT"
EXPORT = "ONNX"


def build(
    context: typer.Context,
    engine: Annotated[
        Literal["onnx", "tensorrt"],
        typer.Option(help="Export the base voice to ONNX, or build plans of what was exported."),
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
        typer.Option(help="Pitch, phase, inputs and outputs stay FP32.", rich_help_panel=PLANS),
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
        typer.Option(metavar="NAME", help="Only this model; may be repeated.", rich_help_panel=PLANS),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build plans that are up to date too.", rich_help_panel=PLANS)
    ] = False,
) -> None:
    """Write the model repository, or TensorRT plans into it."""
    for option in context.command.params:
        other = PLANS if engine == "onnx" else EXPORT
        source = context.get_parameter_source(option.name or "")
        if getattr(option, "rich_help_panel", None) == other and source and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"{option.opts[0]} does not belong to --engine {engine}")
    if engine == "onnx":
        from autovoice_export.base.build import run_build
        from autovoice_export.config_types import Instances

        instances = Instances("auto", instance_count, intra_op_threads)
        run_build(checkpoint, repository, random=random, seed=seed, instances=instances)
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
