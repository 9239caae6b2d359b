"""Holds exported ONNX files to the PyTorch stages they came from, at many lengths and batch sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from autovoice_export.examples import example
from autovoice_export.onnx_export import ExportError
from autovoice_export.stage import STATE_INPUT, STATE_OUTPUT, Stage
from autovoice_export.stages.timing import LOOKAHEAD
from autovoice_plugins.geometry import HOP

FRAME_COUNTS = (1, 2, 7, 100, 1000)
BATCH_SIZES = (1, 3)

RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-4
"""Both added: 1e-4 of full scale in audio, and 0.01 % of an F0 in Hz."""

_SAMPLES_SHORT_OF_A_FRAME = 77
"""Recordings in the tests end this much before a frame does, so that padding has something to do."""


@dataclass(frozen=True)
class Agreement:
    """How well one file agrees with its stage.

    Attributes:
        stage: name.
        runs: combinations of length, batch size and state that were compared.
        worst: largest deviation as a share of the tolerance, at most 1.
        worst_tensor: the output it happened in.
    """

    stage: str
    runs: int
    worst: float
    worst_tensor: str


def verify(
    stage: Stage,
    path: Path,
    frame_counts: Iterable[int] = FRAME_COUNTS,
    batch_sizes: Iterable[int] = BATCH_SIZES,
) -> Agreement:
    """Runs a file in ONNX Runtime and the stage in PyTorch on the same inputs and compares all outputs.

    Stages with state run twice in a row, the second time from the state that the first left.

    Raises:
        ExportError: a shape or a value differs, or ONNX Runtime cannot run the file at some length.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    worst, worst_tensor, runs = 0.0, "", 0
    generator = torch.Generator().manual_seed(0)
    for frames in frame_counts:
        for batch in batch_sizes:
            state = None
            for _ in range(2 if stage.state_size else 1):
                inputs = example_inputs(stage, batch, frames, generator)
                if state is not None:
                    inputs[STATE_INPUT] = state
                reference = run_stage(stage, inputs)
                found = _run_session(session, stage, inputs, f"{frames} frames, batch {batch}")
                runs += 1
                for name, expected in reference.items():
                    deviation = _deviation(stage.name, name, expected, found[name], frames, batch)
                    if deviation > worst or not worst_tensor:
                        worst, worst_tensor = deviation, name
                state = reference.get(STATE_OUTPUT)
    return Agreement(stage.name, runs, worst, worst_tensor)


def run_stage(stage: Stage, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs of the PyTorch module by name."""
    with torch.no_grad():
        outputs = stage.module(*(inputs[tensor.name] for tensor in stage.inputs))
    if isinstance(outputs, Tensor):
        outputs = (outputs,)
    return {tensor.name: value for tensor, value in zip(stage.outputs, outputs, strict=True)}


def example_inputs(stage: Stage, batch: int, frames: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Plausible inputs for a stage by name: voiced sound with a gliding pitch, not noise, so that pitch
    decisions are clear-cut; states are zeros."""
    samples = frames * HOP - _SAMPLES_SHORT_OF_A_FRAME
    padded = math.ceil((samples + LOOKAHEAD) / HOP)
    sizes = {"F": frames, "T": samples, "P": padded}
    random = np.random.default_rng(int(torch.randint(1 << 31, (1,), generator=generator)))
    return {
        tensor.name: torch.from_numpy(example(tensor.name, tensor.shape(batch, sizes), random))
        for tensor in stage.inputs
    }


def _run_session(
    session: onnxruntime.InferenceSession, stage: Stage, inputs: dict[str, Tensor], case: str
) -> dict[str, NDArray[Any]]:
    names = [tensor.name for tensor in stage.outputs]
    try:
        values = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ExportError(f"{stage.name}: the ONNX file fails with {case}: {error}") from error
    return dict(zip(names, values, strict=True))


def _deviation(
    stage: str, name: str, expected: Tensor, found: NDArray[Any], frames: int, batch: int
) -> float:
    """Largest deviation of one output as a share of the tolerance."""
    where = f"{stage}: {name} at {frames} frames, batch {batch},"
    if tuple(found.shape) != tuple(expected.shape):
        raise ExportError(
            f"{where} has shape {list(found.shape)} in ONNX and {list(expected.shape)} in PyTorch: "
            "an axis was frozen during export"
        )
    reference = expected.numpy()
    if not np.isfinite(found).all():
        raise ExportError(f"{where} is not finite in ONNX")
    allowed = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * np.abs(reference)
    share = np.abs(found - reference) / allowed
    worst = float(share.max(initial=0.0))
    if worst > 1.0:
        index = np.unravel_index(int(share.argmax()), share.shape)
        raise ExportError(
            f"{where} differs at {[int(i) for i in index]}: "
            f"{found[index]:g} in ONNX, {reference[index]:g} in PyTorch"
        )
    return worst
