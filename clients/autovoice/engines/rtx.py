"""TensorRT for RTX as a device: ONNX Runtime's plugin execution provider for GeForce RTX and RTX PRO cards.

The package ``onnxruntime-ep-nv-tensorrt-rtx-cu13`` brings the provider and TensorRT for RTX. Nothing of it is
loaded where there is no driver. It has not run on a card yet: tested is everything up to the driver.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from autovoice.atomic import atomic_path
from autovoice.errors import DeviceError
from autovoice.repository.model_config import ModelSpec, read_config
from autovoice.repository.plans import CONFIG_NAME, Shape, parse_profile, profile_texts, sha256

logger = logging.getLogger(__name__)

PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
PROVIDER = "NvTensorRTRTXExecutionProvider"
STREAM_FRAMES = (1, 2, 1000)
"""Shortest, typical and longest chunk of a stream model without profiles of its own, in frames of 10 ms."""

_lock = threading.Lock()
_registered = False

Ranges = Mapping[str, tuple[Shape, Shape, Shape]]


def cards() -> list[Any]:
    """The cards of this machine, as ONNX Runtime's `OrtEpDevice`.

    Raises:
        DeviceError: there is none, or the driver or the package is missing.
    """
    global _registered
    import onnxruntime

    with _lock:
        if not _registered:
            _require_package_and_driver()
            provider = importlib.import_module(PACKAGE)
            try:
                onnxruntime.register_execution_provider_library(PROVIDER, provider.get_library_path())
            except Exception as error:  # ONNX Runtime's exception classes have no common public base
                reason = (str(error).strip().splitlines() or ["no reason given"])[0]
                raise DeviceError(
                    f"TensorRT for RTX cannot be loaded ({reason}); install NVIDIA's driver 580 or later and "
                    "`pip install -U 'autovoice[rtx]'`, or use device='cpu'"
                ) from error
            _registered = True
        found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]
    if not found:
        raise DeviceError(
            "TensorRT for RTX sees no card; it runs on GeForce RTX and RTX PRO from the 30 series on: use "
            "device='cuda' or device='cpu'"
        )
    return found


def _require_package_and_driver() -> None:
    """Looks before hundreds of megabytes are loaded: `device="auto"` asks everywhere.

    Raises:
        DeviceError: one of them is missing.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise DeviceError(
            "device 'rtx' needs a package that is not installed; run `pip install 'autovoice[rtx]'` or use "
            "device='cpu'"
        )
    driver = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        ctypes.CDLL(driver)
    except OSError:
        raise DeviceError(
            f"there is no NVIDIA driver for device 'rtx' ({driver} cannot be opened); install driver 580 or "
            "later, start a container with --gpus all, or use device='cpu'"
        ) from None


def card(device: str) -> Any:
    """The card of `"rtx"` or `"rtx:N"`.

    Raises:
        DeviceError: it is not there.
    """
    found, index = cards(), int(device.partition(":")[2] or 0)
    if index >= len(found):
        there = ", ".join(f"'rtx:{number}'" for number in range(len(found)))
        raise DeviceError(f"device {device!r} is not there, but {there}; use one of those or device='cpu'")
    return found[index]


@dataclass(frozen=True)
class CardSession:
    """What a session of a model on a card is made of.

    Attributes:
        file: the model with its custom ops expanded.
        card: ONNX Runtime's `OrtEpDevice`.
        options: of the provider.
    """

    file: Path
    card: Any
    options: dict[str, str]


