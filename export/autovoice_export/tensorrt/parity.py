"""Holds one engine to another on the same inputs: a plan to ONNX Runtime, an FP16 file to its original."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from autovoice_export.onnx.examples import example
from autovoice_export.stage import STATE_INPUT, STATE_OUTPUT
from autovoice_export.tensorrt.errors import PlanError
from autovoice_export.tensorrt.plan_config import Profile, Shape

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]

F0_TOLERANCE_HZ = 0.1
TIES = 0.01
"""Share of frames in which what is as good may be picked instead: another dip, as deep (see
`pitch_yin.reference.pick_pitch`), for the pitch, another vector, as near, for what was retrieved."""


@dataclass(frozen=True)
class Tolerance:
    """How far outputs may be apart.

    Attributes:
        absolute: added to
        relative: times the root mean square of the reference.
    """

    absolute: float
    relative: float


TOLERANCES = {"fp32": Tolerance(1e-3, 1e-3), "fp16": Tolerance(5e-3, 2e-2)}
"""By precision. FP32 sums in another order; FP16 rounds to 11 bits at every node."""


def example_shapes(profile: Profile) -> Iterator[dict[str, Shape]]:
    """Shapes to compare at: a profile's smallest and typical one, and largest lengths of a single request."""
    yield {name: shapes.smallest for name, shapes in profile.shapes.items()}
    yield {name: shapes.typical for name, shapes in profile.shapes.items()}
    yield {name: (1, *shapes.largest[1:]) for name, shapes in profile.shapes.items()}


def example_feeds(
    model: onnx.ModelProto, profile: Profile, reference: Run
) -> Iterator[dict[str, NDArray[Any]]]:
    """Inputs for each of a profile's example shapes, and for a model with state also with a state it left.

    Args:
        model: whose inputs are fed.
        profile: gives the shapes.
        reference: makes the state.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    generator = np.random.default_rng(0)
    for shapes in example_shapes(profile):
        feed: dict[str, NDArray[Any]] = {
            name: example(name, shape, generator).astype(helper.tensor_dtype_to_np_dtype(types[name]))
            for name, shape in shapes.items()
        }
        yield feed
        if STATE_INPUT in feed:
            yield {**feed, STATE_INPUT: reference(feed)[STATE_OUTPUT]}


def onnx_runtime(model: bytes | Path) -> Run:
    """ONNX Runtime on the CPU.

    Raises:
        PlanError: it does not take the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise PlanError(f"ONNX Runtime does not take the model: {' '.join(str(error).split())}") from error
    names = [value.name for value in session.get_outputs()]

    def run(feed: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, dict(feed)), strict=True))

    return run


def compare_plan(
    plan: Path, model: onnx.ModelProto, profiles: Sequence[Profile], reference: Run, tolerance: Tolerance
) -> dict[str, float]:
    """Runs a plan in TensorRT by Polygraphy, every profile at its example shapes.

    Returns:
        Worst deviation of each output, as a share of the tolerance.

    Raises:
        PlanError: an output is too far from the reference, or the plan fails.
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

                feeds = example_feeds(model, profile, reference)
                found = compare(run, reference, feeds, tolerance, f"profile {profile.name}")
                worst = {name: max(share, worst.get(name, 0.0)) for name, share in found.items()}
    return worst


def compare(
    run: Run, reference: Run, feeds: Iterable[Arrays], tolerance: Tolerance, what: str
) -> dict[str, float]:
    """Runs both on all inputs.

    Args:
        run: what is judged.
        reference: what it should equal.
        feeds: inputs by name.
        tolerance: see there.
        what: is judged, for errors.

    Returns:
        Worst deviation of each output, as a share of the tolerance.

    Raises:
        PlanError: an output has another shape, is not finite, or is too far from the reference.
    """
    worst: dict[str, float] = {}
    for feed in feeds:
        expected, found = reference(feed), run(feed)
        for name, share in _deviations(expected, found, tolerance, what).items():
            worst[name] = max(share, worst.get(name, 0.0))
            if worst[name] > 1.0:
                shapes = {key: list(value.shape) for key, value in feed.items()}
                raise PlanError(
                    f"{what}: {name} is {share:.3g} times as far from ONNX Runtime's as allowed, at {shapes}"
                )
    return worst


def _deviations(expected: Arrays, found: Arrays, tolerance: Tolerance, what: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    ties: NDArray[np.bool_] | None = None
    for name in sorted(expected, key=lambda name: name != "F0"):  # F0 first: where it ties, others follow
        want, have = expected[name], found[name]
        if want.shape != have.shape:
            raise PlanError(f"{what}: {name} has shape {list(have.shape)}, not {list(want.shape)}")
        if not np.isfinite(have).all():
            raise PlanError(f"{what}: {name} is not finite")
        error = np.abs(have.astype(np.float64) - want)
        if name == "F0":
            ties = error > F0_TOLERANCE_HZ
            shares[name] = float(ties.mean()) / TIES
            continue
        if ties is not None and error.shape == ties.shape:
            error = np.where(ties, 0.0, error)
        scale = float(np.sqrt(np.mean(np.square(want, dtype=np.float64)))) if want.size else 0.0
        allowed = tolerance.absolute + tolerance.relative * scale
        if name == "RETRIEVED":
            shares[name] = float((error.max(axis=-1) > allowed).mean()) / TIES
            continue
        shares[name] = float(error.max(initial=0.0)) / allowed
    return shares
