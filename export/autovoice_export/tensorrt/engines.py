"""Engines of TensorRT for RTX: one for each model of a repository, built with or without a GPU.

They are for programs that bring the engines with them, and they tell whether a voice will run on a card.
Custom ops are expanded into standard ones: TensorRT for RTX has no plugins.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from autovoice.atomic import atomic_path
from autovoice.errors import VoiceConversionError
from autovoice.repository.model_config import ModelSpec, read_config
from autovoice.repository.plans import sha256
from autovoice.repository.reader import ModelRepository
from autovoice_export.build_errors import PlanError
from autovoice_export.onnx.graph import element_types, expanded, load_model
from autovoice_export.parity import session_run
from autovoice_export.stage import Axis, StageTensor
from autovoice_export.tensorrt import runtime, turing
from autovoice_export.tensorrt.buckets import AXIS_RATES, REQUESTS, STREAMS, profiles
from autovoice_export.tensorrt.graph_rules import require_exact_types
from autovoice_export.tensorrt.plan_config import Profile, config_path, dump_profile, read_profiles
from autovoice_export.tensorrt.plans import Job, Precision, Progress, half_model

COMPUTE_CAPABILITIES = ("8.6", "8.9", "12.0")
"""GeForce RTX 30, 40 and 50: one engine runs on all."""

_FORMAT = 1
_TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
}


@dataclass(frozen=True)
class EngineBuildOptions:
    """What is built.

    Attributes:
        compute_capabilities: of the cards, such as "8.9"; one engine for all of them.
        precision: of the models that have an FP16 form; pitch, phase, inputs and outputs stay FP32.
        models: names; stages of an ensemble for the name of an ensemble; all models if left empty.
        force: builds engines that are up to date too.
    """

    compute_capabilities: tuple[str, ...] = COMPUTE_CAPABILITIES
    precision: Precision = "fp32"
    models: tuple[str, ...] = ()
    force: bool = False

    def __post_init__(self) -> None:
        for item in self.compute_capabilities:
            major, _, minor = item.partition(".")
            if not (major.isdecimal() and minor.isdecimal()):
                raise PlanError(f"{item!r} is no compute capability; write it like 8.9")


@dataclass(frozen=True)
class EngineManifest:
    """What an engine was made from and for; lies beside it as JSON.

    Attributes:
        model: name of the model.
        onnx_sha256: of the ONNX file in the repository.
        engine_sha256: of the engine.
        precision: "fp32" or "fp16".
        tensorrt_rtx: version that built it; another version may refuse it.
        compute_capabilities: of the cards that run it.
        profiles: its optimisation profiles, shapes as trtexec writes them.
        inputs: type and shape of each, -1 where the profiles decide.
        outputs: the same.
        layers: of the network before layers are joined.
        weights_bytes: of GPU memory.
        activation_bytes: of GPU memory, for the profile that needs most.
        seconds: the build took.
    """

    model: str
    onnx_sha256: str
    engine_sha256: str
    precision: str
    tensorrt_rtx: str
    compute_capabilities: tuple[str, ...]
    profiles: tuple[str, ...]
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]
    layers: int
    weights_bytes: int
    activation_bytes: int
    seconds: float

    def dumps(self) -> str:
        """The manifest as JSON."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1, allow_nan=False) + "\n"


@dataclass(frozen=True)
class EngineResult:
    """What became of one model.

    Attributes:
        model: its name.
        manifest: of its engine; None where TensorRT for RTX refuses the model.
        size: of the engine's file in bytes.
        built: False where the engine there was is up to date.
        refusal: why there is no engine.
    """

    model: str
    manifest: EngineManifest | None = None
    size: int = 0
    built: bool = False
    refusal: str = ""


def build_engines(
    root: Path, folder: Path, options: EngineBuildOptions, progress: Progress
) -> list[EngineResult]:
    """Builds an engine of each model; a model that is refused does not keep the others from being built.

    Args:
        root: the repository.
        folder: takes ``MODEL.engine`` and ``MODEL.json``.
        options: see there.
        progress: shows how far the work is.

    Raises:
        PlanError: TensorRT for RTX is not installed, or knows no such card.
        RepositoryError: no such repository or model.
    """
    trt = runtime.import_tensorrt(runtime.TENSORRT_RTX)
    for item in options.compute_capabilities:
        name = f"SM{item.replace('.', '')}"
        if name not in trt.ComputeCapability.__members__:
            known = sorted(key for key in trt.ComputeCapability.__members__ if key.startswith("SM"))
            raise PlanError(f"TensorRT for RTX builds for no compute capability {item}; it knows {known}")
    repository = ModelRepository(root)
    done = []
    for name in _wanted(repository, options.models):
        with progress.model(name) as report:
            try:
                done.append(_build(repository, name, folder, options, str(trt.__version__), report))
            except PlanError as error:
                done.append(EngineResult(name, refusal=str(error)))
    return done


def _wanted(repository: ModelRepository, names: Sequence[str]) -> list[str]:
    wanted: dict[str, None] = {}
    for name in names or repository.names():
        spec = repository.spec(name)
        stages = [step.model for step in spec.steps] or [name]
        wanted |= dict.fromkeys(stages)
    return list(wanted)


