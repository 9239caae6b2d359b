"""ONNX Runtime sessions: made once per file, device and thread count, shared by all pipelines of the
process."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy.typing as npt

from autovoice.errors import (
    ConfigurationError,
    DeviceError,
    InferenceError,
    InferenceTimeoutError,
    RepositoryError,
)
from autovoice.repository.file_check import check_file
from autovoice.repository.model_config import ModelSpec

logger = logging.getLogger(__name__)

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
_ORT_ERROR_LEVEL = 3


def make_session(
    model: str | os.PathLike[str] | bytes,
    *,
    device: str = "cpu",
    threads: int = 1,
    configure: Callable[[Any], None] | None = None,
) -> Any:
    """Make an `onnxruntime.InferenceSession`; every session of the project is made here.

    Args:
        model: path of an ONNX file, or its bytes.
        device: `"cpu"` or `"cuda"`.
        threads: ONNX Runtime threads; 0 for as many as there are cores.
        configure: changes the `SessionOptions` before they are used.

    Raises:
        Exception: as ONNX Runtime raises it; its exception classes have no common public base.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ORT_ERROR_LEVEL
    # Stages run one after another, each with its own pool: threads that spin for work would steal cores
    # from the next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if configure is not None:
        configure(options)
    providers = [CUDA_PROVIDER, CPU_PROVIDER] if device == "cuda" else [CPU_PROVIDER]
    source = model if isinstance(model, bytes) else os.fspath(model)
    return onnxruntime.InferenceSession(source, options, providers=providers)


class OnnxSession:
    """One ONNX file loaded on one device.

    Attributes:
        device: `"cpu"` or `"cuda"`.
    """

    def __init__(self, path: Path, device: str, threads: int) -> None:
        try:
            self._session = make_session(path, device=device, threads=threads)
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
    check_file(spec, session.inputs, session.outputs)
    return session


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
