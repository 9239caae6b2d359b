"""All that touches TensorRT itself, through Polygraphy; imported names are looked up when they are used.

Works with TensorRT 10.13 and later and 11: flags are asked for by name, what 11 removed is not asked for.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autovoice_export.build_errors import PlanError
from autovoice_export.tensorrt.plan_config import Profile
from autovoice_plugins.function_builder import DOMAIN

OLDEST = (10, 13)
Compatibility = Literal["none", "ampere_plus", "same_compute_capability"]

Report = Callable[[str, float], None]
"""Takes the phase the builder is in, and how much of it is done, from 0 to 1."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        hardware_compatibility: other GPUs that may run it: none, all from Ampere on, or those of the same
            compute capability.
        timing_cache: measured kernels, read and added to, so that the next build is quicker.
        workspace_mb: memory the builder may try kernels with; None for all there is.
    """

    hardware_compatibility: Compatibility
    timing_cache: Path
    workspace_mb: int | None


def import_tensorrt() -> Any:
    """The package ``tensorrt``.

    Raises:
        PlanError: it is not installed, or too old.
    """
    try:
        trt = importlib.import_module("tensorrt")
        version = str(trt.__version__)
    except (ImportError, AttributeError) as error:
        raise PlanError(
            f"TensorRT's Python package is not installed here ({error}); run inside NVIDIA's TensorRT image: "
            "docker build --target plans"
        ) from error
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise PlanError(f"TensorRT {version} is too old; {wanted} or later is needed")
    return trt


@contextmanager
def quietly(doing: str) -> Iterator[None]:
    """Keeps Polygraphy's and TensorRT's log to itself, and turns a failure into one line with their errors.

    Raises:
        PlanError: Polygraphy gave up.
    """
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    errors: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # Without the marks, such as "[E] ", that Polygraphy sets before a line.
            errors.append(" ".join(record.getMessage()[4:].split()))

    handler = Collector(logging.ERROR)
    log = logging.getLogger("Polygraphy")
    before = log.propagate, G_LOGGER.use_python_logging_system
    log.addHandler(handler)
    log.propagate, G_LOGGER.use_python_logging_system = False, True
    try:
        with G_LOGGER.verbosity(G_LOGGER.ERROR):
            yield
    except PolygraphyException as error:
        reasons = list(dict.fromkeys(errors)) or [" ".join(str(error).split())]
        raise PlanError(f"{doing} failed: {'; '.join(reasons)}") from error
    finally:
        log.removeHandler(handler)
        log.propagate, G_LOGGER.use_python_logging_system = before


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
    model: bytes, profiles: Sequence[Profile], options: EngineOptions, report: Report | None = None
) -> bytes:
    """Builds a serialised engine.

    Args:
        model: an ONNX file without functions for custom ops.
        profiles: in the order of their indices.
        options: see there.
        report: called as the builder goes on.

    Raises:
        PlanError: the parser or the builder refuses.
    """
    trt = import_tensorrt()
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineBytesFromNetwork,
        NetworkFromOnnxBytes,
    )
    from polygraphy.backend.trt import Profile as Shapes

    made = []
    for profile in profiles:
        shapes = Shapes()
        for name, allowed in profile.shapes.items():
            shapes.add(name, min=allowed.smallest, opt=allowed.typical, max=allowed.largest)
        made.append(shapes)
    limits = {trt.MemoryPoolType.WORKSPACE: options.workspace_mb << 20} if options.workspace_mb else None
    # Types are those of the file: the only mode of TensorRT 11, which keeps the flag for a while and ignores
    # it. The parser's flags stay as they are by default, native instance normalisation among them; a list of
    # ours would replace them all.
    typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    level = _named(trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper())
    cache = str(options.timing_cache)
    with quietly("building the plan"):
        config = CreateConfig(
            profiles=made,
            load_timing_cache=cache,
            memory_pool_limits=limits,
            hardware_compatibility_level=level,
            profiling_verbosity=trt.ProfilingVerbosity.DETAILED,  # so that layers can be looked at afterwards
            progress_monitor=_progress_monitor(trt, report) if report else None,
        )
        network = NetworkFromOnnxBytes(model, strongly_typed=typed)
        engine = EngineBytesFromNetwork(network, config, save_timing_cache=cache)()
    return bytes(engine)


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
