"""What AutoVoice says about a model that TensorRT runs: plain validated dataclasses, no protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autovoice_export.model_config import SequenceBatching, StageModelConfig

Shape = tuple[int, ...]


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
