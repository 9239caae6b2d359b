"""What the exporter knows of a stage: its module and the names and axes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autovoice_export.config_types import NUMPY_TYPES, VARIABLE, DataType, TensorConfig

if TYPE_CHECKING:  # plans are built where there is no PyTorch
    from torch import Tensor, nn

STATE_INPUT = "STATE_IN"
STATE_OUTPUT = "STATE_OUT"


@dataclass(frozen=True)
class Axis:
    """An axis whose length the request decides.

    Attributes:
        symbol: axes with one symbol have lengths in a fixed ratio.
        multiple: the length is this many times the symbol's value.
    """

    symbol: str
    multiple: int = 1

    def __str__(self) -> str:
        return self.symbol if self.multiple == 1 else f"{self.multiple}*{self.symbol}"


@dataclass(frozen=True)
class StageTensor:
    """One input or output of a stage.

    Attributes:
        name: as in the contract of the voice families, upper case.
        dims: axes behind the batch axis; a number is a fixed size.
        data_type: of its values.
    """

    name: str
    dims: tuple[int | Axis, ...]
    data_type: DataType = "FP32"

    def shape(self, batch: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with the batch axis for given values of the symbols."""
        return (batch, *(d if isinstance(d, int) else sizes[d.symbol] * d.multiple for d in self.dims))

    def zeros(self, batch: int, sizes: Mapping[str, int]) -> Tensor:
        """Zeros of that shape and type."""
        import torch

        return torch.from_numpy(np.zeros(self.shape(batch, sizes), NUMPY_TYPES[self.data_type]))

    def config(self) -> TensorConfig:
        """The tensor as a model config describes it."""
        dims = tuple(d if isinstance(d, int) else VARIABLE for d in self.dims)
        return TensorConfig(self.name, dims, self.data_type)


@dataclass(frozen=True)
class Stage:
    """A PyTorch module that becomes one model of the repository.

    Attributes:
        name: folder name.
        module: in evaluation mode; takes and returns exactly the tensors below, in order.
        inputs: tensors the module takes.
        outputs: tensors the module returns.
        runs_in_float64: whether the module can be run in float64, to see the rounding of its ONNX file alone.
    """

    name: str
    module: nn.Module
    inputs: tuple[StageTensor, ...]
    outputs: tuple[StageTensor, ...]
    runs_in_float64: bool = False

    @property
    def state_size(self) -> int:
        """Floats of ``STATE_IN``; 0 for a stage without state."""
        for tensor in self.inputs:
            if tensor.name == STATE_INPUT:
                (size,) = tensor.dims
                assert isinstance(size, int)
                return size
        return 0
