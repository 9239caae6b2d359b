"""ONNX Runtime sessions: made once per file, device and thread count, shared by all pipelines of the
process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from autovoice.errors import (
    ConfigurationError,
    DeviceError,
    InferenceError,
    InferenceTimeoutError,
    RepositoryError,
)
from autovoice.repository.model_config import ModelSpec, TensorSpec

logger = logging.getLogger(__name__)

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
_ORT_ERROR_LEVEL = 3
_ONNX_TYPES = {
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}


class OnnxSession:
    """One ONNX file loaded on one device.

    Attributes:
        device: `"cpu"` or `"cuda"`.
    """

    def __init__(self, path: Path, device: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ORT_ERROR_LEVEL
        # Stages run one after another, each with its own pool: threads that spin for work would steal cores
        # from the next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = [CUDA_PROVIDER, CPU_PROVIDER] if device == "cuda" else [CPU_PROVIDER]
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exception classes have no common public base
            if device == "cuda":
                raise DeviceError(
                    f"CUDA cannot hold {path} ({_first_line(error)}); free the GPU or use device='cpu'"
                ) from error
            raise RepositoryError(
                f"model file {path} is not a loadable ONNX model ({_first_line(error)}); rebuild the "
                "repository"
            ) from error
        if device == "cuda" and CUDA_PROVIDER not in self._session.get_providers():
            raise DeviceError(
                "ONNX Runtime offers CUDA but could not start it; check the driver and CUDA libraries or "
                "use device='cpu'"
            )
        self.device = device

    @property
    def inputs(self) -> list[Any]:
        """ONNX Runtime's descriptions of the inputs (name, type, shape)."""
        return list(self._session.get_inputs())

    @property
    def outputs(self) -> list[Any]:
        """ONNX Runtime's descriptions of the outputs (name, type, shape)."""
        return list(self._session.get_outputs())

    def run(
        self, model: str, names: Sequence[str], feeds: dict[str, npt.NDArray[Any]], timeout: float | None
    ) -> list[npt.NDArray[Any]]:
        """Run the model once.

        Args:
            model: name for errors.
            names: outputs wanted.
            feeds: every input by name.
            timeout: seconds left, None for no limit.

        Raises:
            InferenceTimeoutError: when `timeout` passed first.
            InferenceError: when ONNX Runtime failed.
        """
        if timeout is None:
            return self._run(model, names, feeds, None)
        import onnxruntime

        options = onnxruntime.RunOptions()
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            options.terminate = True

        timer = threading.Timer(max(timeout, 0.0), stop)
        timer.daemon = True
        timer.start()
        try:
            return self._run(model, names, feeds, options)
        except InferenceError as error:
            if expired.is_set():
                raise InferenceTimeoutError(
                    f"{model} passed its time limit; raise timeout_seconds or send less audio"
                ) from error
            raise
        finally:
            timer.cancel()

    def _run(
        self, model: str, names: Sequence[str], feeds: dict[str, npt.NDArray[Any]], options: Any
    ) -> list[npt.NDArray[Any]]:
        try:
            return list(self._session.run(list(names), feeds, options))
        except Exception as error:  # ONNX Runtime's exception classes have no common public base
            raise InferenceError(
                f"{model} failed on {self.device} ({_first_line(error)}); see the log for the full cause"
            ) from error


_sessions: WeakValueDictionary[tuple[Any, ...], OnnxSession] = WeakValueDictionary()
_locks: dict[tuple[Any, ...], threading.Lock] = {}
_registry_lock = threading.Lock()


def load_session(spec: ModelSpec, *, device: str, threads: int) -> OnnxSession:
    """Return the shared session of a model, made at the first call and held against the model's config every
    time.

    Raises:
        RepositoryError: when the file is corrupt or its tensors differ from the config's.
        DeviceError: when CUDA cannot run it.
    """
    if spec.model_file is None:
        raise RepositoryError(f"model {spec.name} has no ONNX file; only ensembles go without")
    path = spec.model_file.resolve()
    status = path.stat()
    # Time and size make a replaced file a new session; models that link to the same file share one.
    key = (path, status.st_mtime_ns, status.st_size, device, threads)
    with _registry_lock:
        lock = _locks.setdefault(key, threading.Lock())
    with lock:
        session = _sessions.get(key)
        if session is None:
            session = OnnxSession(path, device, threads)
            _sessions[key] = session
            logger.debug("loaded %s on %s with %d threads", path, device, threads)
    check_session(spec, session)
    return session


def check_session(spec: ModelSpec, session: OnnxSession) -> None:
    """Hold a config against the file it describes.

    Raises:
        RepositoryError: naming the first tensor that is missing, extra, or of another type or shape.
    """
    expected_inputs = [*spec.inputs, *(state.source for state in spec.states)]
    expected_outputs = [
        *spec.outputs,
        *(TensorSpec(s.output_name, s.source.dtype, s.source.dims) for s in spec.states),
    ]
    for kind, expected, found in (
        ("input", expected_inputs, session.inputs),
        ("output", expected_outputs, session.outputs),
    ):
        by_name = {node.name: node for node in found}
        for tensor in expected:
            node = by_name.pop(tensor.name, None)
            if node is None:
                present = ", ".join(item.name for item in found)
                raise RepositoryError(
                    f"config of {spec.name} names {kind} {tensor.name}, but {spec.model_file} has "
                    f"{present}; make them match"
                )
            _check_tensor(spec, kind, tensor, node)
        if by_name and kind == "input":
            raise RepositoryError(
                f"{spec.model_file} needs {kind} {min(by_name)}, which the config of {spec.name} lacks; add "
                "it"
            )


def _check_tensor(spec: ModelSpec, kind: str, tensor: TensorSpec, node: Any) -> None:
    if _ONNX_TYPES.get(node.type) != tensor.dtype:
        raise RepositoryError(
            f"config of {spec.name} gives {kind} {tensor.name} the type {tensor.dtype}, but "
            f"{spec.model_file} has {node.type}; make them "
            f"match"
        )
    expected = (-1, *tensor.dims) if spec.max_batch_size else tensor.dims
    # Symbolic axes of the file fit anything; fixed ones must be promised by the config too.
    fits = len(node.shape) == len(expected) and all(
        not isinstance(axis, int) or axis == dim for axis, dim in zip(node.shape, expected, strict=True)
    )
    if not fits:
        raise RepositoryError(
            f"config of {spec.name} gives {kind} {tensor.name} the dims {list(expected)} (batch first), but "
            f"{spec.model_file} has "
            f"{list(node.shape)}; make them match"
        )


def available_devices() -> list[str]:
    """Devices ONNX Runtime offers here: `"cpu"`, and `"cuda"` where its CUDA provider is installed."""
    import onnxruntime

    return ["cpu", "cuda"] if CUDA_PROVIDER in onnxruntime.get_available_providers() else ["cpu"]


def resolve_device(device: str) -> str:
    """Turn `"auto"` into a device.

    Raises:
        DeviceError: when `"cuda"` is asked for and ONNX Runtime does not offer it.
        ConfigurationError: for an unknown device.
    """
    if device == "cpu":
        return "cpu"
    if device not in ("auto", "cuda"):
        raise ConfigurationError(f"device is {device!r}; use 'auto', 'cuda' or 'cpu'")
    offered = available_devices()
    if "cuda" in offered:
        return "cuda"
    if device == "cuda":
        raise DeviceError(
            "device 'cuda' is not offered by this ONNX Runtime; install onnxruntime-gpu or use device='cpu'"
        )
    return "cpu"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
