"""Builds the plans of a repository: one for each model that has a ``configs/tensorrt.pbtxt``."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from autovoice.atomic import atomic_path
from autovoice.errors import RepositoryError
from autovoice.repository.plans import (
    CONFIG_NAME,
    Gpu,
    PlanManifest,
    check_plan,
    find_gpus,
    find_plugin_library,
    manifest_path,
    plan_filename,
    profile_texts,
    sha256,
)
from autovoice.repository.reader import ModelRepository
from autovoice_export.build_errors import PlanError
from autovoice_export.onnx.graph import holds_half, load_model, plugin_versions, without_functions
from autovoice_export.onnx.half import measure_ranges, to_half
from autovoice_export.parity import Run, cases, compare, session_run
from autovoice_export.tensorrt import load, parity, runtime
from autovoice_export.tensorrt.graph_rules import check_model
from autovoice_export.tensorrt.plan_config import read_plan_config, read_profiles
from autovoice_export.tensorrt.plan_config_check import models_for_plans
from autovoice_export.tensorrt.runtime import Compatibility, EngineOptions, Report

Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True)
class PlanOptions:
    """What is built, and how.

    Attributes:
        precision: of everything but pitch, phase, inputs and outputs.
        hardware_compatibility: see `EngineOptions`.
        plugins: library or folder; None for what the environment says.
        timing_cache: see `EngineOptions`; None for a file in the repository.
        workspace_mb: see `EngineOptions`.
        models: names; all that have a configuration for TensorRT if left empty.
        force: builds plans that are up to date too.
    """

    precision: Precision = "fp32"
    hardware_compatibility: Compatibility = "none"
    plugins: Path | None = None
    timing_cache: Path | None = None
    workspace_mb: int | None = None
    models: tuple[str, ...] = ()
    force: bool = False


@dataclass(frozen=True)
class Machine:
    """What plans are built by and for.

    Attributes:
        gpu: that is to run them.
        tensorrt: version of TensorRT.
        library: with the plugins; None where no model needs one.
    """

    gpu: Gpu
    tensorrt: str
    library: Path | None


@dataclass(frozen=True)
class Job:
    """One plan to build, with everything known that needs no GPU.

    Attributes:
        name: of the model.
        onnx_path: its file.
        model: the file's content.
        config: the ``ModelConfig`` for TensorRT.
        plugins: version of the plugin of each custom op.
    """

    name: str
    onnx_path: Path
    model: onnx.ModelProto
    config: Any
    plugins: Mapping[str, str]


def plan_jobs(repository: ModelRepository, names: Sequence[str] = ()) -> list[Job]:
    """Reads and checks all that is to be built, before anything is.

    Args:
        repository: the models.
        names: of models; empty for all that have a configuration for TensorRT.

    Raises:
        PlanError: a model has no configuration for TensorRT, or a file that its parser would not take.
        RepositoryError: a file cannot be read.
    """
    known = models_for_plans(repository)
    if unknown := sorted(set(names) - set(known)):
        raise PlanError(
            f"{unknown[0]} has no configs/{CONFIG_NAME}.pbtxt; those that have: {', '.join(known)}"
        )
    jobs = []
    for name in names or known:
        spec = repository.spec(name)
        if spec.model_file is None:
            raise PlanError(f"{name} has no ONNX file to build from")
        if violations := check_model(spec.model_file):
            raise PlanError(str(violations[0]))
        model = load_model(spec.model_file)
        config = read_plan_config(repository.path / name)
        jobs.append(Job(name, spec.model_file, model, config, plugin_versions(model)))
    if not jobs:
        raise PlanError(f"{repository.path} holds no configs/{CONFIG_NAME}.pbtxt: export it again")
    return jobs


def is_current(repository: ModelRepository, job: Job, options: PlanOptions, machine: Machine) -> bool:
    """Whether a model's plan exists and would come out the same."""
    try:
        manifest = check_plan(repository, job.name, job.config, machine.gpu, machine.tensorrt)
    except RepositoryError:
        return False
    return (
        manifest.precision == options.precision
        and manifest.hardware_compatibility == options.hardware_compatibility
        and manifest.plugins == job.plugins
        and manifest.plugin_library_sha256 == _library_digest(job, machine.library)
    )


def build_plans(
    root: Path, options: PlanOptions, progress: Progress
) -> list[tuple[str, PlanManifest | None]]:
    """Builds what is missing or stale, for the GPU of this machine.

    Each plan is loaded in another process and compared with ONNX Runtime before it takes its place; a failure
    leaves the plans there were.

    Returns:
        Each model with the manifest of its new plan; None where the present plan was up to date.

    Raises:
        PlanError: a plan cannot be built or trusted.
        VoiceConversionError: no such repository, no GPU, no plugin library.
    """
    repository = ModelRepository(root)
    jobs = plan_jobs(repository, options.models)
    needs_library = any(job.plugins for job in jobs)
    library = find_plugin_library(options.plugins) if needs_library else None
    gpu = _only_kind_of_gpu(find_gpus())
    machine = Machine(gpu, str(runtime.import_tensorrt().__version__), library)
    wanted = {op: version for job in jobs for op, version in job.plugins.items()}
    runtime.load_plugins(library, wanted)
    cache = options.timing_cache or repository.path.absolute() / f"{machine.tensorrt}.timing_cache"
    engine_options = EngineOptions(options.hardware_compatibility, cache, options.workspace_mb)
    done: list[tuple[str, PlanManifest | None]] = []
    for job in jobs:
        with progress.model(job.name) as report:
            if not options.force and is_current(repository, job, options, machine):
                done.append((job.name, None))
                continue
            done.append((job.name, _build(job, options, engine_options, machine, report)))
    return done


