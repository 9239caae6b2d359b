"""``configs/tensorrt.pbtxt``: configs of models that are served from plans, with optimisation profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autovoice.repository.model_config import protobuf_module, read_config
from autovoice.repository.plans import (
    CONFIG_NAME,
    PLAN_BACKEND,
    PROFILE_PARAMETER,
    Shape,
    parse_profile,
    plan_filename,
    profile_texts,
)
from autovoice_export import config_files
from autovoice_export.build_errors import PlanError
from autovoice_export.config_types import DynamicBatching, SequenceBatching, StageModelConfig

pb = protobuf_module()

COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1")
"""GPUs that the plugin library has code for: those it is compiled for, and later minors of each."""

_NO_PLAN = "no_plan_for_this_gpu.plan"


@dataclass(frozen=True)
class ShapeRange:
    """Shapes of one input that a profile allows, batch axis included.

    Attributes:
        smallest: of each axis.
        typical: the shape whose speed matters.
        largest: of each axis.
    """

    smallest: Shape
    typical: Shape
    largest: Shape

    def __post_init__(self) -> None:
        axes = (self.smallest, self.typical, self.largest)
        if len({len(shape) for shape in axes}) != 1 or not all(
            1 <= low <= usual <= high for low, usual, high in zip(*axes, strict=True)
        ):
            raise ValueError(f"shapes of a profile must rise from 1 or more on every axis, got {axes}")

    def holds(self, shape: Shape) -> bool:
        """Whether the profile runs that shape."""
        return len(shape) == len(self.smallest) and all(
            low <= size <= high for low, size, high in zip(self.smallest, shape, self.largest, strict=True)
        )


@dataclass(frozen=True)
class Profile:
    """One optimisation profile.

    Attributes:
        name: of its length bucket.
        shapes: of every input of the ONNX file, states included.
    """

    name: str
    shapes: Mapping[str, ShapeRange]


@dataclass(frozen=True)
class Graph:
    """One shape whose launches are recorded as a CUDA graph.

    Attributes:
        batch: number of requests.
        shapes: of every input of the ONNX file, states included, without the batch axis.
    """

    batch: int
    shapes: Mapping[str, Shape]


@dataclass(frozen=True)
class PlanConfig:
    """A model served from plans, one for each kind of GPU.

    Attributes:
        model: the same model as ONNX Runtime serves it: tensors, batching, states.
        profiles: optimisation profiles in the order of their indices in a plan.
        graphs: recorded shapes; none where the caller decides the length.
    """

    model: StageModelConfig
    profiles: tuple[Profile, ...]
    graphs: tuple[Graph, ...] = field(default=())

    def __post_init__(self) -> None:
        name, batch = self.model.name, self.model.max_batch_size
        if not self.profiles:
            raise ValueError(f"model {name} has no optimisation profile: give it one for each length bucket")
        inputs = {tensor.name for tensor in self.model.inputs}
        if isinstance(self.model.batching, SequenceBatching):
            inputs |= {state.input_name for state in self.model.batching.states}
        for profile in self.profiles:
            if profile.shapes.keys() != inputs:
                raise ValueError(
                    f"profile {profile.name} of {name} has {sorted(profile.shapes)}, "
                    f"the model {sorted(inputs)}"
                )
            if any(item.smallest[0] != 1 or item.largest[0] != batch for item in profile.shapes.values()):
                raise ValueError(
                    f"profile {profile.name} of {name} must take batches of 1 to {batch}: "
                    "a batcher may form any"
                )
        for graph in self.graphs:
            if graph.shapes.keys() != inputs:
                raise ValueError(
                    f"a CUDA graph of {name} has {sorted(graph.shapes)}, the model {sorted(inputs)}"
                )
            shapes = {name: (graph.batch, *shape) for name, shape in graph.shapes.items()}
            for profile in self.profiles:
                # Triton records every graph in every profile's context, and logs an error where it cannot.
                if not all(profile.shapes[tensor].holds(shape) for tensor, shape in shapes.items()):
                    raise ValueError(
                        f"profile {profile.name} of {name} does not hold the CUDA graph {shapes}"
                    )


def config_path(model_folder: Path) -> Path:
    """Where a model's configuration for TensorRT lies."""
    return model_folder / "configs" / f"{CONFIG_NAME}.pbtxt"


def to_message(config: PlanConfig) -> Any:
    """Builds the ``ModelConfig`` message: that for ONNX Runtime, but for the backend and what it needs."""
    message = config_files.to_message(config.model)
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
        message.parameters[PROFILE_PARAMETER.format(index)].string_value = dump_profile(profile)
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


def read_plan_config(model_folder: Path) -> Any:
    """Message in the ``configs/tensorrt.pbtxt`` of a model's folder.

    Raises:
        RepositoryError: the file is missing or no model config.
    """
    return read_config(config_path(model_folder))


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


def dump_profile(profile: Profile) -> str:
    """Text such as ``short: AUDIO=1x240:8x24000:16x48720``, shapes as trtexec writes them."""

    def text(shapes: ShapeRange) -> str:
        return ":".join(
            "x".join(map(str, shape)) for shape in (shapes.smallest, shapes.typical, shapes.largest)
        )

    return f"{profile.name}: " + ",".join(f"{name}={text(shapes)}" for name, shapes in profile.shapes.items())


def _load_profile(text: str) -> Profile:
    name, ranges = parse_profile(text)
    return Profile(name, {tensor: ShapeRange(*shapes) for tensor, shapes in ranges.items()})
