"""Tells whether a torch function is being recorded for ONNX."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Returns whether the caller runs inside torch.export or torch.onnx.export.

    Then the ops appear as single nodes, `torch.ops.autovoice.*`, instead of what they are made of.
    """
    return torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting()
