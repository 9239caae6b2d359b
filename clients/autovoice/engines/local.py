"""The embedded engine: runs a Triton model repository in this process with ONNX Runtime."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autovoice.engines.engine import Sequence, StepTiming, Tensors, report_step
from autovoice.engines.onnx_session import OnnxSession, load_session, resolve_device
from autovoice.errors import InferenceTimeoutError, RequestError, SequenceError
from autovoice.repository.model_config import ENSEMBLE, ModelSpec, StepSpec, TensorSpec
from autovoice.repository.reader import ModelRepository

MAX_SEQUENCES = 512

_States = dict[str, dict[str, npt.NDArray[Any]]]  # model -> state input -> value


class SequenceStore:
    """States of live sequences by id, bounded: the longest unused one goes first.

    The next request of a sequence that went is an error.

    Args:
        capacity: sequences held at most.
    """

    def __init__(self, capacity: int = MAX_SEQUENCES) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._states: OrderedDict[int, _States] = OrderedDict()

    def __len__(self) -> int:
        with self._lock:
            return len(self._states)

    def begin(self, sequence: Sequence) -> _States:
        """States before a request, empty at the start of a sequence.

        Raises:
            SequenceError: when the sequence was never started, has ended or was evicted.
        """
        if sequence.start:
            return {}
        with self._lock:
            if sequence.id not in self._states:
                raise SequenceError(
                    f"sequence {sequence.id} is not live (never started, ended, or one of more than "
                    f"{self._capacity} open at "
                    f"once); start it again"
                )
            return self._states[sequence.id]

    def commit(self, sequence: Sequence, states: _States) -> None:
        """Keep the states after a request that succeeded as a whole."""
        with self._lock:
            self._states.pop(sequence.id, None)
            if sequence.end:
                return
            self._states[sequence.id] = states
            while len(self._states) > self._capacity:
                self._states.popitem(last=False)

    def clear(self) -> None:
        """Drop every sequence."""
        with self._lock:
            self._states.clear()


@dataclass(frozen=True)
class _Request:
    """What the steps of one request share."""

    before: _States | None
    after: _States
    deadline: float | None


class LocalEngine:
    """`Engine` over a folder of models.

    Args:
        repository: the models.
        device: `"auto"`, `"cuda"` or `"cpu"`.
        threads: ONNX Runtime threads per model.
        sequences: where states live; engines that share it can take over each other's sequences.

    Raises:
        DeviceError: when `"cuda"` is asked for and not offered.
    """

    def __init__(
        self,
        repository: ModelRepository,
        *,
        device: str = "cpu",
        threads: int = 1,
        sequences: SequenceStore | None = None,
    ) -> None:
        self._repository = repository
        self._device = resolve_device(device)
        self._threads = threads
        self._sequences = sequences if sequences is not None else SequenceStore()
        self._sessions: dict[tuple[str, int], OnnxSession] = {}
        self._plans: dict[str, list[StepSpec]] = {}

    @property
    def device(self) -> str:
        """`"cpu"` or `"cuda"`."""
        return self._device

    @property
    def repository(self) -> ModelRepository:
        """The models."""
        return self._repository

    @property
    def sequences(self) -> SequenceStore:
        """States of live sequences."""
        return self._sequences

    def spec(self, model: str) -> ModelSpec:
        """The config of a model; see `Engine.spec`."""
        return self._repository.spec(model)

    def infer(
        self, model: str, inputs: Tensors, *, sequence: Sequence | None = None, timeout: float | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run one request; see `Engine.infer`. States change only when every step has succeeded."""
        spec = self._repository.spec(model)
        _check_inputs(spec, inputs)
        request = _Request(
            before=self._sequences.begin(sequence) if sequence is not None else None,
            after={},
            deadline=time.monotonic() + timeout if timeout is not None else None,
        )
        outputs = self._run(spec, dict(inputs), request)
        if sequence is not None:
            self._sequences.commit(sequence, request.after)
        return outputs

    def load(self, model: str) -> None:
        """Load one model now instead of when it is first used.

        Raises:
            RepositoryError: when it does not fit its config.
            DeviceError: when the device cannot run it.
        """
        self._session(self._repository.spec(model))

    def close(self) -> None:
        """Let go of sessions (those no other pipeline uses are freed) and drop all sequences."""
        self._sessions.clear()
        self._sequences.clear()

    def _run(
        self, spec: ModelSpec, inputs: dict[str, npt.NDArray[Any]], request: _Request
    ) -> dict[str, npt.NDArray[Any]]:
        if spec.kind == ENSEMBLE:
            return self._run_ensemble(spec, inputs, request)
        return self._run_model(spec, inputs, request)

    def _run_ensemble(
        self, spec: ModelSpec, tensors: dict[str, npt.NDArray[Any]], request: _Request
    ) -> dict[str, npt.NDArray[Any]]:
        plan = self._plans.get(spec.name)
        if plan is None:
            plan = self._plans[spec.name] = self._repository.steps_in_order(spec)
        wanted = {tensor.name for tensor in spec.outputs}
        for position, step in enumerate(plan):
            model = self._repository.spec(step.model, step.version)
            made = self._run(
                model, {name: tensors[source] for name, source in step.input_map.items()}, request
            )
            tensors.update({target: made[name] for name, target in step.output_map.items()})
            # Intermediate tensors are the bulk of the memory: keep only what a later step still reads.
            needed = wanted.union(*(later.input_map.values() for later in plan[position + 1 :]))
            tensors = {name: value for name, value in tensors.items() if name in needed}
        return {name: tensors[name] for name in wanted}

    def _run_model(
        self, spec: ModelSpec, feeds: dict[str, npt.NDArray[Any]], request: _Request
    ) -> dict[str, npt.NDArray[Any]]:
        session = self._session(spec)
        if spec.states:
            feeds.update(self._states_before(spec, feeds, request))
        names = [tensor.name for tensor in spec.outputs] + [state.output_name for state in spec.states]
        remaining = None if request.deadline is None else request.deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise InferenceTimeoutError(
                f"no time was left for {spec.name}; raise timeout_seconds or send less audio"
            )
        started = time.perf_counter()
        values = session.run(spec.name, names, feeds, remaining)
        elapsed = time.perf_counter() - started
        outputs = dict(zip(names, values, strict=True))
        if spec.states:
            request.after[spec.name] = {
                state.source.name: outputs.pop(state.output_name) for state in spec.states
            }
        report_step(StepTiming(spec.name, elapsed, self._device))
        return outputs

    def _states_before(
        self, spec: ModelSpec, feeds: dict[str, npt.NDArray[Any]], request: _Request
    ) -> dict[str, npt.NDArray[Any]]:
        if request.before is None:
            raise SequenceError(
                f"model {spec.name} keeps state between requests; send it in a sequence with an id"
            )
        batch = next(iter(feeds.values())).shape[:1] if spec.max_batch_size else ()
        held = request.before.get(spec.name)
        if held is None:
            return {s.source.name: np.zeros((*batch, *s.source.dims), s.source.dtype) for s in spec.states}
        for name, value in held.items():
            if spec.max_batch_size and value.shape[:1] != batch:
                raise SequenceError(
                    f"model {spec.name} got a batch of {batch[0]} in a sequence whose {name} has "
                    f"{value.shape[0]}; keep the batch"
                )
        return held

    def _session(self, spec: ModelSpec) -> OnnxSession:
        key = (spec.name, spec.version)
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = load_session(spec, device=self._device, threads=self._threads)
        return session


