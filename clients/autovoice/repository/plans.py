"""TensorRT plans of a repository: what a plan's manifest says, and whether this machine can serve the plans.

A server that fails to load a plan says so in TensorRT's words and leaks GPU memory, so everything that can be
known beforehand is checked before it starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autovoice.errors import ConfigurationError, RepositoryError
from autovoice.repository.model_config import DEFAULT_MODEL_FILENAME, read_config
from autovoice.repository.reader import ModelRepository

PLAN_BACKEND = "tensorrt"
CONFIG_NAME = "tensorrt"
"""``tritonserver --model-config-name``: models without such a config keep their ``config.pbtxt``."""

PLUGINS_VARIABLE = "AUTOVOICE_PLUGINS"
PROFILE_PARAMETER = "profile_{}"
Shape = tuple[int, ...]
"""Parameter of a configuration that holds the optimisation profile of an index; Triton itself ignores it."""

LIBRARY_PATTERN = "libautovoice_plugins_trt{}.so"
REMEDY = "run `autovoice build --engine tensorrt` on this machine"

_MANIFEST_FORMAT = 1
_RUNTIME_VERSION = """
import ctypes
for major in (11, 10):
    try:
        library = ctypes.CDLL(f"libnvinfer.so.{major}")
    except OSError:
        continue
    number = library.getInferLibVersion()
    print(f"{number // 10000}.{number // 100 % 100}.{number % 100}")
    break
"""


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine.

    Attributes:
        name: as NVIDIA's driver gives it.
        compute_capability: such as "8.6".
    """

    name: str
    compute_capability: str