class Progress:
    """Shows how far a build is; this one shows nothing."""

    @contextmanager
    def model(self, name: str) -> Iterator[Report]:
        """Covers the work on one model."""
        yield lambda phase, share: None


def _only_kind_of_gpu(gpus: Sequence[Gpu]) -> Gpu:
    if len({gpu.compute_capability for gpu in gpus}) > 1:
        kinds = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in gpus)
        raise PlanError(
            f"several kinds of GPU are here, {kinds}, and TensorRT would build for one of them; show it one "
            "kind at a time: docker run --gpus device=0"
        )
    return gpus[0]


def _build(
    job: Job,
    options: PlanOptions,
    engine_options: EngineOptions,
    machine: Machine,
    report: Report,
) -> PlanManifest:
    profiles = read_profiles(job.config)
    reference = session_run(job.onnx_path)
    model, conversion = job.model, dict[str, float]()
    if options.precision == "fp16":
        report("converting to FP16", 0.0)
        model, conversion = half_model(job, reference)
    # A file may have been exported in FP16, which no two engines round alike.
    tolerance = parity.TOLERANCES["fp16" if holds_half(model) else "fp32"]
    engine = runtime.build_engine(
        without_functions(model).SerializeToString(), profiles, engine_options, report
    ).content
    path = _plan_path(job, machine.gpu)
    with tempfile.TemporaryDirectory(prefix="autovoice-plan-") as folder:
        candidate = Path(folder, path.name)
        candidate.write_bytes(engine)
        report("loading it in another process", 0.0)
        load.try_loading(candidate, machine.library, job.plugins)
        report("comparing it with ONNX Runtime", 0.0)
        deviation = parity.compare_plan(candidate, job.model, profiles, reference, tolerance)
    manifest = PlanManifest(
        model=job.name,
        onnx_sha256=sha256(job.onnx_path),
        plan_sha256=hashlib.sha256(engine).hexdigest(),
        precision=options.precision,
        tensorrt=machine.tensorrt,
        cuda=runtime.cuda_version(),
        plugins=dict(job.plugins),
        plugin_library_sha256=_library_digest(job, machine.library),
        gpu=machine.gpu,
        hardware_compatibility=options.hardware_compatibility,
        profiles=profile_texts(job.config),
        deviation=deviation,
        conversion=conversion,
    )
    publish(engine, path, manifest)
    _link_compatible(path, job.config, options.hardware_compatibility)
    return manifest


def half_model(job: Job, reference: Run) -> tuple[onnx.ModelProto, dict[str, float]]:
    """The FP16 form of a model, held to its original in ONNX Runtime.

    Returns:
        The model, and the worst deviation of each output as a share of what FP16 may cost.

    Raises:
        ExportError: the model cannot be converted.
        ParityError: it differs by more than FP16 should.
    """
    states = parity.states_of(job.model)
    feeds = parity.example_feeds(job.model, read_profiles(job.config)[0])
    expected = list(cases(feeds, reference, states))
    ranges = measure_ranges(job.model, [feed for feed, _ in expected])
    converted = to_half(job.model, ranges, (*states, *states.values()))
    run = session_run(converted.SerializeToString())
    found = compare(f"{job.name} in FP16", run, expected, parity.TOLERANCES["fp16"], "the file in FP32")
    return converted, dict(found.shares)


def publish(plan: bytes, path: Path, manifest: PlanManifest) -> None:
    """Puts a plan and its manifest in their places.

    A crash between the two leaves a plan that its manifest does not describe, which `check_plan` refuses.

    Raises:
        OutputError: the disk refused.
    """
    if path.is_symlink():
        path.unlink()  # a link to a plan for several GPUs, which stays
    with atomic_path(path) as partial:
        partial.write_bytes(plan)
    with atomic_path(manifest_path(path)) as partial:
        partial.write_text(manifest.dumps(), encoding="utf-8")


def _link_compatible(path: Path, config: Any, compatibility: Compatibility) -> None:
    """Gives a plan that other GPUs may run the names under which a server looks for theirs."""
    if compatibility != "ampere_plus":
        return
    for capability, filename in config.cc_model_filenames.items():
        link = path.with_name(filename)
        if float(capability) >= 8.0 and link != path and (link.is_symlink() or not link.exists()):
            link.unlink(missing_ok=True)
            link.symlink_to(path.name)


def _plan_path(job: Job, gpu: Gpu) -> Path:
    # The model's own folder: streams link to the ONNX file of another model, but have a plan of their own.
    folder = job.onnx_path.parent
    capability = gpu.compute_capability
    return folder / str(job.config.cc_model_filenames.get(capability, plan_filename(capability)))


def _library_digest(job: Job, library: Path | None) -> str:
    return sha256(library) if library is not None and job.plugins else ""