def check_repository(repository: ModelRepository) -> None:
    """Load every model on the CPU and hold every config against its file.

    Raises:
        RepositoryError: on the first thing that does not fit.
    """
    for name in repository.names():
        spec = repository.spec(name)
        if spec.kind == ENSEMBLE:
            repository.steps_in_order(spec)
        else:
            load_session(spec, device="cpu", threads=1)


def _check_inputs(spec: ModelSpec, inputs: Tensors) -> None:
    """Refuse a request that Triton would refuse."""
    expected = {tensor.name for tensor in spec.inputs}
    if expected != set(inputs):
        raise RequestError(
            f"model {spec.name} takes {', '.join(sorted(expected))}, not {', '.join(sorted(inputs))}; "
            "send exactly its inputs"
        )
    batches = set()
    for tensor in spec.inputs:
        value = inputs[tensor.name]
        _check_input(spec, tensor, value)
        if spec.max_batch_size:
            batches.add(value.shape[0])
    if spec.max_batch_size and (len(batches) > 1 or max(batches) > spec.max_batch_size or min(batches) < 1):
        raise RequestError(
            f"model {spec.name} got batch sizes {sorted(batches)}; send one from 1 to {spec.max_batch_size}"
        )


def _check_input(spec: ModelSpec, tensor: TensorSpec, value: npt.NDArray[Any]) -> None:
    if value.dtype != tensor.dtype:
        raise RequestError(f"input {tensor.name} of {spec.name} is {value.dtype}; send {tensor.dtype}")
    dims = value.shape[1:] if spec.max_batch_size else value.shape
    fits = len(dims) == len(tensor.dims) and all(
        want in (-1, got) for want, got in zip(tensor.dims, dims, strict=True)
    )
    if not fits or (spec.max_batch_size and value.ndim == 0):
        raise RequestError(
            f"input {tensor.name} of {spec.name} has dims {list(dims)}; send {list(tensor.dims)} (-1 is any "
            "length)"
        )
