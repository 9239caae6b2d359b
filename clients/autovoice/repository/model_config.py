"""Triton's model configuration as typed values, read through Triton's own protobuf."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autovoice.errors import RepositoryError

_NUMPY_TYPES: Mapping[str, npt.DTypeLike] = {
    "TYPE_BOOL": np.bool_,
    "TYPE_UINT8": np.uint8,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
}
ONNX_BACKEND = "onnxruntime"
ENSEMBLE = "ensemble"
DEFAULT_MODEL_FILENAME = "model.onnx"


@dataclass(frozen=True)
class TensorSpec:
    """One input, output or state tensor. `dims` is without the batch axis; -1 is any length."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int, ...]


@dataclass(frozen=True)
class StateSpec:
    """One implicit state: what a request writes to `output_name`, the next one reads at `source.name`."""

    source: TensorSpec
    output_name: str


@dataclass(frozen=True)
class StepSpec:
    """One step of an ensemble; the maps go from the model's tensor names to the ensemble's."""

    model: str
    version: int
    input_map: Mapping[str, str]
    output_map: Mapping[str, str]


@dataclass(frozen=True)
class ModelSpec:
    """One model of a repository.

    Attributes:
        name: the model's name, which is its folder's.
        kind: `"onnxruntime"` or `"ensemble"`.
        max_batch_size: 0 when the model has no batch axis.
        inputs: in the config's order.
        outputs: in the config's order.
        states: implicit states of a sequence model.
        steps: of an ensemble.
        parameters: the config's free-form strings.
        version: the version served, 0 when unknown.
        versions: all versions present, ascending.
        model_file: the ONNX file of `version`, None for an ensemble.
    """

    name: str
    kind: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...] = ()
    steps: tuple[StepSpec, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    version: int = 0
    versions: tuple[int, ...] = ()
    model_file: Path | None = None

    def input(self, name: str) -> TensorSpec:
        """The input called `name`.

        Raises:
            RepositoryError: when there is none.
        """
        for tensor in self.inputs:
            if tensor.name == name:
                return tensor
        raise RepositoryError(f"model {self.name} has no input {name}; rebuild the repository")

    def integer_parameter(self, name: str) -> int:
        """The config parameter `name` as a positive integer.

        Raises:
            RepositoryError: when it is missing or no such number.
        """
        text = self.parameters.get(name, "")
        if not text.isdecimal() or int(text) == 0:
            raise RepositoryError(
                f"model {self.name} has parameter {name} = {text!r} where a positive integer belongs; "
                "rebuild the repository"
            )
        return int(text)


@lru_cache(maxsize=1)
def protobuf_module() -> Any:
    """Triton's `model_config_pb2`, without importing the package `tritonclient.grpc` around it.

    That package's `__init__` loads grpc and the whole client, some 150 ms that the embedded runtime has no
    use for. The generated module needs only protobuf, so it is loaded from its file under a name of our
    own; protobuf registers descriptors by content, so the real import still works before or after.
    """
    imported = sys.modules.get("tritonclient.grpc.model_config_pb2")
    if imported is not None:
        return imported
    package = importlib.util.find_spec("tritonclient")
    for folder in (package.submodule_search_locations or ()) if package else ():
        path = Path(folder) / "grpc" / "model_config_pb2.py"
        spec = importlib.util.spec_from_file_location("autovoice._triton_model_config_pb2", path)
        if path.is_file() and spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise RepositoryError("the package tritonclient is not installed; run `pip install tritonclient`")


def parse_config(text: str, origin: str) -> Any:
    """Parse protobuf text into a `ModelConfig` message.

    Args:
        text: content of a config.pbtxt.
        origin: its path, for errors.

    Raises:
        RepositoryError: with the parser's line and column.
    """
    from google.protobuf import text_format

    message = protobuf_module().ModelConfig()
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise RepositoryError(
            f"{origin} is not a Triton model config ({error}); rebuild the repository"
        ) from error


def read_config(path: Path) -> Any:
    """Read a `.pbtxt` file as a `ModelConfig` message.

    Raises:
        RepositoryError: the file is missing, cannot be read, or is no model config.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RepositoryError(f"{path} is missing; rebuild the repository") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path} cannot be read ({error}); rebuild the repository") from error
    return parse_config(text, str(path))


def dump_config(config: Any) -> str:
    """Text of a `ModelConfig` message; equal messages give equal text."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config, use_short_repeated_primitives=True))


def spec_from_config(config: Any, origin: str) -> ModelSpec:
    """Turn a `ModelConfig` message into a `ModelSpec` without version and file.

    Raises:
        RepositoryError: for a backend, tensor type or feature that this runtime does not execute.
    """
    is_ensemble = config.platform == ENSEMBLE or config.HasField("ensemble_scheduling")
    if not is_ensemble and config.backend != ONNX_BACKEND and config.platform != "onnxruntime_onnx":
        raise RepositoryError(
            f"{origin} asks for backend {config.backend or config.platform!r}; the embedded runtime "
            f"executes {ONNX_BACKEND!r} and "
            f"ensembles"
        )
    if config.sequence_batching.control_input:
        raise RepositoryError(
            f"{origin} uses sequence control inputs, which the embedded runtime does not feed; use implicit "
            "state"
        )
    for tensor in (*config.input, *config.output):
        if tensor.HasField("reshape"):
            raise RepositoryError(
                f"{origin} reshapes {tensor.name}, which the embedded runtime does not do; give its real dims"
            )
    return ModelSpec(
        name=config.name,
        kind=ENSEMBLE if is_ensemble else ONNX_BACKEND,
        max_batch_size=config.max_batch_size,
        inputs=tuple(_tensor(item.name, item.data_type, item.dims, origin) for item in config.input),
        outputs=tuple(_tensor(item.name, item.data_type, item.dims, origin) for item in config.output),
        states=tuple(_state(item, origin) for item in config.sequence_batching.state),
        steps=tuple(
            StepSpec(step.model_name, step.model_version, dict(step.input_map), dict(step.output_map))
            for step in config.ensemble_scheduling.step
        ),
        parameters={name: value.string_value for name, value in config.parameters.items()},
    )


def _state(state: Any, origin: str) -> StateSpec:
    source = _tensor(state.input_name, state.data_type, state.dims, origin)
    if any(dim < 0 for dim in source.dims):
        raise RepositoryError(
            f"{origin} gives state {source.name} the dims {list(source.dims)}; a state needs fixed dims"
        )
    if any(not initial.zero_data for initial in state.initial_state):
        raise RepositoryError(
            f"{origin} starts state {source.name} from a file; the embedded runtime starts from zeros"
        )
    return StateSpec(source, state.output_name)


def _tensor(name: str, data_type: int, dims: Any, origin: str) -> TensorSpec:
    type_name = protobuf_module().DataType.Name(data_type)
    if type_name not in _NUMPY_TYPES:
        raise RepositoryError(
            f"{origin} gives {name} the type {type_name}; use one of {', '.join(_NUMPY_TYPES)}"
        )
    return TensorSpec(name, np.dtype(_NUMPY_TYPES[type_name]), tuple(int(dim) for dim in dims))
