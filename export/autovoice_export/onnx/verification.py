"""Holds exported ONNX files to the PyTorch stages they came from, and one of several stages to those of the
single ones, at many lengths and batch sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from autovoice_export.base.stages.timing import LOOKAHEAD
from autovoice_export.model_config import EnsembleStep
from autovoice_export.onnx.composition import Composition
from autovoice_export.onnx.examples import example
from autovoice_export.onnx.export import ExportError
from autovoice_export.stage import STATE_INPUT, STATE_OUTPUT, Stage, StageTensor
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
    return _compare(
        _Subject(
            stage.name,
            path,
            stage.inputs,
            tuple(tensor.name for tensor in stage.outputs),
            {STATE_INPUT: STATE_OUTPUT} if stage.state_size else {},
        ),
        lambda inputs: run_stage(stage, inputs),
        "PyTorch",
        itertools.product(frame_counts, batch_sizes),
    )


def verify_composition(
    composition: Composition,
    files: Mapping[str, Path],
    path: Path,
    frame_counts: Iterable[int] = FRAME_COUNTS,
    batch_sizes: Iterable[int] = BATCH_SIZES,
) -> Agreement:
    """Runs stages in one file and in files of their own on the same inputs and compares outputs and states.

    Every case runs twice in a row, the second time from the states that the first left.

    Args:
        composition: the stages.
        files: the file of each stage by its name.
        path: the file of the composition.
        frame_counts: lengths to run.
        batch_sizes: batches to run at each length.

    Raises:
        ExportError: a shape or a value differs, or ONNX Runtime cannot run the file at some length.
    """
    sessions = {step.model: _session(files[step.model]) for step in composition.steps}
    return _compare(
        _Subject(
            composition.name,
            path,
            composition.graph_inputs,
            tuple(tensor.name for tensor in composition.graph_outputs),
            {state.input.name: state.output.name for state in composition.states},
        ),
        lambda inputs: _run_steps(composition.steps, sessions, inputs),
        "the files of its stages",
        itertools.product(frame_counts, batch_sizes),
    )


@dataclass(frozen=True)
class _Subject:
    """A file to compare: its tensors, and which output is the next value of which input."""

    name: str
    path: Path
    inputs: tuple[StageTensor, ...]
    outputs: tuple[str, ...]
    states: Mapping[str, str]


def _compare(
    subject: _Subject,
    reference: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    origin: str,
    cases: Iterable[tuple[int, int]],
) -> Agreement:
    session = _session(subject.path)
    worst, worst_tensor, runs = 0.0, "", 0
    generator = torch.Generator().manual_seed(0)
    for frames, batch in cases:
        states: dict[str, Tensor] = {}
        for _ in range(2 if subject.states else 1):
            inputs = _examples(subject.inputs, batch, frames, generator) | states
            expected = reference(inputs)
            found = _run_session(session, subject, inputs, f"{frames} frames, batch {batch}")
            runs += 1
            for name in subject.outputs:
                where = f"{subject.name}: {name} at {frames} frames, batch {batch},"
                deviation = _deviation(where, expected[name], found[name], origin)
                if deviation > worst or not worst_tensor:
                    worst, worst_tensor = deviation, name
            states = {source: expected[target] for source, target in subject.states.items()}
    return Agreement(subject.name, runs, worst, worst_tensor)


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run_steps(
    steps: Iterable[EnsembleStep],
    sessions: Mapping[str, onnxruntime.InferenceSession],
    inputs: dict[str, Tensor],
) -> dict[str, Tensor]:
    """All tensors of a chain of stages by their names in it."""
    tensors = {name: value.numpy() for name, value in inputs.items()}
    for step in steps:
        feeds = {name: tensors[source] for name, source in step.inputs.items()}
        made = sessions[step.model].run(list(step.outputs), feeds)
        tensors |= dict(zip(step.outputs.values(), made, strict=True))
    return {name: torch.from_numpy(value) for name, value in tensors.items()}


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
    return _examples(stage.inputs, batch, frames, generator)


def _examples(
    inputs: tuple[StageTensor, ...], batch: int, frames: int, generator: torch.Generator
) -> dict[str, Tensor]:
    samples = frames * HOP - _SAMPLES_SHORT_OF_A_FRAME
    padded = math.ceil((samples + LOOKAHEAD) / HOP)
    sizes = {"F": frames, "T": samples, "P": padded}
    random = np.random.default_rng(int(torch.randint(1 << 31, (1,), generator=generator)))
    return {
        tensor.name: torch.from_numpy(example(tensor.name, tensor.shape(batch, sizes), random))
        for tensor in inputs
    }


def _run_session(
    session: onnxruntime.InferenceSession, subject: _Subject, inputs: dict[str, Tensor], case: str
) -> dict[str, NDArray[Any]]:
    try:
        values = session.run(subject.outputs, {name: value.numpy() for name, value in inputs.items()})
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ExportError(f"{subject.name}: the ONNX file fails with {case}: {error}") from error
    return dict(zip(subject.outputs, values, strict=True))


def _deviation(where: str, expected: Tensor, found: NDArray[Any], origin: str) -> float:
    """Largest deviation of one output as a share of the tolerance."""
    if tuple(found.shape) != tuple(expected.shape):
        raise ExportError(
            f"{where} has shape {list(found.shape)} in ONNX and {list(expected.shape)} in {origin}: "
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
            f"{found[index]:g} in ONNX, {reference[index]:g} in {origin}"
        )
    return worst
