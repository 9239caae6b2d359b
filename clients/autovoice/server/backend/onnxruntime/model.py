"""Triton's `onnxruntime` backend in Python, for servers that come without the native one.

Lies in the backend directory as `onnxruntime/model.py` and serves every model whose config says
`backend: "onnxruntime"`, so that one config.pbtxt means the same here and with NVIDIA's C++ backend. It reads
the parameters of that backend under their own names and, beyond it, refuses values that are not finite and
inputs of more than `max_input_bytes`, and counts answers and their faults for Prometheus.

One process of Python serves one instance of one model. It imports only the modules of this package that read
a config and make a session, which every process pays for when it starts.
"""

from __future__ import annotations

import re
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from google.protobuf import json_format

try:
    from autovoice.engines.onnx_session import CUDA_PROVIDER, make_session
    from autovoice.errors import InferenceError, RequestError
    from autovoice.repository.file_check import check_file
    from autovoice.repository.model_config import (
        DEFAULT_MODEL_FILENAME,
        ModelSpec,
        protobuf_module,
        spec_from_config,
    )
    from autovoice.server.answers import (
        ANSWERS,
        AUDIO_TENSORS,
        FAULTS,
        NOT_FINITE,
        AnswerCounter,
        audio_faults,
    )
except ImportError as error:
    raise ImportError(
        f"the onnxruntime backend needs the package autovoice in the Python of {sys.prefix} ({error}); run "
        "pip install autovoice there"
    ) from None

DEFAULT_IDLE_SECONDS = 1.0  # Triton's own default of max_sequence_idle_microseconds
DEFAULT_MAX_SEQUENCES = 1024

# Requests above this size are rare; the memory that ONNX Runtime gathered for them is given back at once.
LARGE_REQUEST_BYTES = 2 << 20

_SHRINK = "memory.enable_memory_arena_shrinkage"
_SYMBOLIC_SIZE = re.compile(r"(?:(\d+)\*)?([A-Za-z]\w*)")

Arrays = dict[str, Any]


@dataclass
class Work:
    """One request on its way through the model.

    Attributes:
        request: Triton's.
        wanted: names of the outputs that are asked for.
        inputs: arrays by name, batch axis first.
        outputs: likewise, once there are any.
        error: why there are none: a `RequestError` where the request is wrong.
    """

    request: Any
    wanted: tuple[str, ...] = ()
    inputs: Arrays = field(default_factory=dict)
    outputs: Arrays = field(default_factory=dict)
    error: InferenceError | None = None

    @property
    def shapes(self) -> tuple[Any, ...]:
        """What has to be equal for two requests to share a run."""
        return (self.wanted, *(array.shape[1:] for array in self.inputs.values()))


class SequenceStates:
    """States of live sequences by correlation id.

    Triton gives a Python backend the initial state with every request and keeps nothing it returns, so the
    states live here. Sequences that nobody ended go when they were idle for as long as Triton itself waits,
    or when there are more than Triton has places for, the longest idle first.

    Args:
        capacity: sequences held at most.
        idle_seconds: how long an idle sequence is kept.
    """

    def __init__(self, capacity: int, idle_seconds: float) -> None:
        self._capacity = capacity
        self._idle_seconds = idle_seconds
        self._held: OrderedDict[Any, tuple[float, Arrays]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, sequence: Any) -> Arrays | None:
        """States of a sequence, None when it is not live."""
        held = self._held.get(sequence)
        return held[1] if held is not None else None

    def put(self, sequence: Any, states: Arrays) -> None:
        """Keep the states of a sequence until its next request."""
        now = time.monotonic()
        self._held[sequence] = (now, states)
        self._held.move_to_end(sequence)
        while len(self._held) > self._capacity:
            self._held.popitem(last=False)
        while self._held and now - next(iter(self._held.values()))[0] > self._idle_seconds:
            self._held.popitem(last=False)

    def drop(self, sequence: Any) -> None:
        """Forget a sequence."""
        self._held.pop(sequence, None)


