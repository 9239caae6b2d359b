"""ONNX Runtime sessions: made once per file, device and thread count, shared by all pipelines of the
process."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy.typing as npt

from autovoice.engines import rtx
from autovoice.engines.engine import time_limit
from autovoice.engines.gpus import gpu_count
from autovoice.errors import (
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
Configure = Callable[[Any], None]
"""Changes the `SessionOptions` of a session before they are used."""
_ORT_ERROR_LEVEL = 3


def make_session(
    model: str | os.PathLike[str] | bytes,
    *,
    device: str = "cpu",
    threads: int = 1,
    configure: Configure | None = None,
    card: rtx.CardSession | None = None,
) -> Any:
    """Make an `onnxruntime.InferenceSession`; every session of the project is made here.

    Args:
        model: path of an ONNX file, or its bytes.
        device: `"cpu"`, `"cuda"` or `"cuda:N"`.
        threads: ONNX Runtime threads; 0 for as many as there are cores.
        configure: changes the `SessionOptions` before they are used.
        card: of TensorRT for RTX; stands in for `device`.

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
    source = model if isinstance(model, bytes) else os.fspath(model)
    if card is not None:
        options.add_provider_for_devices([card.card], card.options)
        return onnxruntime.InferenceSession(source, options)
    return onnxruntime.InferenceSession(source, options, providers=providers_for(device))


def _session_on_card(spec: ModelSpec, device: str, threads: int, configure: Configure | None) -> Any:
    assert spec.model_file is not None
    plain = make_session(spec.model_file.resolve(), threads=threads, configure=configure)
    card = rtx.prepare(spec, device, plain.get_inputs())
    return plain if card is None else make_session(card.file, threads=threads, configure=configure, card=card)


def providers_for(device: str) -> list[Any]:
    """What ONNX Runtime calls `"cpu"`, `"cuda"` and `"cuda:N"`: providers, most wanted first."""
    if device == "cpu":
        return [CPU_PROVIDER]
    return [(CUDA_PROVIDER, {"device_id": _cuda_index(device)}), CPU_PROVIDER]


class OnnxSession:
    """One ONNX file loaded on one device.

    Args:
        spec: the model's config.
        device: `"cpu"`, `"cuda"`, `"cuda:N"`, `"rtx"` or `"rtx:N"`.
        threads: ONNX Runtime threads.
        configure: changes the `SessionOptions` before they are used.

    Raises:
        DeviceError: when the GPU cannot hold the model, or does not start.
        RepositoryError: when the file is no ONNX model.
    """

    def __init__(
        self, spec: ModelSpec, device: str, threads: int, configure: Configure | None = None
    ) -> None:
        assert spec.model_file is not None
        path = spec.model_file.resolve()
        try:
            if device.startswith("rtx"):
                self._session = _session_on_card(spec, device, threads, configure)
            else:
                self._session = make_session(path, device=device, threads=threads, configure=configure)
        except DeviceError:
            raise
        except Exception as error:  # ONNX Runtime's exception classes have no common public base
            if device != "cpu":
                raise DeviceError(
                    f"{device} cannot hold {path} ({_first_line(error)}); free the GPU or use device='cpu'"
                ) from error
            raise RepositoryError(
                f"model file {path} is not a loadable ONNX model ({_first_line(error)}); rebuild the "
                "repository"
            ) from error
        if device.startswith("cuda") and CUDA_PROVIDER not in self._session.get_providers():
            raise DeviceError(
                f"ONNX Runtime offers CUDA but could not start it on {device}; check the driver and CUDA "
                "libraries or use device='cpu'"
            )
        self._device = device
        self._graphs: dict[tuple[Any, ...], int] | None = (
            {} if device.startswith("rtx") and spec.states else None
        )

    @property
    def inputs(self) -> list[Any]:
        """ONNX Runtime's descriptions of the inputs (name, type, shape)."""
        return list(self._session.get_inputs())

    @property
    def outputs(self) -> list[Any]:
        """ONNX Runtime's descriptions of the outputs (name, type, shape)."""
        return list(self._session.get_outputs())

    def end_profiling(self) -> Path:
        """The file that ONNX Runtime's profiler has written, where `configure` enabled it."""
        return Path(self._session.end_profiling())

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
        import onnxruntime

        options = onnxruntime.RunOptions()
        if self._graphs is not None:
            shapes = tuple(value.shape for value in feeds.values())
            number = self._graphs.setdefault(shapes, len(self._graphs))
            options.add_run_config_entry(*rtx.graph_entry(number))
        try:
            with time_limit(timeout, partial(setattr, options, "terminate", True)):
                return list(self._session.run(list(names), feeds, options))
        except TimeoutError as error:
            raise InferenceTimeoutError(
                f"{model} passed its time limit; raise timeout_seconds or send less audio"
            ) from error
        except Exception as error:  # ONNX Runtime's exception classes have no common public base
            raise InferenceError(
                f"{model} failed on {self._device} ({_first_line(error)}); see the log for the full cause"
            ) from error


_sessions: WeakValueDictionary[tuple[Any, ...], OnnxSession] = WeakValueDictionary()
_locks: dict[tuple[Any, ...], threading.Lock] = {}
_registry_lock = threading.Lock()


def load_session(spec: ModelSpec, *, device: str, threads: int) -> OnnxSession:
    """Return the shared session of a model, made at the first call and compared with the model's config every
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
            session = OnnxSession(spec, device, threads)
            _sessions[key] = session
            logger.debug("loaded %s on %s with %d threads", path, device, threads)
    check_file(spec, session.inputs, session.outputs)
    return session


def available_devices() -> list[str]:
    """Devices here: `"cpu"`, `"cuda"` where ONNX Runtime has its CUDA provider, `"rtx"` with such a card."""
    import onnxruntime

    found = ["cpu"]
    if CUDA_PROVIDER in onnxruntime.get_available_providers():
        found.append("cuda")
    try:
        rtx.cards()
    except DeviceError as error:
        logger.debug("no device 'rtx': %s", error)
    else:
        found.append("rtx")
    return found


def resolve_device(device: str) -> str:
    """Turn `"auto"` into a device, and check that a GPU is there as far as can be told without it.

    Raises:
        DeviceError: when ONNX Runtime does not offer the device, or this machine has no GPU of that number.
        ConfigurationError: for an unknown device.
    """
    from autovoice.config import check_device  # not at the top: Triton's backend processes do without

    check_device(device)
    if device == "cpu":
        return "cpu"
    if device.startswith("rtx"):
        rtx.card(device)
        return device
    offered = available_devices()
    if device == "auto":
        return next(name for name in ("rtx", "cuda", "cpu") if name in offered)
    if "cuda" not in offered:
        raise DeviceError(
            f"device {device!r} is not offered by this ONNX Runtime; install onnxruntime-gpu or use "
            "device='cpu'"
        )
    count = gpu_count()
    if count is not None and _cuda_index(device) >= count:
        there = ", ".join(f"'cuda:{index}'" for index in range(count)) or "no GPU"
        raise DeviceError(f"device {device!r} is not there, but {there}; use one of those or device='cpu'")
    return device


def _cuda_index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
