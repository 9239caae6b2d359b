"""Builds the model repository of the base voice: ``autovoice build``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from autovoice.errors import RepositoryError
from autovoice_export.base import plans, wiring
from autovoice_export.base.checkpoint import Checkpoint, load_checkpoint
from autovoice_export.config_files import to_message
from autovoice_export.config_types import Instances
from autovoice_export.onnx.composition import compose_stages
from autovoice_export.onnx.export import export_stage
from autovoice_export.onnx.graph import load_model, plugin_versions
from autovoice_export.onnx.verification import TOLERANCE, composition_cases, verify, verify_composition
from autovoice_export.parity import Agreement, Run, cases, errors_db, session_run
from autovoice_export.repository_writer import RepositoryWriter
from autovoice_export.tensorrt import parity, plan_config
from autovoice_export.tensorrt.plans import Job, Precision, half_model

_PROJECT = Path(__file__).resolve().parents[3]
DEFAULT_CHECKPOINT = _PROJECT / "training" / "checkpoints" / "base.safetensors"
DEFAULT_REPOSITORY = _PROJECT / "model_repository"


def build_repository(
    checkpoint: Checkpoint,
    root: Path,
    instances: Instances | None = None,
    progress: Progress | None = None,
    precision: Precision = "fp32",
) -> list[Agreement]:
    """Exports, verifies and writes all models of the base family.

    In FP16, pitch, phase, inputs, outputs and states stay FP32, and so do the models that move samples only.
    What it costs is kept in the metadata of each file.

    Args:
        checkpoint: trained or untrained stages.
        root: the repository; models of the same names in it are replaced, all at once, when all succeeded.
        instances: copies and threads of the models on a server.
        progress: bar to advance, one step for each stage.
        precision: of the files.

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
    agreements: list[Agreement] = []
    exact: dict[str, Run] = {}
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
            if precision == "fp16":
                exact[stage.name] = session_run(path)
                if stage.name in for_tensorrt:
                    errors = _halve(stage.name, path, for_tensorrt[stage.name], exact[stage.name])
                    agreements[-1] = replace(agreements[-1], half_errors_db=errors)
            if progress and task is not None:
                progress.advance(task)
        composition = wiring.converter(family)
        path = files[composition.name]
        compose_stages(composition, files, path, metadata)
        tolerance = parity.TOLERANCES["fp16"] if precision == "fp16" else TOLERANCE
        agreements.append(verify_composition(composition, files, path, tolerance=tolerance))
        if precision == "fp16":
            errors = errors_db(session_run(path), composition_cases(composition, exact, (100,), (1, 3)))
            _note_errors(path, onnx.load(path), errors)
            agreements[-1] = replace(agreements[-1], half_errors_db=errors)
        repository.check()
    return agreements


def _halve(name: str, path: Path, config: Any, exact: Run) -> dict[str, float]:
    """Makes an exported file compute in FP16 where it may; returns the error of each output."""
    model = load_model(path)
    converted, _ = half_model(Job(name, path, model, config, plugin_versions(model)), exact)
    # At lengths that half_model has not seen.
    feeds = itertools.islice(parity.example_feeds(model, plan_config.read_profiles(config)[1]), 2)
    expected = cases(feeds, exact, parity.states_of(model))
    errors = errors_db(session_run(converted.SerializeToString()), expected)
    _note_errors(path, converted, errors)
    return errors


def _note_errors(path: Path, model: onnx.ModelProto, errors: Mapping[str, float]) -> None:
    """Writes a model with what FP16 costs it in its metadata."""
    facts = {item.key: item.value for item in model.metadata_props}
    onnx.helper.set_model_props(model, {**facts, "precision": "fp16", "fp16_errors": _in_db(errors)})
    path.write_bytes(model.SerializeToString(deterministic=True))


def _in_db(errors: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} exact" if level == -math.inf else f"{name} {level:.1f} dB" for name, level in errors.items()
    )


def run_build(
    checkpoint: Path | None,
    repository: Path | None,
    *,
    random: bool,
    seed: int,
    instances: Instances,
    precision: Precision = "fp32",
) -> None:
    """Exports the base voice, writes the model repository and prints how well the files agree.

    Args:
        checkpoint: weights (safetensors); None for the checkout's.
        repository: folder of the models; None for the checkout's.
        random: uses untrained weights instead of a checkpoint.
        seed: of the untrained weights.
        instances: copies and threads of each model on a server.
        precision: of the files.

    Raises:
        VoiceConversionError: one line on what failed; the repository is as it was.
    """
    out = repository or DEFAULT_REPOSITORY
    console = Console(stderr=True)
    columns = TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    progress = Progress(*columns, console=console)
    try:
        weights = Checkpoint.untrained(seed) if random else load_checkpoint(checkpoint or DEFAULT_CHECKPOINT)
        agreements = build_repository(weights, out, instances, progress, precision)
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
    for agreement in agreements:
        if agreement.half_errors_db:
            errors = _in_db(agreement.half_errors_db)
            console.print(f"{agreement.model:20} in FP16: {errors}", highlight=False, soft_wrap=True)
    console.print(f"wrote {out}: {_megabytes(out):.1f} MB", highlight=False, soft_wrap=True)


def _megabytes(root: Path) -> float:
    return (
        sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6
    )
