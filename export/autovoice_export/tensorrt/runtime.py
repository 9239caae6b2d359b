"""All that touches TensorRT and TensorRT for RTX, through Polygraphy; names are looked up when they are used.

Works with TensorRT 10.13 and later and 11: flags are asked for by name, what 11 removed is not asked for.
Of TensorRT for RTX the parser and the builder are used, which need no GPU. Polygraphy takes one of the two
for the life of a process.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autovoice_export.build_errors import PlanError
from autovoice_export.tensorrt.plan_config import Profile
from autovoice_plugins.function_builder import DOMAIN

Compatibility = Literal["none", "ampere_plus", "same_compute_capability"]

Report = Callable[[str, float], None]
"""Takes the phase the builder is in, and how much of it is done, from 0 to 1."""


@dataclass(frozen=True)
class Target:
    """One of the two libraries that build engines.

    Attributes:
        title: in messages.
        module: its Python package.
        oldest: version that works, major and minor.
        remedy: where there is none.
    """

    title: str
    module: str
    oldest: tuple[int, int]
    remedy: str


TENSORRT = Target(
    "TensorRT", "tensorrt", (10, 13), "run inside NVIDIA's TensorRT image: docker build --target plans"
)
TENSORRT_RTX = Target(
    "TensorRT for RTX", "tensorrt_rtx", (1, 5), "run `pip install 'autovoice[export,tensorrt-rtx]'`"
)


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        hardware_compatibility: other GPUs that may run it: none, all from Ampere on, or those of the same
            compute capability. TensorRT for RTX is told the compute capabilities instead.
        timing_cache: measured kernels, read and added to, so that the next build is quicker; None for none.
        workspace_mb: memory the builder may try kernels with; None for all there is.
        compute_capabilities: such as "8.9", of the GPUs that TensorRT for RTX builds for.
    """

    hardware_compatibility: Compatibility = "none"
    timing_cache: Path | None = None
    workspace_mb: int | None = None
    compute_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Engine:
    """A serialised engine, and what its builder said of it.

    Attributes:
        content: the file.
        layers: of the network, before the builder joins them.
        inputs: type and shape of each, -1 where the profiles decide; as the parser read the ONNX file.
        outputs: the same.
        types: of the layers' outputs, by name.
        activation_bytes: of GPU memory for the profile that needs most; 0 where the builder did not say.
        weights_bytes: of GPU memory.
    """

    content: bytes
    layers: int
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]
    types: Mapping[str, str]
    activation_bytes: int
    weights_bytes: int


def import_tensorrt(target: Target = TENSORRT) -> Any:
    """The Python package of a target, which Polygraphy uses from then on.

    Raises:
        PlanError: it is not installed, too old, or Polygraphy already uses the other one.
    """
    try:
        trt = importlib.import_module(target.module)
        version = str(trt.__version__)
    except (ImportError, AttributeError) as error:
        raise PlanError(
            f"{target.title}'s Python package is not installed here ({error}); {target.remedy}"
        ) from error
    if tuple(int(part) for part in version.split(".")[:2]) < target.oldest:
        wanted = ".".join(map(str, target.oldest))
        raise PlanError(f"{target.title} {version} is too old; {wanted} or later is needed")
    rtx = target is TENSORRT_RTX
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if rtx else "0"
    from polygraphy import config

    if rtx != config.USE_TENSORRT_RTX:
        raise PlanError(f"this process already builds for another library than {target.title}: use a new one")
    return trt


@contextmanager
def quietly(doing: str) -> Iterator[list[str]]:
    """Keeps Polygraphy's and TensorRT's log to itself, and turns a failure into one line with their errors.

    Yields:
        What they said, line by line, growing.

    Raises:
        PlanError: Polygraphy gave up.
    """
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER, logger

    logger.COLORED_MODULE_PRESENT = False  # else it prints that it has no colours
    said: list[str] = []
    errors: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # Without the marks, such as "[E] ", that Polygraphy sets before a line.
            line = " ".join(record.getMessage()[4:].split())
            said.append(line)
            if record.levelno >= logging.ERROR:
                errors.append(line)

    handler = Collector()
    log = logging.getLogger("Polygraphy")
    before = log.propagate, log.level, G_LOGGER.use_python_logging_system
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate, G_LOGGER.use_python_logging_system = False, True
    try:
        with G_LOGGER.verbosity(G_LOGGER.VERBOSE):
            yield said
    except PolygraphyException as error:
        reasons = list(dict.fromkeys(errors)) or [" ".join(str(error).split())]
        raise PlanError(f"{doing} failed: {'; '.join(reasons)}") from error
    finally:
        log.removeHandler(handler)
        log.setLevel(before[1])
        log.propagate, G_LOGGER.use_python_logging_system = before[0], before[2]


def load_plugins(library: Path | None, wanted: Mapping[str, str]) -> None:
    """Loads the plugin library and sees that it holds every plugin wanted.

    Args:
        library: the file; None where there is none.
        wanted: version by op.

    Raises:
        PlanError: it cannot be loaded, or a plugin is missing afterwards.
    """
    if not wanted:
        return
    trt = import_tensorrt()
    if library is None:
        raise PlanError(f"{', '.join(wanted)} need the plugin library: name it by --plugins")
    from polygraphy.backend.trt import load_plugins as load

    # After TensorRT, whose registry the library enters its plugins into.
    try:
        with quietly("loading the plugin library"):
            load(plugins=[str(library)])
    except OSError as error:
        raise PlanError(f"the plugin library cannot be loaded: {error}") from error
    registry = trt.get_plugin_registry()
    missing = [
        f"{op} (version {version})"
        for op, version in wanted.items()
        if registry.get_creator(op, version, DOMAIN) is None
    ]
    if missing:
        raise PlanError(
            f"{library} has no plugin for {', '.join(missing)} of namespace {DOMAIN!r} that TensorRT "
            f"{trt.__version__} could use: compile it for this version with `make plugins`"
        )