@dataclass(frozen=True)
class PlanManifest:
    """What a plan was made from and for; lies beside it as JSON.

    Attributes:
        model: name of the model.
        onnx_sha256: of the ONNX file with its functions, as it lies in the repository.
        plan_sha256: of the plan.
        precision: "fp32" or "fp16".
        tensorrt: version.
        cuda: version of the CUDA runtime.
        plugins: version of each op's plugin.
        plugin_library_sha256: of the library that held them; of nothing for a model without custom ops.
        gpu: it was built on.
        hardware_compatibility: "none", or the level by which other GPUs may run it.
        profiles: its optimisation profiles, as the configuration writes them.
        deviation: worst deviation of each output from ONNX Runtime's, as a share of what was allowed.
        conversion: the part of it that the file in FP16 alone makes in ONNX Runtime; empty in FP32.
    """

    model: str
    onnx_sha256: str
    plan_sha256: str
    precision: str
    tensorrt: str
    cuda: str
    plugins: Mapping[str, str]
    plugin_library_sha256: str
    gpu: Gpu
    hardware_compatibility: str
    profiles: tuple[str, ...]
    deviation: Mapping[str, float] = field(default_factory=dict)
    conversion: Mapping[str, float] = field(default_factory=dict)

    def dumps(self) -> str:
        """The manifest as JSON."""
        return json.dumps({"format": _MANIFEST_FORMAT, **asdict(self)}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> PlanManifest:
        """Read a manifest.

        Raises:
            RepositoryError: it is missing, or not a manifest of this format.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != _MANIFEST_FORMAT:
                raise ValueError("another format")
            content["gpu"] = Gpu(**content["gpu"])
            content["profiles"] = tuple(content["profiles"])
            return cls(**content)
        except FileNotFoundError:
            raise RepositoryError(f"{path} is missing, so nobody knows what its plan is; {REMEDY}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RepositoryError(f"{path} is no manifest of a plan ({error}); {REMEDY}") from error


def plan_filename(compute_capability: str) -> str:
    """File of the plan for GPUs of a compute capability, such as ``sm_86.plan`` for "8.6"."""
    return f"sm_{compute_capability.replace('.', '')}.plan"


def manifest_path(plan: Path) -> Path:
    """The manifest that lies beside a plan; links to one plan share its manifest."""
    plan = plan.resolve()
    return plan.with_name(plan.name + ".json")


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def find_gpus() -> tuple[Gpu, ...]:
    """GPUs that NVIDIA's driver shows.

    Raises:
        ConfigurationError: there is none, or no driver.
    """
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60)
        rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if line.strip()]
        gpus = tuple(Gpu(name.strip(), capability.strip()) for name, capability in rows)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigurationError(
            f"no NVIDIA GPU can be seen here ({error}); TensorRT plans need one: start the container with "
            "--gpus all, or leave the plans out (no --config-name, no --engine tensorrt)"
        ) from error
    if not gpus:
        raise ConfigurationError("nvidia-smi shows no GPU; TensorRT plans need one")
    return gpus


def find_plugin_library(given: Path | None = None) -> Path:
    """The plugin library to load.

    Args:
        given: a library, or a folder with libraries for several TensorRT versions; None for the path in
            `$AUTOVOICE_PLUGINS`.

    Raises:
        ConfigurationError: no such library, or several and no way to choose.
    """
    named = given or (Path(os.environ[PLUGINS_VARIABLE]) if os.environ.get(PLUGINS_VARIABLE) else None)
    if named is None:
        raise ConfigurationError(
            "the custom ops need their TensorRT plugins: `make plugins` compiles them; name the library in "
            f"${PLUGINS_VARIABLE}"
        )
    if named.is_file():
        return named.absolute()
    pattern = LIBRARY_PATTERN.format("*")
    libraries = sorted(named.glob(pattern)) if named.is_dir() else []
    if len(libraries) > 1:
        version = runtime_version()
        libraries = [named / LIBRARY_PATTERN.format(version.split(".")[0])] if version else libraries
    if len(libraries) != 1 or not libraries[0].is_file():
        found = ", ".join(path.name for path in libraries) or "none"
        raise ConfigurationError(
            f"{named} is no plugin library and no folder with one for this TensorRT ({pattern}; found: "
            f"{found}); `make plugins` compiles it"
        )
    return libraries[0].absolute()


def runtime_version() -> str | None:
    """Version of the TensorRT that a server here would load, such as "11.1.0"; None where there is none."""
    # In a process of its own: the library takes hundreds of megabytes and never leaves.
    done = subprocess.run(
        [sys.executable, "-c", _RUNTIME_VERSION], capture_output=True, text=True, check=False, timeout=120
    )
    return done.stdout.strip() or None


def profile_texts(config: Any) -> tuple[str, ...]:
    """Optimisation profiles of a `ModelConfig` in the order of their indices, each as text."""
    indices = sorted({int(index) for group in config.instance_group for index in group.profile})
    return tuple(config.parameters[PROFILE_PARAMETER.format(index)].string_value for index in indices)


def parse_profile(text: str) -> tuple[str, dict[str, tuple[Shape, Shape, Shape]]]:
    """Name of a profile and the smallest, typical and largest shape of each input.

    Args:
        text: such as ``short: AUDIO=1x240:8x24000:16x48720``, shapes as trtexec writes them.

    Raises:
        ValueError: it is something else.
    """
    name, separator, inputs = text.partition(": ")
    if not separator or not name.isidentifier():
        raise ValueError(f"{text!r} is no profile")
    ranges = {}
    for item in inputs.split(","):
        tensor, _, shapes = item.partition("=")
        low, usual, high = (tuple(int(size) for size in shape.split("x")) for shape in shapes.split(":"))
        ranges[tensor] = (low, usual, high)
    return name, ranges


def models_with_plans(repository: ModelRepository, config_name: str | None) -> dict[str, Any]:
    """Configurations of the models that TensorRT runs under a configuration name; none without a name."""
    found = {}
    for name in repository.names() if config_name else ():
        path = repository.path / name / "configs" / f"{config_name}.pbtxt"
        if path.is_file():
            config = read_config(path)
            if config.backend == PLAN_BACKEND:
                found[name] = config
    return found


def plan_arguments(repository: ModelRepository, config_name: str | None) -> list[str]:
    """Triton's options for a repository with plans, which are checked first.

    Args:
        repository: the models.
        config_name: under which they are served.

    Returns:
        The option that names the plugin library, where a plan needs one.

    Raises:
        ConfigurationError: this machine has no GPU, or there is no plugin library.
        RepositoryError: the first plan that is missing, stale, or made for something else.
    """
    configs = models_with_plans(repository, config_name)
    if not configs:
        return []
    version = runtime_version()
    manifests = [
        check_plan(repository, name, config, gpu, version)
        for gpu in find_gpus()
        for name, config in configs.items()
    ]
    if not any(manifest.plugins for manifest in manifests):
        return []
    return [f"--backend-config={PLAN_BACKEND},plugins={find_plugin_library()}"]


def check_plan(
    repository: ModelRepository, name: str, config: Any, gpu: Gpu, version: str | None
) -> PlanManifest:
    """Check one model's plan against a GPU, a TensorRT version and the ONNX file.

    Args:
        repository: the models.
        name: of the model.
        config: the `ModelConfig` by which it is served.
        gpu: that is to run it.
        version: of TensorRT, as far as it is known; None for not at all.

    Returns:
        The plan's manifest.

    Raises:
        RepositoryError: the plan is missing, stale, or made for something else.
    """
    folder = repository.path / name / str(repository.spec(name).version)
    filename = config.cc_model_filenames.get(gpu.compute_capability)
    if filename is None:
        known = ", ".join(sorted(config.cc_model_filenames, key=float))
        raise RepositoryError(
            f"{gpu.name} has compute capability {gpu.compute_capability}; the plugins know {known}: serve "
            "without --config-name"
        )
    plan = folder / filename
    if not plan.is_file():
        raise RepositoryError(
            f"{name} has no plan for {gpu.name} (compute capability {gpu.compute_capability}): {plan} is "
            f"missing; {REMEDY}"
        )
    manifest = PlanManifest.load(manifest_path(plan))
    if manifest.onnx_sha256 != sha256(folder / DEFAULT_MODEL_FILENAME):
        raise RepositoryError(f"{plan} was built from another {DEFAULT_MODEL_FILENAME}; {REMEDY}")
    if manifest.profiles != profile_texts(config):
        raise RepositoryError(f"{plan} was built with other optimisation profiles; {REMEDY}")
    if manifest.plan_sha256 != sha256(plan):
        raise RepositoryError(f"{plan} is not the plan of its manifest, or is damaged; {REMEDY}")
    built_for = manifest.gpu
    if manifest.hardware_compatibility == "none" and built_for.compute_capability != gpu.compute_capability:
        raise RepositoryError(
            f"{plan} was built on {built_for.name} (compute capability {built_for.compute_capability}), not "
            f"for {gpu.name} ({gpu.compute_capability}); {REMEDY}"
        )
    if version is not None and _release(manifest.tensorrt) != _release(version):
        raise RepositoryError(
            f"{plan} was built by TensorRT {manifest.tensorrt}, and the one here is {version}; {REMEDY}"
        )
    return manifest


def _release(version: str) -> tuple[str, ...]:
    """Major, minor and patch: all that a library tells of itself."""
    return tuple(version.split(".")[:3])
