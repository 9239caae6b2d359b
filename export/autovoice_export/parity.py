"""Compares two implementations of one model on the same inputs.

PyTorch with the ONNX file made of it, one ONNX file with those it was composed of, FP16 with FP32, and a
TensorRT plan with ONNX Runtime: each is a function from input arrays to output arrays by name.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from autovoice.engines.onnx_session import make_session
from autovoice_export.build_errors import ParityError
from autovoice_export.config_types import EnsembleStep

if TYPE_CHECKING:  # plans are built where there is no PyTorch
    from autovoice_export.stage import Stage

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]
Case = tuple[Arrays, Arrays]
"""Inputs, and the outputs that are expected."""

F0_TOLERANCE_HZ = 0.1


@dataclass(frozen=True)
class Tolerance:
    """How far outputs may be apart: ``absolute + relative * scale``.

    Attributes:
        absolute: in the unit of the output.
        relative: share of the scale.
        scale: of the expected output: each value itself, their root mean square, or the largest magnitude.
        ties: share of frames that may be decided otherwise where two choices are equally good: another dip of
            the difference function, as deep (see `pitch_yin.reference.pick_pitch`), for ``F0``, or another
            vector, as near, for ``RETRIEVED``. Outputs of as many frames are not compared where F0 ties.
    """

    absolute: float
    relative: float
    scale: Literal["value", "rms", "peak"]
    ties: float = 0.0

    def allowed(self, expected: NDArray[Any]) -> NDArray[Any] | float:
        """The largest deviation from an expected output that is accepted."""
        if self.scale == "value":
            return np.asarray(self.absolute + self.relative * np.abs(expected))
        if self.scale == "peak":
            size = float(np.abs(expected).max(initial=0.0)) or 1.0
        else:
            size = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))) if expected.size else 0.0
        return self.absolute + self.relative * size


@dataclass(frozen=True)
class Agreement:
    """How well a model agrees with its reference.

    Attributes:
        model: its name.
        runs: cases that were compared.
        shares: largest deviation of each output as a share of the tolerance, at most 1.
        half_errors_db: of each output of its FP16 form, see `errors_db`; nothing for a model in FP32.
    """

    model: str
    runs: int
    shares: Mapping[str, float]
    half_errors_db: Mapping[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The largest of `shares`."""
        return max(self.shares.values(), default=0.0)

    @property
    def worst_output(self) -> str:
        """The output it belongs to."""
        return max(self.shares, key=lambda name: self.shares[name], default="")


def session_run(model: bytes | Path) -> Run:
    """Runs an ONNX file in ONNX Runtime on the CPU.

    Raises:
        ParityError: ONNX Runtime does not take the model.
    """
    try:
        session = make_session(model, threads=0)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ParityError(f"ONNX Runtime does not take the model: {' '.join(str(error).split())}") from error
    names = [value.name for value in session.get_outputs()]

    def run(feed: Arrays) -> Arrays:
        try:
            return dict(zip(names, session.run(names, dict(feed)), strict=True))
        except Exception as error:
            shapes = {name: list(value.shape) for name, value in feed.items()}
            reason = " ".join(str(error).split())
            raise ParityError(f"ONNX Runtime fails with inputs of the shapes {shapes}: {reason}") from error

    return run


def stage_run(stage: Stage) -> Run:
    """Runs a stage in PyTorch, in float64 where it can be; gives and takes float32."""
    import torch

    module = copy.deepcopy(stage.module).double() if stage.runs_in_float64 else stage.module

    def run(feed: Arrays) -> Arrays:
        given = [torch.from_numpy(feed[tensor.name]) for tensor in stage.inputs]
        if stage.runs_in_float64:
            given = [value.double() if value.is_floating_point() else value for value in given]
        with torch.no_grad():
            made = module(*given)
        made = (made,) if isinstance(made, torch.Tensor) else made
        return {
            tensor.name: value.float().numpy() if value.is_floating_point() else value.numpy()
            for tensor, value in zip(stage.outputs, made, strict=True)
        }

    return run


