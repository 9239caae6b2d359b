"""Requests and answers as both protocols carry them: the one mapping between arrays and Triton's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from autovoice.address import RELEASE_GONE, RELEASE_HEADER, SEQUENCE_HEADER
from autovoice.engines.engine import Sequence, Tensors

_DATATYPES: Mapping[str, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
_DTYPES = {datatype: np.dtype(name) for name, datatype in _DATATYPES.items()}

LOADING = "has no available versions"  # Triton's words for a model that is being loaded, or was unloaded


class FailureKind(Enum):
    """What a failure says about sending the request again."""

    UNREACHABLE = "unreachable"
    BUSY = "busy"
    BROKEN = "broken"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    UNKNOWN_MODEL = "unknown model"
    FORBIDDEN = "forbidden"
    GONE = "release gone"
    FOREIGN = "no answer of Triton's"


def refine_kind(kind: FailureKind, reason: str) -> FailureKind:
    """What Triton means where its status says something else.

    Args:
        kind: by the status of the protocol.
        reason: Triton's words.
    """
    if "protocol is restricted" in reason:  # over gRPC a wrong key is answered as a missing service
        return FailureKind.FORBIDDEN
    if LOADING in reason:  # the server loads the model, or ends and has unloaded it
        return FailureKind.UNREACHABLE
    if RELEASE_GONE in reason:  # over gRPC proxies have no status for it alone
        return FailureKind.GONE
    return kind


class TransportError(Exception):
    """A request that brought no answer.

    Attributes:
        kind: how it failed.
        reason: the server's or the connection's own words, one line.
    """

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True)
class Duration:
    """How often something happened, and the nanoseconds it took in all."""

    count: int
    ns: int

    @property
    def mean_ms(self) -> float:
        """Milliseconds it took on average, 0 where it never happened."""
        return self.ns / self.count / 1e6 if self.count else 0.0


DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class ModelStatistics:
    """What a server has done with a model since it was loaded.

    Attributes:
        name: the model's.
        version: the model's.
        inferences: how many items of batches it has been run on.
        executions: how many times it was run, 0 for ensembles.
        durations: by the names in `DURATIONS`.
    """

    name: str
    version: int
    inferences: int
    executions: int
    durations: Mapping[str, Duration]


@dataclass(frozen=True)
class WireTensor:
    """A tensor on its way: little-endian values in C order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True)
class WireRequest:
    """One inference request.

    Attributes:
        model: what to run.
        id: comes back with the answer and stands in the server's log.
        tensors: inputs.
        parameters: `sequence_id`, `sequence_start` and `sequence_end` where there is a sequence.
        headers: for a proxy that chooses the server by them.
    """

    model: str
    id: str
    tensors: tuple[WireTensor, ...]
    parameters: Mapping[str, int | bool]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WireResponse:
    """One answer.

    Attributes:
        id: of the request.
        tensors: outputs.
        version: of the model that answered, 0 when unknown.
    """

    id: str
    tensors: tuple[WireTensor, ...]
    version: int = 0


class Transport(Protocol):
    """One protocol. Thread safe."""

    def infer(self, request: WireRequest, timeout: float | None) -> WireResponse:
        """Send a request and wait for its answer, `timeout` seconds at most.

        Raises:
            TransportError: when there is none.
        """

    def models(self, timeout: float | None) -> dict[str, int]:
        """Newest version of every model that the server has, by name.

        Raises:
            TransportError: when there is no answer.
        """

    def model_config(self, model: str, timeout: float | None) -> Any:
        """The model's `ModelConfig` message.

        Raises:
            TransportError: when there is none.
        """

    def close(self) -> None:
        """Close all connections."""

    def ready(self, timeout: float | None) -> bool:
        """Whether the server calls itself ready: not while it loads a model or after one failed to load.

        Raises:
            TransportError: when there is no answer.
        """

    def model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether a model is ready.

        Raises:
            TransportError: when there is no answer.
        """

    def server_version(self, timeout: float | None) -> tuple[str, str]:
        """The server's name and version.

        Raises:
            TransportError: when there is no answer.
        """

    def statistics(self, timeout: float | None) -> list[ModelStatistics]:
        """What the server has done with each version of each model.

        Raises:
            TransportError: when there is no answer.
        """


def newest(models: Iterable[tuple[str, str | int]]) -> dict[str, int]:
    """The highest version by name of models listed with each version they have."""
    found: dict[str, int] = {}
    for name, version in models:
        found[name] = max(found.get(name, 0), int(version))
    return found


def parse_version(text: object) -> int:
    """The version of a model as an answer names it, 0 where it names none."""
    return int(text) if isinstance(text, str) and text.isdecimal() else 0


def encode(
    model: str, request_id: str, inputs: Tensors, sequence: Sequence | None, release: int | None = None
) -> WireRequest:
    """Turn arrays into a request, without copying those that are contiguous.

    Args:
        model: what to run.
        request_id: see `WireRequest`.
        inputs: by name.
        sequence: position in one, None for none.
        release: number of the release that has to answer, None for any.
    """
    tensors = []
    for name, value in inputs.items():
        values = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        data = memoryview(cast(Any, values.reshape(-1).view(np.uint8)))
        tensors.append(WireTensor(name, _DATATYPES[value.dtype.name], value.shape, data))
    parameters: dict[str, int | bool] = {}
    headers = {} if release is None else {RELEASE_HEADER: str(release)}
    if sequence is not None:
        headers[SEQUENCE_HEADER] = str(sequence.id)
        parameters = {
            "sequence_id": sequence.id,
            "sequence_start": sequence.start,
            "sequence_end": sequence.end,
        }
    return WireRequest(model, request_id, tuple(tensors), parameters, headers)


def decode(request: WireRequest, response: WireResponse) -> dict[str, npt.NDArray[Any]]:
    """Turn an answer into arrays of its own memory.

    Raises:
        TransportError: when it answers another request, or is no valid answer to any.
    """
    if response.id != request.id:
        raise TransportError(
            FailureKind.BROKEN, f"the answer to request {response.id!r} came back for {request.id!r}"
        )
    outputs = {}
    for tensor in response.tensors:
        dtype = _DTYPES.get(tensor.datatype)
        if dtype is None or len(tensor.data) != dtype.itemsize * int(np.prod(tensor.shape, dtype=np.int64)):
            raise TransportError(
                FailureKind.BROKEN,
                f"output {tensor.name} is {len(tensor.data)} bytes of {tensor.datatype} {list(tensor.shape)}",
            )
        outputs[tensor.name] = np.frombuffer(tensor.data, dtype).reshape(tensor.shape).copy()
    return outputs
