"""The exported stages of a voice against their PyTorch modules, along the steps of its ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from autovoice_export.config_types import NUMPY_TYPES, EnsembleConfig, TensorConfig
from autovoice_export.examples import example
from autovoice_export.onnx.graph import load_model
from autovoice_export.parity import Agreement, Arrays, Run, Tolerance, compare, session_run, stage_run
from autovoice_export.rvc.geometry import GRID
from autovoice_export.rvc.rmvpe import Rmvpe, decode
from autovoice_export.stage import Stage

STEPS = (25, 40)
"""Lengths compared, in grid steps: 0.5 and 0.8 s; the batch differs too."""

TOLERANCE = Tolerance(absolute=0.0, relative=1e-3, scale="peak")
HALF_TOLERANCE = Tolerance(absolute=0.0, relative=5e-2, scale="peak")
"""For float32 and for float16 models."""


def check_parity(
    ensemble: EnsembleConfig,
    stages: Mapping[str, Stage],
    files: Mapping[str, Path],
    tolerance: Tolerance,
) -> list[Agreement]:
    """Runs a voice's ensemble step by step, in PyTorch and in ONNX Runtime on the same inputs.

    Args:
        ensemble: the steps, each of which gets what PyTorch made of the steps before.
        stages: modules of the steps, float32, by model; steps that were there before have none.
        files: ONNX files of all steps, by model.
        tolerance: deviation that is accepted.

    Returns:
        One agreement for each stage that has a module.

    Raises:
        ParityError: a stage deviates by more, or is not finite.
    """
    generator = np.random.default_rng(7)
    recordings: list[dict[str, NDArray[Any]]] = [
        {tensor.name: _example(tensor, batch, steps, generator) for tensor in ensemble.inputs}
        for batch, steps in enumerate(STEPS, start=1)
    ]
    agreements = []
    for step in ensemble.steps:
        stage = stages.get(step.model)
        tracker = stage.module if stage is not None and isinstance(stage.module, Rmvpe) else None
        run = session_run(files[step.model]) if tracker is None else _salience_run(files[step.model])
        reference = run if stage is None else stage_run(stage)
        made: list[tuple[Arrays, Arrays]] = []
        for tensors in recordings:
            feed = {name: tensors[source] for name, source in step.inputs.items()}
            outputs = reference(feed)
            tensors |= {target: outputs[name] for name, target in step.outputs.items()}
            made.append(
                (feed, outputs if tracker is None else _through_salience(tracker, run, feed, outputs))
            )
        if stage is not None:
            agreements.append(compare(step.model, run, made, tolerance, "PyTorch"))
    return agreements


def _salience_run(file: Path) -> Run:
    """Runs an exported `Rmvpe`, and gives its SALIENCE [B, 2 G, 360] beside its outputs."""
    model = load_model(file)
    (sigmoid,) = (node for node in model.graph.node if node.op_type == "Sigmoid")
    model.graph.output.append(onnx.ValueInfoProto(name=sigmoid.output[0]))
    run = session_run(model.SerializeToString())

    def rate(feed: Arrays) -> Arrays:
        outputs = dict(run(feed))
        salience = outputs.pop(sigmoid.output[0])
        return {**outputs, "SALIENCE": salience[:, : outputs["F0"].shape[1]]}

    return rate


def _through_salience(module: Rmvpe, run: Run, feed: Arrays, outputs: Arrays) -> Arrays:
    """What an exported `Rmvpe` should give: PyTorch's salience, and the F0 that its own salience says.

    Where two pitches are rated alike, rounding decides between them, which is no fault of the file.
    """
    with torch.no_grad():
        salience = module.rate(torch.from_numpy(feed["AUDIO"])).numpy()
        f0 = decode(torch.from_numpy(run(feed)["SALIENCE"])).numpy()
    return {**outputs, "F0": f0, "SALIENCE": salience}


def _example(tensor: TensorConfig, batch: int, steps: int, generator: np.random.Generator) -> NDArray[Any]:
    length = steps * GRID if tensor.name == "SOURCE_AUDIO" else 1
    value = example(tensor.name, (batch, length), generator)
    return value.astype(NUMPY_TYPES[tensor.data_type])
