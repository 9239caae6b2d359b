"""What NVIDIA's management library (NVML) says about the GPUs of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autovoice.results import GpuUse


def gpu_count() -> int | None:
    """Number of GPUs that CUDA programs of this process may use; None where no driver tells."""
    with _library() as nvml:
        try:
            count = None if nvml is None else int(nvml.nvmlDeviceGetCount())
        except nvml.NVMLError:
            count = None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if count is None or visible is None:
        return count
    return min(count, len([entry for entry in visible.split(",") if entry]))


def gpu_uses() -> tuple[GpuUse, ...]:
    """Memory and use of every GPU of this machine; none where no driver tells."""
    with _library() as nvml:
        if nvml is None:
            return ()
        try:
            return tuple(_use(nvml, number) for number in range(nvml.nvmlDeviceGetCount()))
        except nvml.NVMLError:
            return ()


def _use(nvml: Any, number: int) -> GpuUse:
    gpu = nvml.nvmlDeviceGetHandleByIndex(number)
    name, memory = nvml.nvmlDeviceGetName(gpu), nvml.nvmlDeviceGetMemoryInfo(gpu)
    try:
        busy = int(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
    except nvml.NVMLError:  # a GPU in parts (MIG), or one that does not say
        busy = None
    return GpuUse(
        number=number,
        name=name.decode() if isinstance(name, bytes) else str(name),
        memory_used_bytes=int(memory.used),
        memory_total_bytes=int(memory.total),
        use_percent=busy,
    )


@contextmanager
def _library() -> Iterator[Any]:
    """NVML, ready for use; None where no driver brings it."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()
