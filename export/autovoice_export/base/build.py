"""Builds the model repository of the base voice: ``python -m autovoice_export.base.build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from autovoice_export.base import plans, wiring
from autovoice_export.base.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from autovoice_export.model_config import Instances
from autovoice_export.onnx.composition import compose_stages
from autovoice_export.onnx.export import ExportError, export_stage
from autovoice_export.onnx.verification import Agreement, verify, verify_composition
from autovoice_export.repository_writer import RepositoryError, RepositoryWriter, check_repository
from autovoice_export.tensorrt import wire
from autovoice_export.tensorrt.validation import check_engine_configs
from autovoice_export.wire_config import to_wire

_PROJECT = Path(__file__).resolve().parents[3]
DEFAULT_CHECKPOINT = _PROJECT / "training" / "checkpoints" / "base.safetensors"
DEFAULT_REPOSITORY = _PROJECT / "model_repository"


def build_repository(
    checkpoint: Checkpoint, root: Path, instances: Instances | None = None, progress: Progress | None = None
) -> list[Agreement]:
    """Exports, verifies and writes all models of the base family.

    Args:
        checkpoint: trained or untrained stages.
        root: the repository; models of the same names in it are replaced, all at once, when all succeeded.
        instances: copies and threads of the models on a server.
        progress: bar to advance, one step for each stage.

    Returns:
        One agreement of ONNX Runtime with PyTorch for each stage, then that of the stages in one file with
        their own files.

    Raises:
        ExportError: a stage could not be exported or its file behaves differently.
        RepositoryError: the folder cannot be written.
    """
    family = wiring.stages(checkpoint)
    source = checkpoint.sha256 or "untrained"
    metadata = {"family": wiring.PARAMETERS["family"], "checkpoint_sha256": source}
    agreements = []
    task = progress.add_task("exporting", total=len(family)) if progress else None
    with RepositoryWriter(root) as repository:
        for config in wiring.model_configs(family, instances or Instances()):
            repository.add_config(config)
        for engine in plans.engine_configs(family, instances or Instances()):
            repository.add_alternative(engine.model.name, wire.CONFIG_NAME, wire.to_wire(engine))
        stream = wiring.stream_of_stages()
        repository.add_alternative(stream.name, wire.CONFIG_NAME, to_wire(stream))
        for stage in family:
            if progress and task is not None:
                progress.update(task, description=stage.name)
            path = repository.onnx_path(stage.name)
            export_stage(stage, path, metadata)
            if stage.state_size:
                repository.share_onnx(stage.name + wiring.STREAM_SUFFIX, stage.name)
            agreements.append(verify(stage, path))
            if progress and task is not None:
                progress.advance(task)
        composition = wiring.converter(family)
        files = {stage.name: repository.onnx_path(stage.name) for stage in family}
        path = repository.onnx_path(composition.name)
        compose_stages(composition, files, path, metadata)
        agreements.append(verify_composition(composition, files, path))
        check_repository(repository.partial)
        check_engine_configs(repository.partial)
    return agreements


def main(
    checkpoint: Annotated[
        Path, typer.Option(help="Weights of content encoder, synthesizer and target pitch (safetensors).")
    ] = DEFAULT_CHECKPOINT,
    out: Annotated[Path, typer.Option(help="Folder of the model repository.")] = DEFAULT_REPOSITORY,
    random: Annotated[bool, typer.Option("--random", help="Use untrained weights, no checkpoint.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the untrained weights.")] = 0,
    instance_count: Annotated[int, typer.Option(min=1, help="Copies of each model on a server.")] = 1,
    intra_op_threads: Annotated[
        int, typer.Option(min=0, help="ONNX Runtime threads of each copy; 0 for all cores.")
    ] = 1,
) -> None:
    """Exports the base voice to ONNX, checks every file against PyTorch, and writes the model repository."""
    console = Console(stderr=True)
    try:
        weights = Checkpoint.untrained(seed) if random else load_checkpoint(checkpoint)
        instances = Instances("auto", instance_count, intra_op_threads)
        columns = TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console) as progress:
            agreements = build_repository(weights, out, instances, progress)
    except (CheckpointError, ExportError, RepositoryError, OSError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    for agreement in agreements:
        console.print(
            f"{agreement.stage:20} {agreement.runs:3} runs agree, worst {agreement.worst:6.1%} of "
            f"the tolerance ({agreement.worst_tensor})",
            highlight=False,
        )
    console.print(f"wrote {out}: {_megabytes(out):.1f} MB", highlight=False, soft_wrap=True)


def _megabytes(root: Path) -> float:
    return (
        sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6
    )


if __name__ == "__main__":
    typer.run(main)