class TritonPythonModel:
    """What Triton's Python backend drives; the names of the methods are its."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model and run it once.

        Raises:
            Exception: which Triton reports as the reason why the model did not load.
        """
        import onnxruntime

        self._name = args["model_name"]
        config = json_format.Parse(
            args["model_config"], protobuf_module().ModelConfig(), ignore_unknown_fields=True
        )
        filename = config.default_model_filename or DEFAULT_MODEL_FILENAME
        path = Path(args["model_repository"], args["model_version"], filename)
        spec = replace(spec_from_config(config, f"the config of {self._name}"), model_file=path)
        self._session = _open_session(spec, path, config.optimization.graph.level, args)
        check_file(spec, self._session.get_inputs(), self._session.get_outputs())

        self._shrink = onnxruntime.RunOptions()
        self._shrink.add_run_config_entry(_SHRINK, "cpu:0")
        self._always_shrink = _SHRINK in spec.parameters
        self._max_bytes = int(spec.parameters.get("max_input_bytes", sys.maxsize))
        self._states = {state.source.name: state.output_name for state in spec.states}
        self._output_names = tuple(output.name for output in spec.outputs)
        self._shapes = {node.name: tuple(node.shape) for node in self._session.get_inputs()}
        batching = config.sequence_batching
        idle = batching.max_sequence_idle_microseconds / 1e6 or DEFAULT_IDLE_SECONDS
        # Triton ends an idle sequence after the same time; kept a little longer here, no live one is lost.
        self._sequences = SequenceStates(
            2 * (batching.oldest.max_candidate_sequences or DEFAULT_MAX_SEQUENCES), 1.5 * idle
        )
        self._audio = _audio_tensors(spec)
        self._families, metrics = _metrics(self._name, args["model_version"])
        self._counter = AnswerCounter(metrics)
        if self._states:
            # Triton cannot warm up a model with implicit state: its requests would come without the state.
            self._session.run(None, self._smallest_inputs(spec))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, those of equal shape in one run; each gets its own response, in their order."""
        works = [self._admit(request) for request in requests]
        for group in _groups([work for work in works if not work.error]):
            self._run_group(group)
        return [self._respond(work) for work in works]

    def finalize(self) -> None:
        """Free the model; Triton ends the process next."""
        self._counter.close()
        del self._session

    def _admit(self, request: Any) -> Work:
        work = Work(request)
        try:
            asked = set(request.requested_output_names())
            work.wanted = tuple(name for name in self._output_names if name in asked)
            for tensor in request.inputs():
                array = tensor.as_numpy()
                self._check_values(tensor.name(), array)
                work.inputs[tensor.name()] = array
            self._check_sizes(work.inputs)
            if self._states:
                self._restore_states(work)
        except RequestError as error:
            self._fail(work, error)
        return work

    def _check_values(self, name: str, array: Any) -> None:
        if array.size == 0:
            raise RequestError(f"{name} is empty (shape {list(array.shape)}); no axis may be 0")
        if array.nbytes > self._max_bytes:
            raise RequestError(
                f"{name} has {array.nbytes} bytes, more than the {self._max_bytes} allowed; send the audio "
                "in pieces or as a stream"
            )
        if not _is_finite(array):
            raise RequestError(f"{name} holds values that are not finite; send numbers only")

    def _check_sizes(self, inputs: Arrays) -> None:
        """Hold the sizes of a request to the symbolic ones of the file, such as 240*F."""
        known: dict[str, tuple[int, str]] = {}
        for name, array in inputs.items():
            for position, (size, expected) in enumerate(zip(array.shape, self._shapes[name], strict=False)):
                symbol = _SYMBOLIC_SIZE.fullmatch(expected) if isinstance(expected, str) else None
                if symbol is None:
                    continue
                factor, variable = int(symbol[1] or 1), symbol[2]
                count, rest = divmod(size, factor)
                if rest:
                    raise RequestError(
                        f"{name} has {size} values in axis {position}; send a multiple of {factor}"
                    )
                other, by = known.setdefault(variable, (count, name))
                if other != count:
                    raise RequestError(
                        f"{name} has {size} values in axis {position}, but {by} asks for {other * factor}"
                    )

    def _restore_states(self, work: Work) -> None:
        """Put the states of the sequence in the place of the initial ones that Triton sent."""
        sequence = work.request.correlation_id()
        if work.request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            self._sequences.drop(sequence)
            return
        states = self._sequences.get(sequence)
        if states is None:
            # Lost with a process that died, or dropped after an error: zeros would be someone's wrong audio.
            raise RequestError(f"the state of sequence {sequence} is lost; start the sequence again")
        work.inputs.update(states)

    def _run_group(self, group: list[Work]) -> None:
        try:
            self._run(group)
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            if len(group) == 1:
                shapes = {name: list(array.shape) for name, array in group[0].inputs.items()}
                reason = f"ONNX Runtime failed on inputs of shapes {shapes}: {_first_line(error)}"
                self._fail(group[0], RequestError(reason))
                return
            # One of them is to blame: only that one is to fail.
            for work in group:
                self._run_group([work])

    def _run(self, group: list[Work]) -> None:
        wanted = (*group[0].wanted, *self._states.values())
        if len(group) == 1:
            feeds = group[0].inputs
        else:
            feeds = {name: np.concatenate([work.inputs[name] for work in group]) for name in group[0].inputs}
        large = sum(array.nbytes for array in feeds.values()) > LARGE_REQUEST_BYTES
        values = self._session.run(wanted, feeds, self._shrink if large or self._always_shrink else None)
        start = 0
        for work in group:
            if len(group) == 1:
                rows = values
            else:
                end = start + next(iter(work.inputs.values())).shape[0]
                rows = [value[start:end] for value in values]
                start = end
            made = dict(zip(wanted, rows, strict=True))
            bad = next((name for name, value in made.items() if not _is_finite(value)), None)
            if bad is not None:
                # The inputs were finite: whoever sent them has done nothing wrong that could be told.
                reason = f"{bad} came out as not a number from finite inputs; audio belongs within [-1, 1]"
                self._fail(work, InferenceError(reason))
                self._counter.count([NOT_FINITE])
                continue
            self._count_answer(work, made)
            if self._states:
                self._keep_states(work, made)
            work.outputs = made

    def _count_answer(self, work: Work, made: Arrays) -> None:
        faults = []
        if self._audio is not None and self._audio[1] in made:
            source, converted = self._audio
            faults = audio_faults(work.inputs[source], made[converted])
        self._counter.count(faults)

    def _keep_states(self, work: Work, made: Arrays) -> None:
        states = {source: made.pop(target) for source, target in self._states.items()}
        sequence = work.request.correlation_id()
        if work.request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END:
            self._sequences.drop(sequence)
            return
        # Copies: a row of a batch would keep the states of the whole batch in memory.
        self._sequences.put(sequence, {name: value.copy() for name, value in states.items()})

    def _fail(self, work: Work, error: InferenceError) -> None:
        work.error = error.with_traceback(None)  # its frames would keep the request's arrays in memory
        if self._states:
            # The stages before or beside this one may have moved on: nothing after a gap may pass for audio.
            self._sequences.drop(work.request.correlation_id())

    def _respond(self, work: Work) -> Any:
        if work.error is not None:
            text = f"{self._name}: {work.error}"
            identifier = work.request.request_id()
            pb_utils.Logger.log_warn(f"[request id: {identifier or '<id_unknown>'}] {text}")
            codes = pb_utils.TritonError
            code = codes.INVALID_ARG if isinstance(work.error, RequestError) else codes.INTERNAL
            return pb_utils.InferenceResponse(error=codes(text, code))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, np.ascontiguousarray(work.outputs[name])) for name in work.wanted]
        )

    def _smallest_inputs(self, spec: ModelSpec) -> Arrays:
        """Zeros of the smallest size that the file allows."""
        tensors = (*spec.inputs, *(state.source for state in spec.states))
        return {
            tensor.name: np.zeros(_smallest(self._shapes[tensor.name]), tensor.dtype) for tensor in tensors
        }


def _audio_tensors(spec: ModelSpec) -> tuple[str, str] | None:
    """Names of the audio that a model converts and answers, None for one that does something else."""
    inputs = {tensor.name for tensor in spec.inputs}
    outputs = {tensor.name for tensor in spec.outputs}
    for source, converted in AUDIO_TENSORS:
        if source in inputs and converted in outputs:
            return source, converted
    return None


def _metrics(model: str, version: str) -> tuple[list[Any], dict[str, Any]]:
    """The counters that Triton shows at /metrics, after their families, which must outlive them."""
    counter = pb_utils.MetricFamily.COUNTER
    answers = pb_utils.MetricFamily(
        name="autovoice_answers_total",
        description="Answers of models of the onnxruntime backend, faulty ones included",
        kind=counter,
    )
    faulty = pb_utils.MetricFamily(
        name="autovoice_faulty_answers_total",
        description="Answers that are not finite, silent though the source was not, or clipped",
        kind=counter,
    )
    labels = {"model": model, "version": version}
    metrics = {fault: faulty.Metric(labels={**labels, "fault": fault}) for fault in FAULTS}
    return [answers, faulty], {ANSWERS: answers.Metric(labels=labels), **metrics}


def _smallest(shape: tuple[Any, ...]) -> list[int]:
    symbols = [None if isinstance(size, int) else _SYMBOLIC_SIZE.fullmatch(size or "") for size in shape]
    return [
        size if isinstance(size, int) else int(symbol[1] or 1) if symbol else 1
        for size, symbol in zip(shape, symbols, strict=True)
    ]


def _open_session(spec: ModelSpec, path: Path, graph_level: int, args: Mapping[str, str]) -> Any:
    """The session of an instance, with the options of the native backend: its parameters and graph level."""
    import onnxruntime

    parameters = spec.parameters
    levels = onnxruntime.GraphOptimizationLevel

    def configure(options: Any) -> None:
        options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
        if parameters.get("execution_mode") == "1":
            options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        options.enable_cpu_mem_arena = parameters.get("enable_mem_arena", "1") == "1"
        options.enable_mem_pattern = parameters.get("enable_mem_pattern", "1") == "1"
        options.graph_optimization_level = {
            -1: levels.ORT_ENABLE_BASIC,
            0: levels.ORT_ENABLE_ALL,
            1: levels.ORT_ENABLE_EXTENDED,
            2: levels.ORT_DISABLE_ALL,
        }[graph_level]
        for name, value in parameters.items():
            if name.startswith("session."):
                options.add_session_config_entry(name, value)

    on_gpu = args["model_instance_kind"] == "GPU"
    if on_gpu and CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise RuntimeError(
            f"{spec.name} is configured for a GPU, and this onnxruntime has no CUDA; install onnxruntime-gpu "
            "or set KIND_CPU in its instance_group"
        )
    session = make_session(
        path,
        device=f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu",
        threads=int(parameters.get("intra_op_thread_count", 0)),
        configure=configure,
    )
    if on_gpu and CUDA_PROVIDER not in session.get_providers():
        raise RuntimeError(f"{spec.name} could not start CUDA; check the driver and the CUDA libraries")
    return session


def _groups(works: list[Work]) -> Iterator[list[Work]]:
    """Requests of equal shape together; Triton never puts two requests of one sequence into one batch."""
    groups: dict[tuple[Any, ...], list[Work]] = {}
    for work in works:
        groups.setdefault(work.shapes, []).append(work)
    yield from groups.values()


def _is_finite(array: Any) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
