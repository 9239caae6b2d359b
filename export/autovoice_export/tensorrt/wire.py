"""``configs/tensorrt.pbtxt``: the ``ModelConfig`` of a model served from plans, and its profiles again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from autovoice.repository.plans import PLAN_BACKEND, PROFILE_PARAMETER, plan_filename, profile_texts
from autovoice_export import config_text, wire_config
from autovoice_export.model_config import DynamicBatching
from autovoice_export.tensorrt.errors import PlanError
from autovoice_export.tensorrt.plan_config import PlanConfig, Profile, ShapeRange

CONFIG_NAME = "tensorrt"
"""``tritonserver --model-config-name``: models without such a config keep their ``config.pbtxt``."""

COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1")
"""GPUs that the plugin library has code for: those it is compiled for, and later minors of each."""

_NO_PLAN = "no_plan_for_this_gpu.plan"
_PROFILE = re.compile(r"(\w+): (.+)")


def config_path(model_folder: Path) -> Path:
    """Where a model's configuration for TensorRT lies."""
    return model_folder / "configs" / f"{CONFIG_NAME}.pbtxt"


def to_wire(config: PlanConfig) -> Any:
    """Builds the ``ModelConfig`` message: that for ONNX Runtime, but for the backend and what it needs."""
    message = wire_config.to_wire(config.model)
    message.backend = PLAN_BACKEND
    # The name that Triton misses, and says so, on a GPU the table below does not know.
    message.default_model_filename = _NO_PLAN
    for capability in COMPUTE_CAPABILITIES:
        message.cc_model_filenames[capability] = plan_filename(capability)
    del message.instance_group[:]
    message.instance_group.add(
        kind=pb.ModelInstanceGroup.KIND_GPU,
        count=config.model.instances.count,
        # Unlisted profiles are never used.
        profile=[str(index) for index in range(len(config.profiles))],
    )
    message.parameters.clear()
    for index, profile in enumerate(config.profiles):
        message.parameters[PROFILE_PARAMETER.format(index)].string_value = _dump_profile(profile)
    del message.model_warmup[:]
    if isinstance(config.model.batching, DynamicBatching):
        for profile in config.profiles:
            _add_warmup(message, profile)
    if config.graphs:
        cuda = message.optimization.cuda
        cuda.graphs = True
        for graph in config.graphs:
            spec = cuda.graph_spec.add(batch_size=graph.batch)
            for name, shape in graph.shapes.items():
                spec.input[name].dim.extend(shape)
    return message


def _add_warmup(message: Any, profile: Profile) -> None:
    types = {tensor.name: tensor.data_type for tensor in message.input}
    warmup = message.model_warmup.add(name=profile.name, batch_size=1)
    for name, shapes in profile.shapes.items():
        warmup.inputs[name].CopyFrom(
            pb.ModelWarmup.Input(data_type=types[name], dims=shapes.typical[1:], zero_data=True)
        )


def read(model_folder: Path) -> Any:
    """Message in the ``configs/tensorrt.pbtxt`` of a model's folder.

    Raises:
        PlanError: the file is missing or no model configuration.
    """
    path = config_path(model_folder)
    try:
        return config_text.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PlanError(f"{path} is missing: export the repository again") from error
    except text_format.ParseError as error:
        raise PlanError(f"{path} is no Triton model configuration: {error}") from error


def read_profiles(message: Any) -> tuple[Profile, ...]:
    """Optimisation profiles of a message, in the order of their indices.

    Raises:
        PlanError: the message lacks one of the profiles its instances use, or one is not readable.
    """
    made = []
    for index, text in enumerate(profile_texts(message)):
        try:
            made.append(_load_profile(text))
        except ValueError as error:
            raise PlanError(
                f"configs/{CONFIG_NAME}.pbtxt of {message.name} has no readable profile {index} ({text!r}): "
                "export the repository again"
            ) from error
    if not made:
        raise PlanError(f"configs/{CONFIG_NAME}.pbtxt of {message.name} lists no profile: export it again")
    return tuple(made)


def _dump_profile(profile: Profile) -> str:
    """Text such as ``short: AUDIO=1x240:8x24000:16x48720``, shapes as trtexec writes them."""

    def text(shapes: ShapeRange) -> str:
        return ":".join(
            "x".join(map(str, shape)) for shape in (shapes.smallest, shapes.typical, shapes.largest)
        )

    return f"{profile.name}: " + ",".join(f"{name}={text(shapes)}" for name, shapes in profile.shapes.items())


def _load_profile(text: str) -> Profile:
    match = _PROFILE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    shapes = {}
    for item in match[2].split(","):
        name, _, ranges = item.partition("=")
        smallest, typical, largest = (
            tuple(int(size) for size in shape.split("x")) for shape in ranges.split(":")
        )
        shapes[name] = ShapeRange(smallest, typical, largest)
    return Profile(match[1], shapes)