def _build(
    repository: ModelRepository,
    name: str,
    folder: Path,
    options: EngineBuildOptions,
    version: str,
    report: runtime.Report,
) -> EngineResult:
    spec = repository.spec(name)
    if spec.model_file is None:
        raise PlanError(f"{name} has no ONNX file to build from")
    model = load_model(spec.model_file)
    shapes = profiles_of(repository, spec, model)
    path = folder / f"{name}.engine"
    digest, texts = sha256(spec.model_file), tuple(map(dump_profile, shapes))
    half = options.precision == "fp16" and config_path(repository.path / name).is_file()
    precision: Precision = "fp16" if half else "fp32"
    wanted = (name, digest, precision, version, options.compute_capabilities, texts)
    if not options.force and (present := _current(path, wanted)):
        return EngineResult(name, present, path.stat().st_size)
    if half:
        report("converting to FP16", 0.0)
        config = read_config(config_path(repository.path / name))
        job = Job(name, spec.model_file, model, config, {})
        model, _ = half_model(job, session_run(spec.model_file))
    model = expanded(model)
    require_exact_types(model, spec.model_file)
    if turing.CAPABILITY in options.compute_capabilities:
        model = turing.without_float32_products(model)
    started = time.perf_counter()
    engine = runtime.build_engine(
        model.SerializeToString(),
        shapes,
        runtime.EngineOptions(compute_capabilities=options.compute_capabilities),
        report,
        runtime.TENSORRT_RTX,
    )
    require_same_tensors(model, engine, spec.model_file)
    manifest = EngineManifest(
        model=name,
        onnx_sha256=digest,
        engine_sha256=hashlib.sha256(engine.content).hexdigest(),
        precision=precision,
        tensorrt_rtx=version,
        compute_capabilities=options.compute_capabilities,
        profiles=texts,
        inputs=engine.inputs,
        outputs=engine.outputs,
        layers=engine.layers,
        weights_bytes=engine.weights_bytes,
        activation_bytes=engine.activation_bytes,
        seconds=round(time.perf_counter() - started, 2),
    )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.write_bytes(engine.content)
    with atomic_path(path.with_suffix(".json")) as partial:
        partial.write_text(manifest.dumps(), encoding="utf-8")
    return EngineResult(name, manifest, len(engine.content), built=True)


def _current(path: Path, wanted: tuple[object, ...]) -> EngineManifest | None:
    """The manifest of an engine that would come out the same; None where it would not, or is not there."""
    try:
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT:
            return None
        content |= {key: tuple(content[key]) for key in ("compute_capabilities", "profiles")}
        manifest = EngineManifest(**content)
        found = (
            manifest.model,
            manifest.onnx_sha256,
            manifest.precision,
            manifest.tensorrt_rtx,
            manifest.compute_capabilities,
            manifest.profiles,
        )
        return manifest if found == wanted and sha256(path) == manifest.engine_sha256 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def profiles_of(repository: ModelRepository, spec: ModelSpec, model: onnx.ModelProto) -> tuple[Profile, ...]:
    """Optimisation profiles of a model: those that its plans have, or else those of the same table.

    Raises:
        PlanError: an axis of the file is none whose length is known.
    """
    folder = repository.path / spec.name
    if config_path(folder).is_file():
        return read_profiles(read_config(config_path(folder)))
    buckets = STREAMS if spec.states else REQUESTS
    inputs = [_stage_tensor(value, spec) for value in model.graph.input]
    return profiles(inputs, AXIS_RATES, buckets, max(1, spec.max_batch_size))


def _stage_tensor(value: onnx.ValueInfoProto, spec: ModelSpec) -> StageTensor:
    dims: list[int | Axis] = []
    for dim in value.type.tensor_type.shape.dim[1:]:
        if dim.HasField("dim_value"):
            dims.append(dim.dim_value)
            continue
        multiple, _, symbol = dim.dim_param.rpartition("*")
        if symbol not in AXIS_RATES:
            raise PlanError(f"{spec.name}: nothing is known of the length of axis {dim.dim_param!r}")
        dims.append(Axis(symbol, int(multiple or 1)))
    return StageTensor(value.name, tuple(dims))


def require_same_tensors(model: onnx.ModelProto, engine: runtime.Engine, file: Path) -> None:
    """Sees that an engine has the tensors of its file: inputs and outputs with their fixed sizes, and types.

    Raises:
        PlanError: one is missing, new or different.
    """
    for kind, values, found in (
        ("input", model.graph.input, engine.inputs),
        ("output", model.graph.output, engine.outputs),
    ):
        expected = {value.name: _described(value) for value in values}
        if expected.keys() != found.keys() or any(
            not _fits(found[name], expected[name], fixed=kind == "input") for name in expected
        ):
            raise PlanError(f"{file}: the engine's {kind}s are {dict(found)} where the file has {expected}")
    types = element_types(model)
    for name, found_type in engine.types.items():
        wanted = _TYPES.get(types.get(name, -1), found_type)
        if found_type != wanted:
            raise PlanError(
                f"{file}: the engine computes {name} in {found_type} where the file says {wanted}"
            )


def _fits(found: tuple[str, tuple[int, ...]], wanted: tuple[str, tuple[int, ...]], *, fixed: bool) -> bool:
    """Whether a tensor is as the file says; the parser may not know a size of an output that is fixed."""
    if found[0] != wanted[0] or len(found[1]) != len(wanted[1]):
        return False
    return all(a == b or (a == -1 and not fixed) for a, b in zip(found[1], wanted[1], strict=True))


def _described(value: onnx.ValueInfoProto) -> tuple[str, tuple[int, ...]]:
    tensor = value.type.tensor_type
    return _TYPES.get(tensor.elem_type, "?"), tuple(
        dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim
    )


def refused(results: Sequence[EngineResult]) -> VoiceConversionError | None:
    """The error that stands for all models without an engine; None where each has one."""
    missing = [result.model for result in results if result.refusal]
    if not missing:
        return None
    return PlanError(
        f"TensorRT for RTX refuses {len(missing)} of {len(results)} models: {', '.join(missing)}"
    )
