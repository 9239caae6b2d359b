"""Plans against ONNX Runtime: the inputs they are compared on, and how far they may be apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from autovoice.repository.plans import Shape
from autovoice_export.examples import example
from autovoice_export.parity import Arrays, Run, Tolerance, cases, compare
from autovoice_export.stage import STATE_INPUT, STATE_OUTPUT
from autovoice_export.tensorrt.plan_config import Profile

TOLERANCES = {
    "fp32": Tolerance(1e-3, 1e-3, scale="rms", ties=0.01),
    "fp16": Tolerance(5e-3, 2e-2, scale="rms", ties=0.01),
}
"""By precision. FP32 sums in another order; FP16 rounds to 11 bits at every node."""


def example_shapes(profile: Profile) -> Iterator[dict[str, Shape]]:
    """Shapes to compare at: a profile's smallest and typical one, and largest lengths of a single request."""
    yield {name: shapes.smallest for name, shapes in profile.shapes.items()}
    yield {name: shapes.typical for name, shapes in profile.shapes.items()}
    yield {name: (1, *shapes.largest[1:]) for name, shapes in profile.shapes.items()}


def example_feeds(model: onnx.ModelProto, profile: Profile) -> Iterator[Arrays]:
    """Inputs of a model for each of a profile's example shapes."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    generator = np.random.default_rng(0)
    for shapes in example_shapes(profile):
        yield {
            name: example(name, shape, generator).astype(helper.tensor_dtype_to_np_dtype(types[name]))
            for name, shape in shapes.items()
        }


def states_of(model: onnx.ModelProto) -> Mapping[str, str]:
    """Input and output of a model's state; nothing for one without."""
    return {STATE_INPUT: STATE_OUTPUT} if any(v.name == STATE_INPUT for v in model.graph.input) else {}


def compare_plan(
    plan: Path, model: onnx.ModelProto, profiles: Sequence[Profile], reference: Run, tolerance: Tolerance
) -> dict[str, float]:
    """Runs a plan in TensorRT by Polygraphy, every profile at its example shapes.

    Returns:
        Worst deviation of each output, as a share of the tolerance.

    Raises:
        ParityError: an output is too far from the reference.
        PlanError: the plan fails.
    """
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    from autovoice_export.tensorrt.runtime import quietly

    worst: dict[str, float] = {}
    with quietly(f"running {plan.name}"):
        engine = EngineFromBytes(plan.read_bytes())()
        for index, profile in enumerate(profiles):
            with TrtRunner(engine, optimization_profile=index) as runner:

                def run(feed: Arrays, runner: Any = runner) -> Arrays:
                    outputs = runner.infer(dict(feed), check_inputs=True)
                    return {name: np.array(value) for name, value in outputs.items()}

                expected = cases(example_feeds(model, profile), reference, states_of(model))
                found = compare(f"profile {profile.name}", run, expected, tolerance, "ONNX Runtime")
                worst = {name: max(share, worst.get(name, 0.0)) for name, share in found.shares.items()}
    return worst
