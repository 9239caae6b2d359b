"""The device to train on."""

from __future__ import annotations

import torch


def choose_device(name: str) -> torch.device:
    """The device called ``name``; for ``auto`` a GPU where there is one.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is none PyTorch knows; say cpu, cuda or auto") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: PyTorch finds no CUDA GPU here; say cpu or auto")
    return device


def mixes_precision(device: torch.device) -> bool:
    """Whether bfloat16 is fast: on a GPU, and on a processor with tiles for it (Intel's AMX)."""
    if device.type == "cuda":
        return True
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16", False))
