"""Holds the exported stages of a voice to their PyTorch modules, along one recording made up for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from autovoice_export.model_config import EnsembleConfig, EnsembleStep
from autovoice_export.onnx.export import ExportError
from autovoice_export.rvc.geometry import GRID, SOURCE_RATE
from autovoice_export.stage import Stage

STEPS = (25, 40)
"""Lengths compared, in grid steps: 0.5 and 0.8 s; the batch differs too."""

TOLERANCE = 1e-3
HALF_TOLERANCE = 5e-2
"""Largest deviation over the largest value, for float32 and for float16 models."""


@dataclass(frozen=True)
class StageParity:
    """How well one exported stage agrees with its module.

    Attributes:
        model: name.
        worst: largest deviation of any output, over the largest value of that output.
        tensor: the output.
    """

    model: str
    worst: float
    tensor: str


def check_parity(
    window: EnsembleConfig,
    stages: Mapping[str, Stage],
    files: Mapping[str, Path],
    tolerance: float,
) -> list[StageParity]:
    """Runs a voice's window ensemble step by step, in PyTorch and in ONNX Runtime on the same inputs.

    Args:
        window: the ensemble.
        stages: modules of the steps, float32, by model; steps that were there before have none.
        files: ONNX files of all steps, by model.
        tolerance: deviation that is accepted.

    Returns:
        One line for each stage that has a module.

    Raises:
        ExportError: a stage deviates by more, or is not finite.
    """
    found: dict[str, StageParity] = {}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = {
        step.model: onnxruntime.InferenceSession(
            files[step.model], options, providers=["CPUExecutionProvider"]
        )
        for step in window.steps
    }
    for batch, steps in enumerate(STEPS, start=1):
        values = _inputs(window, batch, steps)
        for step in window.steps:
            for parity in _run_step(step, stages.get(step.model), sessions[step.model], values):
                if parity.worst >= found.get(step.model, parity).worst:
                    found[step.model] = parity
    for parity in found.values():
        if not parity.worst <= tolerance:
            raise ExportError(
                f"{parity.model}: {parity.tensor} differs by {parity.worst:.2g} of its largest value between "
                f"PyTorch and ONNX Runtime, {tolerance:g} are accepted"
            )
    return list(found.values())


def _inputs(window: EnsembleConfig, batch: int, steps: int) -> dict[str, Tensor]:
    settings = {"PITCH_SHIFT": 3.0, "INDEX_RATE": 0.6, "PROTECT": 0.3, "RMS_MIX": 0.4, "ANCHOR_PHASE": 0.25}
    places = {"SPEAKER_ID": 0, "FIRST_FRAME": 730, "ANCHOR_FRAME": 10}
    values = {"SOURCE_AUDIO": voice_like(batch, steps * GRID)}
    for tensor in window.inputs:
        if tensor.name in settings:
            values[tensor.name] = torch.full((batch, 1), settings[tensor.name])
        elif tensor.name in places:
            values[tensor.name] = torch.full((batch, 1), places[tensor.name], dtype=torch.int64)
    return values


def _run_step(
    step: EnsembleStep,
    stage: Stage | None,
    session: onnxruntime.InferenceSession,
    values: dict[str, Tensor],
) -> Sequence[StageParity]:
    inputs = {name: values[tensor] for name, tensor in step.inputs.items()}
    names = [output.name for output in session.get_outputs()]
    results: list[NDArray[Any]] = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    expected = dict(zip(names, map(torch.from_numpy, results), strict=True))
    parities = []
    if stage is not None:
        with torch.no_grad():
            made = stage.module(*(inputs[tensor.name] for tensor in stage.inputs))
        made = (made,) if isinstance(made, Tensor) else made
        expected = {tensor.name: value for tensor, value in zip(stage.outputs, made, strict=True)}
        parities = [
            StageParity(step.model, _deviation(expected[name].numpy(), result), name)
            for name, result in zip(names, results, strict=True)
        ]
    values.update({tensor: expected[name] for name, tensor in step.outputs.items()})
    return parities


def _deviation(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Largest difference over the largest value; infinite for other shapes and what is not finite."""
    if expected.shape != found.shape or not np.isfinite(found).all():
        return math.inf
    scale = float(np.abs(expected).max(initial=0.0))
    return float(np.abs(found - expected).max(initial=0.0)) / (scale or 1.0)


def voice_like(batch: int, samples: int) -> Tensor:
    """Something like voices, [batch, samples] at 16 kHz: gliding harmonics, pauses, a little noise."""
    time = torch.arange(samples, dtype=torch.float64) / SOURCE_RATE
    base = 110.0 + 70.0 * torch.arange(batch, dtype=torch.float64).unsqueeze(1)
    phase = base * (time + 0.02 * torch.sin(2.0 * math.pi * 1.5 * time))
    tone = sum(torch.sin(2.0 * math.pi * harmonic * phase) / harmonic for harmonic in range(1, 12))
    assert isinstance(tone, Tensor)
    envelope = torch.clamp(torch.sin(2.0 * math.pi * 1.1 * time) + 0.6, min=0.0)
    noise = torch.from_numpy(np.random.RandomState(7).standard_normal((batch, samples)))
    return (0.12 * tone * envelope + 0.002 * noise).to(torch.float32)