def prepare(spec: ModelSpec, device: str, inputs: Sequence[Any]) -> CardSession | None:
    """Makes ready a model for a card; None for one that stays on the CPU: padding and trimming gain nothing.

    The first session of a file compiles for the card, which takes up to a minute; the result is kept in the
    user's cache folder.

    Args:
        spec: the model.
        device: `"rtx"` or `"rtx:N"`.
        inputs: ONNX Runtime's descriptions of the file's inputs.

    Raises:
        DeviceError: no such card.
    """
    assert spec.model_file is not None
    chosen = card(device)
    ranges = profile(spec, inputs)
    if ranges is None:
        return None
    folder = cache_folder(spec.model_file, card_name(chosen))
    expanded = folder / "expanded.onnx"
    if not expanded.exists():
        folder.mkdir(parents=True, exist_ok=True)
        expand(spec.model_file, expanded)
        logger.warning("compiling %s for %s: once, up to a minute", spec.name, card_name(chosen))
    return CardSession(expanded, chosen, provider_options(ranges, folder, stream=bool(spec.states)))


def card_name(chosen: Any) -> str:
    """A card's name as its driver gives it, or its maker's number for it."""
    described = dict(chosen.ep_metadata)
    return str(described.get("Description") or described.get("name") or chosen.device.device_id)


def cache_folder(file: Path, name: str) -> Path:
    """Where what is compiled of a file for a card is kept; each file, version and card has its own."""
    import onnxruntime

    package = importlib.import_module(PACKAGE)
    key = "\n".join((sha256(file), str(package.__version__), onnxruntime.__version__, name))
    digest = hashlib.sha256(key.encode()).hexdigest()[:24]
    return platformdirs.user_cache_path("autovoice") / "rtx" / digest


def expand(file: Path, target: Path) -> None:
    """Writes a model with the bodies of the custom ops in place of their nodes: there are no plugins.

    ONNX Runtime expands them itself, and can write what it has made of a model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with atomic_path(target) as partial:
        options.optimized_model_filepath = os.fspath(partial)
        onnxruntime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])


def provider_options(ranges: Ranges, folder: Path, *, stream: bool) -> dict[str, str]:
    """Options of the provider: a model's shapes, where compiled kernels are kept, CUDA graphs for streams."""
    keys = ("nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_profile_max_shapes")
    shapes = {
        key: ";".join(f"{name}:{'x'.join(map(str, shape[position]))}" for name, shape in ranges.items())
        for position, key in enumerate(keys)
    }
    return {
        **shapes,
        "nv_runtime_cache_path": os.fspath(folder),
        "enable_cuda_graph": "1" if stream else "0",
    }


def graph_entry(number: int) -> tuple[str, str]:
    """Option of a run that tells CUDA graphs apart: each is captured for shapes of its own."""
    return "cuda_graph_annotation_id", str(number)


def profile(spec: ModelSpec, inputs: Sequence[Any]) -> Ranges | None:
    """Shapes that a model must take, batch axis included, for each input; None for one that stays on the CPU.

    Args:
        spec: the model.
        inputs: ONNX Runtime's descriptions of the file's inputs; open axes have names such as ``240*F``.
    """
    assert spec.model_file is not None
    path = spec.model_file.parent.parent / "configs" / f"{CONFIG_NAME}.pbtxt"
    if path.is_file():
        return _widest([parse_profile(text)[1] for text in profile_texts(read_config(path))])
    if not spec.states:
        return None
    batches = (1, 1, max(1, spec.max_batch_size))

    def shape(dims: Sequence[Any], position: int) -> Shape:
        sizes = [batches[position]]
        for dim in dims[1:]:
            multiple = dim if isinstance(dim, int) else int(str(dim).rpartition("*")[0] or 1)
            sizes.append(dim if isinstance(dim, int) else multiple * STREAM_FRAMES[position])
        return tuple(sizes)

    return {item.name: (shape(item.shape, 0), shape(item.shape, 1), shape(item.shape, 2)) for item in inputs}


def _widest(profiles: Sequence[Ranges]) -> dict[str, tuple[Shape, Shape, Shape]]:
    """One profile that holds all, typical as the first: a session of the provider has one."""
    return {
        name: (
            tuple(min(sizes) for sizes in zip(*(item[name][0] for item in profiles), strict=True)),
            profiles[0][name][1],
            tuple(max(sizes) for sizes in zip(*(item[name][2] for item in profiles), strict=True)),
        )
        for name in profiles[0]
    }