def chain_run(steps: Iterable[EnsembleStep], runs: Mapping[str, Run]) -> Run:
    """Runs models one after the other; gives every tensor of the chain by its name there.

    Args:
        steps: in the order of their running.
        runs: of each model by its name.
    """

    def run(feed: Arrays) -> Arrays:
        tensors = dict(feed)
        for step in steps:
            made = runs[step.model]({name: tensors[source] for name, source in step.inputs.items()})
            tensors |= {target: made[name] for name, target in step.outputs.items()}
        return tensors

    return run


def cases(feeds: Iterable[Arrays], reference: Run, states: Mapping[str, str] | None = None) -> Iterator[Case]:
    """Inputs with what the reference makes of them.

    Args:
        feeds: inputs.
        reference: makes the expected outputs.
        states: inputs of the model that carry state, with the outputs that hold their next values: each feed
            is followed by the same with the states that it left.
    """
    for feed in feeds:
        expected = reference(feed)
        yield feed, expected
        if states:
            following = {**feed, **{source: expected[target] for source, target in states.items()}}
            yield following, reference(following)


def compare(model: str, run: Run, expected: Iterable[Case], tolerance: Tolerance, origin: str) -> Agreement:
    """Runs a model on all inputs and compares its outputs with those expected.

    Args:
        model: name for the report and for errors.
        run: what is judged.
        expected: inputs and outputs, see `cases`; outputs that they lack are not compared.
        tolerance: deviation that is accepted.
        origin: what made the expected outputs, for errors.

    Raises:
        ParityError: an output deviates by more, has another shape, is not finite, or the model fails.
    """
    worst: dict[str, float] = {}
    runs = 0
    for feed, outputs in expected:
        try:
            found = run(feed)
        except ParityError as error:
            raise ParityError(f"{model}: {error}") from error
        runs += 1
        for name, share in _shares(outputs, found, tolerance, model, origin).items():
            if not share <= 1.0:
                shapes = {name: list(value.shape) for name, value in feed.items()}
                raise ParityError(
                    f"{model}: {name} is {share:.3g} times as far from that of {origin} as allowed, with "
                    f"inputs of the shapes {shapes}"
                )
            worst[name] = max(share, worst.get(name, 0.0))
    return Agreement(model, runs, worst)


def errors_db(run: Run, expected: Iterable[Case]) -> dict[str, float]:
    """How large the errors of each output are: their RMS in dB of the output's own, in the worst case.

    Args:
        run: what is judged.
        expected: inputs and outputs, see `cases`; outputs that they lack are left out.
    """
    worst: dict[str, float] = {}
    for feed, outputs in expected:
        found = run(feed)
        for name in sorted(found.keys() & outputs.keys()):
            want = outputs[name].astype(np.float64)
            error, size = (float(np.sqrt(np.mean(np.square(x)))) for x in (found[name] - want, want))
            level = -math.inf if error == 0.0 else 20 * math.log10(error / size) if size else math.inf
            worst[name] = max(level, worst.get(name, -math.inf))
    return worst


def _shares(
    expected: Arrays, found: Arrays, tolerance: Tolerance, model: str, origin: str
) -> dict[str, float]:
    """Deviation of each output as a share of what is allowed."""
    shares: dict[str, float] = {}
    tied: NDArray[np.bool_] | None = None
    for name in sorted(found.keys() & expected.keys(), key=lambda name: (name != "F0", name)):
        want, have = expected[name], found[name]  # F0 first: where it ties, others follow
        if want.shape != have.shape:
            raise ParityError(
                f"{model}: {name} has the shape {list(have.shape)} where {origin} gives {list(want.shape)}: "
                "a size that the inputs decide may have been frozen"
            )
        if not np.isfinite(have).all():
            raise ParityError(f"{model}: {name} is not finite")
        error = np.abs(have.astype(np.float64) - want)
        if name == "F0" and tolerance.ties:
            tied = error > F0_TOLERANCE_HZ
            shares[name] = float(tied.mean()) / tolerance.ties
            continue
        if tied is not None and error.shape == tied.shape:
            error = np.where(tied, 0.0, error)
        share = error / tolerance.allowed(want)
        if name == "RETRIEVED" and tolerance.ties:
            shares[name] = float((share.max(axis=-1) > 1.0).mean()) / tolerance.ties
            continue
        shares[name] = float(share.max(initial=0.0))
    return shares
