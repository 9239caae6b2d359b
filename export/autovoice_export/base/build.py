"""Builds the model repository of the base voice: ``autovoice build``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from autovoice.errors import RepositoryError
from autovoice_export.base import plans, wiring
from autovoice_export.base.checkpoint import Checkpoint, load_checkpoint
from autovoice_export.config_files import to_message
from autovoice_export.config_types import Instances
from autovoice_export.onnx.composition import compose_stages
from autovoice_export.onnx.export import export_stage
from autovoice_export.onnx.verification import verify, verify_composition
from autovoice_export.parity import Agreement
from autovoice_export.repository_writer import RepositoryWriter
from autovoice_export.tensorrt import plan_config

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
        ExportError: a stage could not be exported.
        ParityError: a file behaves differently from its stage.
        RepositoryError: the folder cannot be written.
    """
    family = wiring.stages(checkpoint)
    source = checkpoint.sha256 or "untrained"
    metadata = {"family": wiring.PARAMETERS["family"], "checkpoint_sha256": source}
    agreements = []
    settings, stream = instances or Instances(), wiring.stream_of_stages()
    for_tensorrt = {stream.name: to_message(stream)} | {
        config.model.name: plan_config.to_message(config) for config in plans.plan_configs(family, settings)
    }
    with RepositoryWriter(root) as repository:
        task = progress.add_task("exporting", total=len(family)) if progress else None
        if progress:
            progress.start()  # only now: an error before has its line to itself
        files = {
            config.name: repository.add(config, tensorrt=for_tensorrt.get(config.name))
            for config in wiring.model_configs(family, settings)
        }
        for stage in family:
            if progress and task is not None:
                progress.update(task, description=stage.name)
            path = files[stage.name]
            export_stage(stage, path, metadata)
            if stage.state_size:
                repository.share_onnx(stage.name + wiring.STREAM_SUFFIX, stage.name)
            agreements.append(verify(stage, path))
            if progress and task is not None:
                progress.advance(task)
        composition = wiring.converter(family)
        path = files[composition.name]
        compose_stages(composition, files, path, metadata)
        agreements.append(verify_composition(composition, files, path))
        repository.check()
    return agreements


def run_build(
    checkpoint: Path | None,
    repository: Path | None,
    *,
    random: bool,
    seed: int,
    instances: Instances,
) -> None:
    """Exports the base voice, writes the model repository and prints how well the files agree.

    Args:
        checkpoint: weights (safetensors); None for the checkout's.
        repository: folder of the models; None for the checkout's.
        random: uses untrained weights instead of a checkpoint.
        seed: of the untrained weights.
        instances: copies and threads of each model on a server.

    Raises:
        VoiceConversionError: one line on what failed; the repository is as it was.
    """
    out = repository or DEFAULT_REPOSITORY
    console = Console(stderr=True)
    columns = TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    progress = Progress(*columns, console=console)
    try:
        weights = Checkpoint.untrained(seed) if random else load_checkpoint(checkpoint or DEFAULT_CHECKPOINT)
        agreements = build_repository(weights, out, instances, progress)
    except OSError as error:
        raise RepositoryError(f"{out} could not be built: {error}") from error
    finally:
        if progress.live.is_started:
            progress.stop()
    for agreement in agreements:
        console.print(
            f"{agreement.model:20} {agreement.runs:3} runs agree, worst {agreement.worst:6.1%} of "
            f"the tolerance ({agreement.worst_output})",
            highlight=False,
        )
    console.print(f"wrote {out}: {_megabytes(out):.1f} MB", highlight=False, soft_wrap=True)


def _megabytes(root: Path) -> float:
    return (
        sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6
    )
