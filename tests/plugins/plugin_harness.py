"""The plugin library as TensorRT would drive it, without TensorRT: `harness.cpp` in Python."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native import FLOAT_ONLY, ROOT, Memory, compiled, cuda_build, output_shapes, prepared, tensorrt_includes
from numpy.typing import NDArray

from autovoice_plugins.onnx_export import OPS

FLOAT, HALF, INT32_TYPE = 0, 1, 3  # nvinfer1::DataType
LINEAR, CHW2 = 0, 1  # nvinfer1::TensorFormat
FLOAT32_FIELD, FLOAT64_FIELD, INT32_FIELD, CHAR_FIELD, INT64_FIELD = 1, 2, 5, 6, 10  # PluginFieldType


class Tensor(Structure):
    """Rank, sizes, type and format of a tensor."""

    _fields_ = (("rank", c_int32), ("sizes", c_int64 * 4), ("type", c_int32), ("format", c_int32))


class Field(Structure):
    """A plugin field with its bytes."""

    _fields_ = (("name", c_char_p), ("type", c_int32), ("length", c_int32), ("data", c_void_p))


def tensor(shape: Sequence[int], kind: int = FLOAT, layout: int = LINEAR) -> Tensor:
    """Returns the description of a tensor."""
    return Tensor(len(shape), (c_int64 * 4)(*shape), kind, layout)


def tensorrt_major(folder: Path) -> int:
    """Returns the major version that headers are of."""
    text = (folder / "NvInferVersion.h").read_text(encoding="utf-8")
    found = re.search(r"#define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) (\d+)", text)
    assert found, folder
    return int(found[1])


def headers() -> list[Any]:
    """Returns a parameter for every folder of headers, or one that is skipped with its reason."""
    folders = tensorrt_includes()
    if not folders:
        reason = "AUTOVOICE_TENSORRT_INCLUDE names no folder with TensorRT's headers"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="no headers")]
    return [pytest.param(folder, id=f"TensorRT {tensorrt_major(folder)}") for folder in folders]


class Harness:
    """The plugin library for one TensorRT.

    Args:
        include: The folder of the TensorRT headers.
    """

    def __init__(self, include: Path) -> None:
        nvcc = shutil.which("nvcc")
        library = cuda_build() / f"libautovoice_plugins_trt{tensorrt_major(include)}.so"
        # nvcc may be a script that leads to its folder, so the usual places are given too.
        folders = [Path(str(nvcc)).resolve().parents[1] / "include", Path("/usr/local/cuda/include")]
        flags = [text for folder in (include, *folders) for text in ("-isystem", str(folder))]
        source = ROOT / "tests" / "plugins" / "harness" / "harness.cpp"
        self.dll = ctypes.CDLL(str(compiled("harness", [source], "-fvisibility=hidden", *flags, "-ldl")))
        for name in ("log", "creators", "fields", "timing_id"):
            getattr(self.dll, f"harness_{name}").restype = c_char_p
        for name in ("open", "create", "recreate", "clone", "attach"):
            getattr(self.dll, f"harness_{name}").restype = c_void_p
        self.dll.harness_workspace.restype = c_size_t
        self.dll.harness_supports.restype = c_bool
        self.dll.harness_creators.argtypes = [c_void_p]
        self.dll.harness_create.argtypes = [c_void_p, c_char_p, POINTER(Field), c_int32]
        self.dll.harness_recreate.argtypes = [c_void_p, c_char_p, c_void_p]
        self.path = library
        self.library = self.dll.harness_open(str(library).encode())
        assert self.library, self.log()

    def log(self) -> str:
        """Returns what the plugins logged since the last call: severity and message, a line each."""
        return str(self.dll.harness_log().decode())

    def creators(self) -> str:
        """Returns interface, name, version, namespace and fields of all creators."""
        return str(self.dll.harness_creators(self.library).decode())

    def create(self, name: str, *fields: tuple[str, int, Any]) -> Plugin | None:
        """Returns the plugin for fields (name, PluginFieldType, value), or None if it is refused."""
        types = {
            FLOAT32_FIELD: np.float32,
            FLOAT64_FIELD: np.float64,
            INT32_FIELD: np.int32,
            INT64_FIELD: np.int64,
        }
        datas = [
            np.frombuffer(value.encode(), np.uint8)
            if kind == CHAR_FIELD
            else np.atleast_1d(np.array(value, types[kind]))
            for _, kind, value in fields
        ]
        given = (Field * len(fields))(
            *(
                Field(key.encode(), kind, len(data), data.ctypes.data)
                for (key, kind, _), data in zip(fields, datas, strict=True)
            )
        )
        address = self.dll.harness_create(self.library, name.encode(), given, len(fields))
        return Plugin(self, name, address) if address else None

    def with_attributes(self, name: str, **attributes: Any) -> Plugin:
        """Returns the plugin for a node with these attributes, the rest at their defaults."""
        kinds = {int: INT32_FIELD, float: FLOAT32_FIELD, str: CHAR_FIELD}
        values = {**OPS[name].attributes, **attributes}
        plugin = self.create(name, *((key, kinds[type(value)], value) for key, value in values.items()))
        assert plugin is not None, self.log()
        return plugin


class Plugin:
    """One plugin."""

    def __init__(self, harness: Harness, name: str, address: int) -> None:
        self.harness, self.name, self.address = harness, name, c_void_p(address)

    def __del__(self) -> None:
        self.harness.dll.harness_destroy(self.address)

    def recreated(self) -> Plugin:
        """Returns the plugin that an engine would make of this one's fields."""
        dll, library = self.harness.dll, self.harness.library
        address = dll.harness_recreate(library, self.name.encode(), self.address)
        assert address, self.harness.log()
        return Plugin(self.harness, self.name, address)

    def cloned(self, how: str = "clone") -> Plugin:
        """Returns a copy by "clone" or "attach"."""
        return Plugin(self.harness, self.name, getattr(self.harness.dll, f"harness_{how}")(self.address))

    @property
    def fields(self) -> str:
        """What is serialised, a line each."""
        return str(self.harness.dll.harness_fields(self.address).decode())

    @property
    def timing_id(self) -> str:
        """The timing-cache id."""
        return str(self.harness.dll.harness_timing_id(self.address).decode())

    def shapes(self, *inputs: Sequence[int], known: bool = False) -> list[tuple[int, ...]] | None:
        """Returns the output shapes, or None if the input shapes are refused."""
        count = self.harness.dll.harness_outputs(self.address)
        given, outputs = (Tensor * len(inputs))(*map(tensor, inputs)), (Tensor * count)()
        status = self.harness.dll.harness_shapes(
            self.address, given, len(inputs), outputs, count, c_bool(known)
        )
        return None if status else [tuple(out.sizes[: out.rank]) for out in outputs]

    def types(self, *inputs: int) -> list[int]:
        """Returns the output types for input types."""
        count = self.harness.dll.harness_outputs(self.address)
        given, outputs = (c_int32 * len(inputs))(*inputs), (c_int32 * count)()
        assert self.harness.dll.harness_types(self.address, given, len(inputs), outputs, count) == 0
        return list(outputs)

    def supports(self, position: int, tensors: Sequence[Tensor], inputs: int) -> bool:
        """Returns whether a tensor may be as it is described."""
        given = (Tensor * len(tensors))(*tensors)
        outputs = len(tensors) - inputs
        return bool(self.harness.dll.harness_supports(self.address, position, given, inputs, outputs))

    def call(self, what: str, tensors: Sequence[Tensor], inputs: int) -> int:
        """Returns the result of "configure", "shape_change" or "workspace"."""
        given = (Tensor * len(tensors))(*tensors)
        return int(
            getattr(self.harness.dll, f"harness_{what}")(self.address, given, inputs, len(tensors) - inputs)
        )

    def enqueue(
        self, tensors: Sequence[Tensor], inputs: int, addresses: Sequence[int], workspace: int, stream: int
    ) -> int:
        """Starts the op on a stream and returns the status."""
        given = (Tensor * len(tensors))(*tensors)
        data = (c_void_p * len(addresses))(*addresses)
        return int(
            self.harness.dll.harness_enqueue(
                self.address,
                given,
                inputs,
                len(tensors) - inputs,
                data,
                c_void_p(workspace),
                c_void_p(stream),
            )
        )

    def described(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        """Returns the descriptions of arrays."""
        return [tensor(a.shape, HALF if a.dtype == np.float16 else FLOAT) for a in arrays]


def run_plugin(
    harness: Harness,
    memory: Memory,
    name: str,
    *arrays: NDArray[Any],
    dtype: Any = np.float32,
    **attributes: Any,
) -> tuple[NDArray[Any], ...]:
    """Runs an op as an engine does: configured, serialised, made again, attached, and enqueued."""
    plugin = harness.with_attributes(name, **attributes).recreated().cloned("attach")
    _, inputs = prepared(name, arrays, dtype)
    shapes = output_shapes(name, inputs, {**OPS[name].attributes, **attributes})
    assert plugin.shapes(*(a.shape for a in inputs)) == shapes
    kinds = plugin.types(*(HALF if a.dtype == np.float16 else FLOAT for a in inputs))
    outputs = [
        np.full(shape, np.nan, np.float16 if kind == HALF else np.float32)
        for shape, kind in zip(shapes, kinds, strict=True)
    ]
    assert all(kind == FLOAT for key, kind in zip(OPS[name].outputs, kinds, strict=True) if key in FLOAT_ONLY)
    tensors = plugin.described([*inputs, *outputs])
    assert all(plugin.supports(i, tensors, len(inputs)) for i in range(len(tensors)))
    assert plugin.call("configure", tensors, len(inputs)) == 0, harness.log()
    assert plugin.call("shape_change", tensors, len(inputs)) == 0, harness.log()
    size = plugin.call("workspace", tensors, len(inputs))
    placed = [memory.put(array) for array in (*inputs, *outputs, np.full(size, 255, np.uint8))]
    addresses = [address for address, _ in placed[:-1]]
    status = plugin.enqueue(tensors, len(inputs), addresses, placed[-1][0], memory.stream)
    assert status == 0, harness.log()
    return tuple(memory.take(owner) for _, owner in placed[len(inputs) : -1])


__all__ = ["Field", "Harness", "Plugin", "byref", "headers", "run_plugin", "tensor"]
