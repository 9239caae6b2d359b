"""Runs an op by any implementation on NumPy arrays, so that one test holds all of them to the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from native import (
    CudaMemory,
    HostMemory,
    cuda_build,
    host_kernels,
    require_gpu,
    run_kernels,
    tensorrt_includes,
)
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from plugin_harness import Harness, run_plugin

from autovoice_plugins.function_builder import DOMAIN, with_plugin_attributes
from autovoice_plugins.harmonic_source import harmonic_source
from autovoice_plugins.kernels import KernelLibrary
from autovoice_plugins.onnx_export import OPS, attach_functions
from autovoice_plugins.pitch_yin import pitch_yin
from autovoice_plugins.spectral_synth import spectral_synth

TORCH_OPS = {"PitchYin": pitch_yin, "HarmonicSource": harmonic_source, "SpectralSynth": spectral_synth}

Run = Callable[..., tuple[NDArray[np.float32], ...]]


def single_node_model(name: str, **attributes: Any) -> ModelProto:
    """Returns a model that is one node of the op, without its function."""
    op = OPS[name]
    optional = attributes.get("waveform") == "sine"
    inputs = [key for key, may_lack in op.inputs.items() if optional or not may_lack]
    values = [
        helper.make_tensor_value_info(key, TensorProto.FLOAT, [None] * (3 if "FILTER" in key else 2))
        for key in (*inputs, *op.outputs)
    ]
    node = helper.make_node(
        name,
        inputs,
        list(op.outputs),
        domain=DOMAIN,
        **with_plugin_attributes({**op.attributes, **attributes}),
    )
    graph = helper.make_graph([node], name, values[: len(inputs)], values[len(inputs) :])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@lru_cache(maxsize=16)
def onnx_session(name: str, attributes: tuple[tuple[str, Any], ...]) -> onnxruntime.InferenceSession:
    """Returns a session on stock ONNX Runtime for the op's function."""
    model = attach_functions(single_node_model(name, **dict(attributes)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.fixture(name="single_node_model")
def _single_node_model() -> Callable[..., ModelProto]:
    """`single_node_model`, for tests of the files themselves."""
    return single_node_model


def run_torch(name: str, *arrays: NDArray[Any], **attributes: Any) -> tuple[NDArray[np.float32], ...]:
    """Runs an op as PyTorch defines it."""
    tensors = [torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)) for array in arrays]
    return tuple(tensor.numpy() for tensor in TORCH_OPS[name](*tensors, **attributes))


def run_onnx(name: str, *arrays: NDArray[Any], **attributes: Any) -> tuple[NDArray[np.float32], ...]:
    """Runs an op's ONNX function."""
    session = onnx_session(name, tuple(sorted(attributes.items())))
    names = [value.name for value in session.get_inputs()]
    feeds = {key: array.astype(np.float32) for key, array in zip(names, arrays, strict=True)}
    return tuple(session.run(None, feeds))


def run_host(name: str, *arrays: NDArray[Any], **options: Any) -> tuple[NDArray[Any], ...]:
    """Runs an op's CUDA kernels on the CPU, thread by thread."""
    return run_kernels(host_kernels(), HostMemory(), name, *arrays, **options)


@lru_cache(maxsize=1)
def device_kernels() -> KernelLibrary:
    """Returns the kernels for the CUDA device that is here."""
    require_gpu()
    return KernelLibrary(cuda_build() / "libautovoice_kernels.so")


def run_cuda(name: str, *arrays: NDArray[Any], **options: Any) -> tuple[NDArray[Any], ...]:
    """Runs an op's CUDA kernels on a CUDA device."""
    return run_kernels(device_kernels(), CudaMemory(), name, *arrays, **options)


@lru_cache(maxsize=1)
def newest_harness() -> Harness:
    """Returns the plugins for the newest TensorRT whose headers are here."""
    require_gpu()
    folders = tensorrt_includes()
    if not folders:
        pytest.skip("AUTOVOICE_TENSORRT_INCLUDE names no folder with TensorRT's headers")
    return Harness(folders[-1])


def run_tensorrt_plugin(name: str, *arrays: NDArray[Any], **options: Any) -> tuple[NDArray[Any], ...]:
    """Runs an op's TensorRT plugin on a CUDA device, without TensorRT."""
    return run_plugin(newest_harness(), CudaMemory(), name, *arrays, **options)


NATIVE: dict[str, Run] = {"host": run_host, "cuda": run_cuda, "plugin": run_tensorrt_plugin}
IMPLEMENTATIONS: dict[str, Run] = {"torch": run_torch, "onnx": run_onnx, **NATIVE}
ON_GPU = {"cuda", "plugin"}


def _parameters(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.gpu] if name in ON_GPU else []) for name in names]


@pytest.fixture(params=_parameters(IMPLEMENTATIONS))
def run(request: pytest.FixtureRequest) -> Run:
    """A function (name, *arrays, **attributes) -> arrays that runs an op in float32."""
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(params=_parameters(NATIVE))
def run_native(request: pytest.FixtureRequest) -> Run:
    """The same for what is compiled, where `dtype=np.float16` makes the samples float16."""
    return NATIVE[request.param]
