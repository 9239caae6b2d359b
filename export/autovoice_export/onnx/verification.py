"""Exported ONNX files against the PyTorch stages they came from, and a composition against its stages' files,
at many lengths and batch sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from autovoice_export.base.stages.timing import LOOKAHEAD
from autovoice_export.examples import example
from autovoice_export.onnx.composition import Composition
from autovoice_export.parity import (
    Agreement,
    Arrays,
    Case,
    Run,
    Tolerance,
    cases,
    chain_run,
    compare,
    session_run,
    stage_run,
)
from autovoice_export.stage import STATE_INPUT, STATE_OUTPUT, Stage, StageTensor
from autovoice_plugins.geometry import HOP

FRAME_COUNTS = (1, 2, 7, 100, 1000)
BATCH_SIZES = (1, 3)

TOLERANCE = Tolerance(absolute=1e-4, relative=1e-4, scale="value")
"""1e-4 of full scale in audio, and 0.01 % of an F0 in Hz."""

_SAMPLES_SHORT_OF_A_FRAME = 77
"""Recordings end this much before a frame does, so that padding has something to do."""


def verify(
    stage: Stage,
    path: Path,
    frame_counts: Iterable[int] = FRAME_COUNTS,
    batch_sizes: Iterable[int] = BATCH_SIZES,
) -> Agreement:
    """Compares a file in ONNX Runtime with its stage in PyTorch.

    Stages with state run twice in a row, the second time from the state that the first left.

    Raises:
        ParityError: a shape or a value differs, or ONNX Runtime cannot run the file at some length.
    """
    states = {STATE_INPUT: STATE_OUTPUT} if stage.state_size else {}
    expected = cases(_feeds(stage.inputs, frame_counts, batch_sizes), stage_run(stage), states)
    return compare(stage.name, session_run(path), expected, TOLERANCE, "PyTorch")


def verify_composition(
    composition: Composition,
    files: Mapping[str, Path],
    path: Path,
    frame_counts: Iterable[int] = FRAME_COUNTS,
    batch_sizes: Iterable[int] = BATCH_SIZES,
    tolerance: Tolerance = TOLERANCE,
) -> Agreement:
    """Compares stages in one file with the same in files of their own, in ONNX Runtime.

    Every case runs twice in a row, the second time from the states that the first left.

    Args:
        composition: the stages.
        files: the file of each stage by its name.
        path: the file of the composition.
        frame_counts: lengths to run.
        batch_sizes: batches to run at each length.
        tolerance: deviation that is accepted.

    Raises:
        ParityError: a shape or a value differs, or ONNX Runtime cannot run the file at some length.
    """
    stages = {step.model: session_run(files[step.model]) for step in composition.steps}
    expected = composition_cases(composition, stages, frame_counts, batch_sizes)
    return compare(composition.name, session_run(path), expected, tolerance, "the files of its stages")


def composition_cases(
    composition: Composition,
    stages: Mapping[str, Run],
    frame_counts: Iterable[int],
    batch_sizes: Iterable[int],
) -> Iterator[Case]:
    """Inputs of a composition with what its stages make of them, one after the other."""
    states = {state.input.name: state.output.name for state in composition.states}
    feeds = _feeds(composition.graph_inputs, frame_counts, batch_sizes)
    return cases(feeds, chain_run(composition.steps, stages), states)


def _feeds(
    inputs: tuple[StageTensor, ...], frame_counts: Iterable[int], batch_sizes: Iterable[int]
) -> Iterator[Arrays]:
    generator = np.random.default_rng(0)
    for frames, batch in itertools.product(frame_counts, batch_sizes):
        yield example_inputs(inputs, batch, frames, generator)


def example_inputs(
    inputs: Iterable[StageTensor], batch: int, frames: int, generator: np.random.Generator
) -> Arrays:
    """Plausible inputs of the base voice's stages by name; states are zeros."""
    samples = frames * HOP - _SAMPLES_SHORT_OF_A_FRAME
    sizes = {"F": frames, "T": samples, "P": math.ceil((samples + LOOKAHEAD) / HOP)}
    return {tensor.name: example(tensor.name, tensor.shape(batch, sizes), generator) for tensor in inputs}
