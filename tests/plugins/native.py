"""Builds the native code of the ops and runs it on NumPy arrays."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from filelock import FileLock
from numpy.typing import NDArray

from autovoice_plugins.kernels import (
    FLOAT16,
    FLOAT32,
    WAVEFORMS,
    HarmonicSourceOptions,
    KernelLibrary,
    PitchYinOptions,
    Samples,
    SpectralSynthOptions,
)
from autovoice_plugins.onnx_export import OPS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "plugins" / "autovoice_plugins"
BUILD = ROOT / "build" / "tests"

FEW_ARCHITECTURES = "75-real;90-real;120"
"""The oldest, the one with most installations, the newest with PTX: `make plugins` builds all."""

_OPTIONS = {
    "PitchYin": PitchYinOptions,
    "HarmonicSource": HarmonicSourceOptions,
    "SpectralSynth": SpectralSynthOptions,
}
FLOAT_ONLY = ("F0", "PERIODICITY", "STATE_IN", "STATE_OUT")
"""Pitch, phase and state are float32 whatever the samples are."""

Array = NDArray[Any]


def compiled(name: str, sources: Sequence[Path], *flags: str, inputs: Sequence[Path] = ()) -> Path:
    """Returns a shared library made by the C++ compiler alone, built once for what it is made of."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler (c++)")
    command = [compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", *flags]
    digest = hashlib.sha256(" ".join(command).encode())
    for file in (*sources, *inputs):
        digest.update(file.read_bytes())
    library = BUILD / f"{name}-{digest.hexdigest()[:12]}.so"
    BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILD / f"{name}.lock"):
        if not library.exists():
            partial = library.with_suffix(".partial")
            sources_as_cpp = [text for file in sources for text in ("-x", "c++", str(file))]
            done = subprocess.run(
                [*command, *sources_as_cpp, "-o", str(partial)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            partial.rename(library)
    return library


@lru_cache(maxsize=1)
def host_kernels() -> KernelLibrary:
    """Returns the kernels for the CPU."""
    sources = [SOURCES / "device" / "launch.cu", *sorted(SOURCES.glob("*/kernel.cu"))]
    headers = [*SOURCES.glob("*.h"), *SOURCES.glob("*/*.h")]
    # Fibers leave a stack by longjmp, which fortified functions take for an error.
    return KernelLibrary(compiled("kernels_host", sources, "-U_FORTIFY_SOURCE", inputs=sorted(headers)))


def find_cmake() -> str:
    """Returns CMake, of this environment or of the system; skips the test where there is none."""
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=here)
    if cmake is None:
        pytest.skip("cmake is neither in this environment nor on the PATH")
    return cmake


def tensorrt_includes() -> list[Path]:
    """Returns the folders of TensorRT's headers: AUTOVOICE_TENSORRT_INCLUDE, separated by colons."""
    given = os.environ.get("AUTOVOICE_TENSORRT_INCLUDE", "")
    return [Path(folder) for folder in given.split(":") if folder]


@lru_cache(maxsize=1)
def cuda_build() -> Path:
    """Returns the folder of the CMake build: kernels, and plugins where TensorRT's headers are."""
    cmake = find_cmake()
    if shutil.which("c++") is None or shutil.which("nvcc") is None:
        pytest.skip("c++ or nvcc is not on the PATH")
    folder = BUILD / "cmake"
    folder.mkdir(parents=True, exist_ok=True)
    includes = ";".join(str(path) for path in tensorrt_includes())
    configure = [cmake, "-S", str(ROOT / "plugins"), "-B", str(folder)]
    configure += [
        f"-DCMAKE_CUDA_ARCHITECTURES={FEW_ARCHITECTURES}",
        f"-DAUTOVOICE_TENSORRT_INCLUDE={includes}",
    ]
    with FileLock(BUILD / "cmake.lock"):
        for command in (configure, [cmake, "--build", str(folder), "--parallel", "2"]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


def require_gpu() -> None:
    """Skips the test where there is no CUDA device."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device, or PyTorch is built without CUDA")


class Memory(Protocol):
    """Where a library's arrays live."""

    def put(self, array: Array) -> tuple[int, Any]:
        """Returns the address of a copy, and what keeps it alive."""

    def take(self, owner: Any) -> Array:
        """Returns a copy of what `put` keeps."""

    @property
    def stream(self) -> int:
        """The stream on which copies are made."""


class HostMemory:
    """NumPy's own memory."""

    stream = 0

    def put(self, array: Array) -> tuple[int, Any]:
        copy = np.ascontiguousarray(array).copy()
        return copy.ctypes.data, copy

    def take(self, owner: Any) -> Array:
        return np.asarray(owner)


class CudaMemory:
    """The memory of the current CUDA device, by PyTorch."""

    @property
    def stream(self) -> int:
        return int(torch.cuda.current_stream().cuda_stream)

    def put(self, array: Array) -> tuple[int, Any]:
        tensor = torch.from_numpy(np.ascontiguousarray(array)).cuda()
        return tensor.data_ptr(), tensor

    def take(self, owner: Any) -> Array:
        return np.asarray(owner.cpu().numpy())


def output_shapes(name: str, arrays: Sequence[Array], attributes: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Returns the shape of every output."""
    first, hop = arrays[0].shape, attributes["hop"]
    if name == "PitchYin":
        frames = (first[0], first[1] // hop)
        return [frames, frames, arrays[1].shape]
    if name == "HarmonicSource":
        return [(first[0], first[1] * hop), (first[0], 2)]
    return [first, arrays[4].shape]


def options_of(name: str, attributes: Mapping[str, Any]) -> Any:
    """Returns the options structure of an op."""
    values = {**OPS[name].attributes, **attributes}
    if "waveform" in values:
        values["waveform"] = WAVEFORMS[values["waveform"]]
    return _OPTIONS[name](**values)


def prepared(name: str, arrays: Sequence[Array], dtype: Any) -> tuple[list[str], list[Array]]:
    """Returns the names of the inputs that are given, and the inputs in the types the kernels take."""
    names = list(OPS[name].inputs)[: len(arrays)]
    types = [np.float32 if key in FLOAT_ONLY else dtype for key in names]
    return names, [array.astype(kind) for array, kind in zip(arrays, types, strict=True)]


def run_kernels(
    library: KernelLibrary,
    memory: Memory,
    name: str,
    *arrays: Array,
    dtype: Any = np.float32,
    **attributes: Any,
) -> tuple[Array, ...]:
    """Runs an op by the C interface; outputs and workspace start as NaN.

    Args:
        library: The kernels.
        memory: Where they read and write.
        name: The op's ONNX name.
        *arrays: Its inputs, in ONNX order.
        dtype: Type of the samples, float32 or float16.
        **attributes: Those that differ from the defaults.
    """
    op, options = OPS[name].torch_name, options_of(name, attributes)
    names, inputs = prepared(name, arrays, dtype)
    shapes = output_shapes(name, inputs, {**OPS[name].attributes, **attributes})
    outputs = [
        np.full(shape, np.nan, np.float32 if key in FLOAT_ONLY else dtype)
        for key, shape in zip(OPS[name].outputs, shapes, strict=True)
    ]
    batch = inputs[0].shape[0]
    frames = inputs[0].shape[1] // (1 if name == "HarmonicSource" else options.hop)
    size = library.workspace_size(op, options, batch, frames)
    placed = [memory.put(array) for array in (*inputs, *outputs, np.full(size, 255, np.uint8))]

    def argument(key: str, address: int) -> Samples | int:
        kind = FLOAT16 if dtype == np.float16 else FLOAT32
        return address if key in FLOAT_ONLY else Samples(address, kind)

    keys = [*names, *OPS[name].outputs]
    arguments = [argument(key, address) for key, (address, _) in zip(keys, placed[:-1], strict=True)]
    if name == "HarmonicSource" and "NOISE" not in names:
        arguments.insert(2, Samples(None, FLOAT32))
    library.launch(op, options, batch, frames, *arguments, workspace=placed[-1][0], stream=memory.stream)
    return tuple(memory.take(owner) for _, owner in placed[len(inputs) : -1])