def build_engine(
    model: bytes,
    profiles: Sequence[Profile],
    options: EngineOptions,
    report: Report | None = None,
    target: Target = TENSORRT,
) -> Engine:
    """Builds a serialised engine.

    Args:
        model: an ONNX file whose custom ops have no function (TensorRT) or are expanded (TensorRT for RTX).
        profiles: in the order of their indices.
        options: see there.
        report: called as the builder goes on.
        target: the library.

    Raises:
        PlanError: the parser or the builder refuses.
    """
    trt = import_tensorrt(target)
    from polygraphy.backend.trt import EngineBytesFromNetwork, NetworkFromOnnxBytes
    from polygraphy.backend.trt import Profile as Shapes

    made = []
    for profile in profiles:
        shapes = Shapes()
        for name, allowed in profile.shapes.items():
            shapes.add(name, min=allowed.smallest, opt=allowed.typical, max=allowed.largest)
        made.append(shapes)
    # Types are those of the file: the only mode of TensorRT 11, which keeps the flag for a while and ignores
    # it. The parser's flags stay as they are by default, native instance normalisation among them; a list of
    # ours would replace them all.
    typed = target is TENSORRT and hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    cache = str(options.timing_cache) if options.timing_cache else None
    settings: dict[str, Any] = {
        "profiles": made,
        "load_timing_cache": cache,
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,  # so that layers can be looked at afterwards
        "progress_monitor": _progress_monitor(trt, report) if report else None,
    }
    if options.workspace_mb:
        settings["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options.workspace_mb << 20}
    with quietly(f"building the {'plan' if target is TENSORRT else 'engine'}") as said:
        if target is TENSORRT_RTX:
            from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

            capabilities = [tuple(map(int, item.split("."))) for item in options.compute_capabilities]
            config = CreateConfigRTX(compute_capabilities=capabilities, **settings)
        else:
            from polygraphy.backend.trt import CreateConfig

            level = _named(trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper())
            config = CreateConfig(hardware_compatibility_level=level, **settings)
        network = NetworkFromOnnxBytes(model, strongly_typed=typed or None)()
        engine = EngineBytesFromNetwork(network, config, save_timing_cache=cache)()
        definition = network[1]
        inputs = _described(definition.get_input(index) for index in range(definition.num_inputs))
        outputs = _described(definition.get_output(index) for index in range(definition.num_outputs))
        layers = [definition.get_layer(index) for index in range(definition.num_layers)]
        made_by_layers = [layer.get_output(index) for layer in layers for index in range(layer.num_outputs)]
    return Engine(
        content=bytes(engine),
        layers=len(layers),
        inputs=inputs,
        outputs=outputs,
        types={item.name: item.dtype.name for item in made_by_layers if item is not None},
        activation_bytes=_largest(said, r"Total Activation Memory: (\d+) bytes"),
        weights_bytes=_largest(said, r"Total Weights Memory: (\d+) bytes"),
    )


def _described(tensors: Iterable[Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {tensor.name: (tensor.dtype.name, tuple(tensor.shape)) for tensor in tensors}


def _largest(lines: Sequence[str], pattern: str) -> int:
    return max((int(found[1]) for line in lines if (found := re.search(pattern, line))), default=0)


def layers(plan: Path) -> list[str]:
    """What the engine inspector says of each layer of a plan, as text.

    Raises:
        PlanError: the plan cannot be loaded.
    """
    trt = import_tensorrt()
    from polygraphy.backend.trt import engine_from_bytes

    with quietly(f"loading {plan.name}"):
        engine = engine_from_bytes(plan.read_bytes())
    inspector = engine.create_engine_inspector()
    information = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return [item if isinstance(item, str) else json.dumps(item) for item in information["Layers"]]


def cuda_version() -> str:
    """Version of the CUDA runtime that Polygraphy works with, such as "13.3"; "unknown" without one."""
    import ctypes

    number = ctypes.c_int()
    for name in ("libcudart.so", "libcudart.so.13", "libcudart.so.12"):
        try:
            if ctypes.CDLL(name).cudaRuntimeGetVersion(ctypes.byref(number)) == 0:
                return f"{number.value // 1000}.{number.value % 1000 // 10}"
        except OSError:
            continue
    return "unknown"


def _named(enumeration: Any, name: str) -> Any:
    """A member of an enumeration.

    Raises:
        PlanError: this version of TensorRT does not have it.
    """
    members = enumeration.__members__
    if name not in members:
        raise PlanError(f"this TensorRT knows no {enumeration.__name__} {name}; it has {', '.join(members)}")
    return members[name]


def _progress_monitor(trt: Any, report: Report) -> Any:
    """An ``IProgressMonitor``; made here because its base class comes with TensorRT."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = max(1, steps)
            report(phase, 0.0)

        def step_complete(self, phase: str, step: int) -> bool:
            report(phase, min(1.0, (step + 1) / self._steps[phase]))
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            report(phase, 1.0)

    return Monitor()
