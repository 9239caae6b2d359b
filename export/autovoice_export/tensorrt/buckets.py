"""Lengths and batch sizes that plans are built for: the one table behind configs, profiles and warm-up.

TensorRT chooses kernels for the typical shape of an optimisation profile and promises to run every shape
between its smallest and largest. Triton picks, for each batch of requests, the profile whose typical shape is
nearest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autovoice_export.base.stages.timing import LOOKAHEAD
from autovoice_export.tensorrt.plan_config import Graph, Profile, ShapeRange
from autovoice_plugins.geometry import HOP, SAMPLE_RATE

if TYPE_CHECKING:
    from autovoice_export.stage import StageTensor


@dataclass(frozen=True)
class Bucket:
    """A range of lengths that shares one optimisation profile.

    Attributes:
        name: in configs and error messages.
        seconds: shortest, typical and longest audio; the shortest may be 0, which means one frame.
        batch: typical number of requests in a batch; every profile takes 1 to the model's ``max_batch_size``,
            because the batchers mix as many requests of one length as happen to wait.
    """

    name: str
    seconds: tuple[float, float, float]
    batch: int

    def __post_init__(self) -> None:
        shortest, typical, longest = self.seconds
        if not 0 <= shortest <= typical <= longest or longest == 0 or self.batch < 1:
            raise ValueError(
                f"bucket {self.name}: {self.seconds} s must rise from 0, batch {self.batch} be positive"
            )


REQUESTS = (
    Bucket("short", (0, 1, 2), batch=8),
    Bucket("medium", (2, 5, 10), batch=4),
    Bucket("long", (10, 20, 30), batch=1),
)
"""Whole recordings. Longer ones go through the stream ensembles in blocks, which gives the same samples: one
profile for a batch of very long recordings would reserve gigabytes for it on every GPU."""

STREAMS = (
    Bucket("live", (0, 0.02, 0.1), batch=4),
    Bucket("block", (0, 10, 10), batch=1),
)
"""Chunks of live streams, and the blocks in which clients send long recordings. Both begin at one frame:
Triton captures each CUDA graph in the context of every profile."""

GRAPH_SECONDS = (0.01, 0.02, 0.04)
GRAPH_BATCHES = (1, 2, 4, 8)
"""Live chunks whose launches are recorded as CUDA graphs; others run kernel by kernel."""


@dataclass(frozen=True)
class AxisRate:
    """How an axis of variable length follows from the length of the audio.

    Attributes:
        per_second: values for each second of audio.
        extra: further values that padding adds at most.
    """

    per_second: float
    extra: int = 0

    def size(self, seconds: float, *, padded: bool = False) -> int:
        """Values on the axis for so much audio, at least 1."""
        return max(1, math.ceil(round(seconds * self.per_second, 6)) + (self.extra if padded else 0))


_FRAMES = AxisRate(SAMPLE_RATE / HOP, extra=-(-LOOKAHEAD // HOP))
AXIS_RATES = {
    "T": AxisRate(SAMPLE_RATE),
    "F": _FRAMES,
    "P": _FRAMES,
    "G": AxisRate(50),
}
"""Axes by their symbol in the ONNX files: samples, frames and padded frames of the base voice, content frames
of imported voices. T is at 16 kHz where those are padded and trimmed, and P 20 ms: profiles reach further."""


def profiles(
    inputs: Iterable[StageTensor],
    rates: Mapping[str, AxisRate],
    buckets: Iterable[Bucket],
    max_batch_size: int,
) -> tuple[Profile, ...]:
    """Optimisation profiles of a stage, one for each bucket.

    Args:
        inputs: tensors of the ONNX file, states included.
        rates: by the symbol of the axis.
        buckets: in the order in which configs list them.
        max_batch_size: largest batch of the model.
    """
    tensors = tuple(inputs)

    def shapes(bucket: Bucket) -> dict[str, ShapeRange]:
        shortest, typical, longest = bucket.seconds
        smallest = {symbol: rate.size(shortest) for symbol, rate in rates.items()}
        usual = {symbol: rate.size(typical) for symbol, rate in rates.items()}
        largest = {symbol: rate.size(longest, padded=True) for symbol, rate in rates.items()}
        batch = min(bucket.batch, max_batch_size)
        return {
            tensor.name: ShapeRange(
                tensor.shape(1, smallest), tensor.shape(batch, usual), tensor.shape(max_batch_size, largest)
            )
            for tensor in tensors
        }

    return tuple(Profile(bucket.name, shapes(bucket)) for bucket in buckets)


def graphs(
    inputs: Iterable[StageTensor], rates: Mapping[str, AxisRate], max_batch_size: int
) -> tuple[Graph, ...]:
    """CUDA graphs of a stage that live streams run; they name the states too, as Triton wants it."""
    tensors = tuple(inputs)
    made = []
    for seconds in GRAPH_SECONDS:
        sizes = {symbol: rate.size(seconds) for symbol, rate in rates.items()}
        shapes = {tensor.name: tensor.shape(1, sizes)[1:] for tensor in tensors}
        made += [Graph(batch, shapes) for batch in GRAPH_BATCHES if batch <= max_batch_size]
    return tuple(made)
