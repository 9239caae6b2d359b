"""The embedded engine: runs a Triton model repository in this process with ONNX Runtime."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autovoice.engines.engine import Sequence, StepTiming, Tensors, report_step
from autovoice.engines.onnx_session import OnnxSession, load_session, resolve_device
from autovoice.engines.operators import OperatorRecorder
from autovoice.errors import (
    CapacityError,
    InferenceTimeoutError,
    RequestError,
    SequenceError,
    StreamClosedError,
)
from autovoice.repository.model_config import ENSEMBLE, ModelSpec, StepSpec, TensorSpec
from autovoice.repository.reader import ModelRepository

MAX_SEQUENCES = 512
IDLE_SECONDS = 60.0  # twice what the configs of the base voice allow in a server

_Arrays = dict[str, npt.NDArray[Any]]
_States = dict[str, _Arrays]  # model -> state input -> value


class SequenceStore:
    """States of live sequences by id.

    A new sequence takes the place of one that was idle for `idle_seconds`, never that of a live one.

    Args:
        capacity: sequences held at most.
        idle_seconds: after which a sequence may lose its place to a new one, when all are taken.
    """

    def __init__(self, capacity: int = MAX_SEQUENCES, idle_seconds: float = IDLE_SECONDS) -> None:
        self._capacity = capacity
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._held: OrderedDict[int, tuple[float, _States]] = OrderedDict()  # the longest idle first

    def __len__(self) -> int:
        with self._lock:
            return len(self._held)

    def begin(self, sequence: Sequence) -> _States:
        """States before a request, empty at the start of a sequence.

        Raises:
            SequenceError: when the sequence was never started, has ended or lost its place.
            CapacityError: when a new sequence finds no place.
        """
        now = time.monotonic()
        with self._lock:
            if sequence.start:
                if not sequence.end and sequence.id not in self._held:
                    self._make_place(now)
                return {}
            if sequence.id not in self._held:
                raise SequenceError(
                    f"sequence {sequence.id} is not live (never started, ended, or idle for more than "
                    f"{self._idle_seconds:g} s while others needed its place); start it again"
                )
            return self._hold(sequence.id, now, self._held[sequence.id][1])

    def commit(self, sequence: Sequence, states: _States) -> None:
        """Keep the states after a request that succeeded as a whole."""
        with self._lock:
            if sequence.end:
                self._held.pop(sequence.id, None)
            else:
                self._hold(sequence.id, time.monotonic(), states)

    def drop(self, sequence_id: int) -> None:
        """Forget a sequence, if it is live."""
        with self._lock:
            self._held.pop(sequence_id, None)

    def clear(self) -> None:
        """Forget every sequence."""
        with self._lock:
            self._held.clear()

    def _hold(self, sequence_id: int, now: float, states: _States) -> _States:
        self._held[sequence_id] = now, states
        self._held.move_to_end(sequence_id)
        return states

    def _make_place(self, now: float) -> None:
        while len(self._held) >= self._capacity:
            oldest, (used, _) = next(iter(self._held.items()))
            if now - used < self._idle_seconds:
                raise CapacityError(
                    f"{self._capacity} streams and long conversions are live in this process, which is the "
                    "limit; flush or close some, or run more processes or a server"
                )
            del self._held[oldest]


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
        device: one device, see `PipelineConfig`.
        threads: ONNX Runtime threads per model.
        sequences: where states live; engines that share it can take over each other's sequences.
        recorder: makes the sessions and records what their operators cost; None for shared sessions.

    Raises:
        DeviceError: when a CUDA device is asked for and not there.
    """

    def __init__(
        self,
        repository: ModelRepository,
        *,
        device: str = "cpu",
        threads: int = 1,
        sequences: SequenceStore | None = None,
        recorder: OperatorRecorder | None = None,
    ) -> None:
        self._repository = repository
        self._device = resolve_device(device)
        self._threads = threads
        self._sequences = sequences if sequences is not None else SequenceStore()
        self._recorder = recorder
        self._sessions: dict[tuple[str, int], OnnxSession] = {}
        self._steps: dict[str, list[StepSpec]] = {}
        self._closed = False

    @property
    def device(self) -> str:
        """`"cpu"`, `"cuda"` or `"cuda:N"`."""
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
        if self._closed:
            raise StreamClosedError("this pipeline has been closed; make another")
        spec = self._repository.spec(model)
        if spec.kind == ENSEMBLE:
            self._ordered_steps(spec)  # what does not fit together is said before the first request
        return spec

    def infer(
        self, model: str, inputs: Tensors, *, sequence: Sequence | None = None, timeout: float | None = None
    ) -> _Arrays:
        """Run one request; see `Engine.infer`. States change only when every step has succeeded."""
        spec = self.spec(model)
        _check_inputs(spec, inputs)
        request = _Request(
            before=self._sequences.begin(sequence) if sequence is not None else None,
            after={},
            deadline=time.monotonic() + timeout if timeout is not None else None,
        )
        run = self._run_ensemble if spec.kind == ENSEMBLE else self._run_model
        outputs = run(spec, dict(inputs), request)
        if sequence is not None:
            self._sequences.commit(sequence, request.after)
        return outputs

    def end_sequence(self, model: str, inputs: Tensors, sequence_id: int) -> None:
        """Drop the states of a sequence; see `Engine.end_sequence`."""
        self._sequences.drop(sequence_id)

    def load(self, model: str) -> None:
        """Load one model now instead of when it is first used.

        Raises:
            RepositoryError: when it does not fit its config.
            DeviceError: when the device cannot run it.
        """
        self._session(self.spec(model))

    def close(self) -> None:
        """Free the sessions that no other engine uses, and drop all sequences; see `Engine.close`."""
        self._closed = True
        self._sessions.clear()
        self._sequences.clear()

    def _run_ensemble(self, spec: ModelSpec, tensors: _Arrays, request: _Request) -> _Arrays:
        steps = self._ordered_steps(spec)
        self._load_steps(steps)
        wanted = {tensor.name for tensor in spec.outputs}
        for position, step in enumerate(steps):
            model = self._repository.spec(step.model, step.version)
            run = self._run_ensemble if model.kind == ENSEMBLE else self._run_model
            made = run(model, {name: tensors[source] for name, source in step.input_map.items()}, request)
            tensors.update({target: made[name] for name, target in step.output_map.items()})
            # Intermediate tensors are the bulk of the memory: keep only what a later step still reads.
            needed = wanted.union(*(later.input_map.values() for later in steps[position + 1 :]))
            tensors = {name: value for name, value in tensors.items() if name in needed}
        return {name: tensors[name] for name in wanted}

    def _run_model(self, spec: ModelSpec, feeds: _Arrays, request: _Request) -> _Arrays:
        session = self._session(spec)
        if spec.states:
            feeds.update(_states_before(spec, feeds, request))
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

    def _load_steps(self, steps: list[StepSpec]) -> None:
        """Load the models of an ensemble that are not loaded yet, at once: each takes one core."""
        models = [self._repository.spec(step.model, step.version) for step in steps]
        missing = [
            model
            for model in models
            if model.kind != ENSEMBLE and (model.name, model.version) not in self._sessions
        ]
        if missing:
            with ThreadPoolExecutor(len(missing)) as pool:
                list(pool.map(self._session, missing))

    def _session(self, spec: ModelSpec) -> OnnxSession:
        session = self._sessions.get((spec.name, spec.version))
        if session is None:
            load = load_session if self._recorder is None else self._recorder.load_session
            session = load(spec, device=self._device, threads=self._threads)
            self._sessions[spec.name, spec.version] = session
        return session

    def _ordered_steps(self, ensemble: ModelSpec) -> list[StepSpec]:
        steps = self._steps.get(ensemble.name)
        if steps is None:
            steps = self._steps[ensemble.name] = self._repository.steps_in_order(ensemble)
        return steps


def _states_before(spec: ModelSpec, feeds: _Arrays, request: _Request) -> _Arrays:
    """The states that a model reads: those its last request left, zeros at the start of a sequence."""
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


def check_repository(repository: ModelRepository) -> None:
    """Load every model on the CPU and compare every config with its file.

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
