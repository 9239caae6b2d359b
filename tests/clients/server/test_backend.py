"""The Python backend alone, driven as Triton drives it."""

from __future__ import annotations

import gc
import importlib.util
import json
import subprocess
import sys
import types
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format
from onnx import TensorProto, helper, save
from triton_calls import until

import autovoice.server
from autovoice.errors import RepositoryError
from autovoice.repository.model_config import parse_config

BACKEND = Path(autovoice.server.__file__).parent / "backend" / "onnxruntime" / "model.py"
START, END = 1, 2


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class TritonError(Exception):
    INTERNAL = 1
    INVALID_ARG = 3

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class Response:
    def __init__(self, tensors: Any = None, error: TritonError | None = None) -> None:
        self.error = error
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in tensors or ()}


class Request:
    def __init__(self, feeds: dict[str, Any], sequence: int = 0, flags: int = 0, wanted: str = "Y") -> None:
        self._feeds, self._sequence, self._flags, self._wanted = feeds, sequence, flags, wanted

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, value) for name, value in self._feeds.items()]

    def requested_output_names(self) -> list[str]:
        return [self._wanted]

    def correlation_id(self) -> int:
        return self._sequence

    def flags(self) -> int:
        return self._flags

    def request_id(self) -> str:
        return "r1"


class Counters:
    """The metrics of all models, by their name and labels."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        counters = self

        class MetricFamily:
            COUNTER = "counter"

            def __init__(self, name: str, description: str, kind: str) -> None:
                assert description
                assert kind == self.COUNTER
                self._name = name

            def Metric(self, labels: dict[str, str]) -> Any:
                key = self._name + "".join(f" {label}={value}" for label, value in labels.items())
                counters.values[key] = 0.0
                return types.SimpleNamespace(increment=lambda value: counters.add(key, value))

        self.family = MetricFamily

    def add(self, key: str, value: float) -> None:
        self.values[key] += value


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def backend(counters: Counters, monkeypatch: pytest.MonkeyPatch) -> Any:
    utils = types.ModuleType("triton_python_backend_utils")
    logged: list[str] = []
    utils.__dict__.update(
        TRITONSERVER_REQUEST_FLAG_SEQUENCE_START=START,
        TRITONSERVER_REQUEST_FLAG_SEQUENCE_END=END,
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=Response,
        MetricFamily=counters.family,
        Logger=types.SimpleNamespace(log_warn=logged.append),
        logged=logged,
    )
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    spec = importlib.util.spec_from_file_location("autovoice_backend", BACKEND)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


HEAVY = ("grpc", "tritonclient", "soundfile", "soxr", "typer", "rich", "psutil", "urllib3", "pynvml")

CONFIG = """
name: "sums" backend: "onnxruntime" max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: [-1] }
output { name: "Y" data_type: TYPE_FP32 dims: [-1] }
"""
STATEFUL = """
sequence_batching { max_sequence_idle_microseconds: 2000000 oldest { max_candidate_sequences: 2 }
  state { input_name: "S" output_name: "T" data_type: TYPE_FP32 dims: [1] } }
"""


def load(backend: Any, folder: Path, extra: str, whole: bool = False, graph: Any = None, **args: str) -> Any:
    """A model, else one that adds to X all that came before in its sequence: Y = X + S, T = S + sum(X)."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "2*F"]) for name in "XY")
    s, t = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 1]) for name in "ST")
    nodes = [
        helper.make_node("Add", ["X", "S"], ["Y"]),
        helper.make_node("ReduceSum", ["X", "last"], ["rows"], keepdims=1),
        helper.make_node("Add", ["S", "rows"], ["T"]),
    ]
    last = helper.make_tensor("last", TensorProto.INT64, [1], [1])
    graph = graph or helper.make_graph(nodes, "sums", [x, s], [y, t], [last])
    (folder / "1").mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    save(model, folder / "1" / "model.onnx")
    config = json_format.MessageToDict(
        parse_config(extra if whole else CONFIG + extra, "test"),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    served = backend.TritonPythonModel()
    served.initialize(
        {
            "model_config": json.dumps(config),
            "model_name": "sums",
            "model_version": "1",
            "model_repository": str(folder),
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
            **args,
        }
    )
    return served


@pytest.fixture
def sums(backend: Any, tmp_path: Path) -> Any:
    return load(backend, tmp_path, STATEFUL)


def ask(values: list[float], sequence: int = 1, flags: int = 0) -> Request:
    """What Triton sends: the initial state comes with every request."""
    feeds = {"X": np.array([values], np.float32), "S": np.zeros((1, 1), np.float32)}
    return Request(feeds, sequence, flags)


def codes(served: Any, *requests: Request) -> list[int | None]:
    return [response.error.code if response.error else None for response in served.execute(list(requests))]


def answers(served: Any, *requests: Request) -> list[Any]:
    return [
        str(response.error) if response.error else response.outputs["Y"].tolist()[0]
        for response in served.execute(list(requests))
    ]


def test_states_follow_their_sequence(sums: Any) -> None:
    assert answers(sums, ask([1, 2], 1, START), ask([10, 20], 2, START)) == [[1, 2], [10, 20]]
    assert answers(sums, ask([0, 0], 2), ask([0, 0], 1)) == [[30, 30], [3, 3]]
    assert answers(sums, ask([5, 5], 1, START)) == [[5, 5]]
    assert answers(sums, ask([0, 0], 1, END)) == [[10, 10]]
    (error,) = answers(sums, ask([0, 0], 1))
    assert error == "sums: the state of sequence 1 is lost; start the sequence again"


def test_equal_shapes_share_one_run(sums: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    session = sums._session

    class Spy:
        def run(self, names: Any, feeds: Any, options: Any) -> Any:
            shapes.append(feeds["X"].shape)
            return session.run(names, feeds, options)

    monkeypatch.setattr(sums, "_session", Spy())
    requests = [ask([n] * (4 if n % 2 else 2), n, START) for n in range(1, 6)]
    assert answers(sums, *requests) == [[n] * (4 if n % 2 else 2) for n in range(1, 6)]
    assert sorted(shapes) == [(2, 2), (3, 4)]


def test_bad_requests_fail_alone_and_end_their_sequence(backend: Any, sums: Any) -> None:
    answers(sums, ask([1, 1], 1, START), ask([2, 2], 2, START))
    made = answers(sums, ask([float("nan"), 0], 1), ask([0, 0], 2), ask([1, 2, 3], 3, START))
    assert "not finite" in made[0]
    assert made[1] == [4, 4]
    assert "3 values in axis 1; send a multiple of 2" in made[2]
    assert "lost" in answers(sums, ask([0, 0], 1))[0]
    assert backend.pb_utils.logged[0].startswith("[request id: r1] sums: X holds")


def test_overflow_in_a_batch_fails_alone(backend: Any, sums: Any) -> None:
    answers(sums, ask([3e38, 0], 1, START), ask([1, 0], 2, START))
    made = answers(sums, ask([3e38, 0], 1), ask([0, 0], 2))
    assert "not a number" in made[0]
    assert made[1] == [1, 1]


def test_only_what_the_client_sent_is_its_mistake(backend: Any, sums: Any) -> None:
    internal, invalid = backend.pb_utils.TritonError.INTERNAL, backend.pb_utils.TritonError.INVALID_ARG
    answers(sums, ask([3e38, 0], 1, START))
    assert codes(sums, ask([3e38, 0], 1)) == [internal]
    assert codes(sums, ask([float("inf"), 0], 2, START), ask([1, 2, 3], 3, START)) == [invalid, invalid]
    assert codes(sums, ask([0, 0], 4)) == [invalid]


def test_refused_arrays_are_freed_at_once(sums: Any) -> None:
    """They can be hundreds of megabytes; Python's garbage collector comes late."""
    array = np.full((1, 2), np.nan, np.float32)
    freed = weakref.ref(array)
    gc.disable()
    try:
        (response,) = sums.execute([Request({"X": array}, 1, START)])
        assert "not finite" in str(response.error)
        del array, response
        assert freed() is None
    finally:
        gc.enable()


def test_interpreter_without_the_package_is_told_so_in_one_line() -> None:
    """The backend directory holds a copy of the file, for a Python that may be another."""
    script = f"""
import runpy, sys, types
sys.modules["triton_python_backend_utils"] = types.ModuleType("utils")
sys.modules["autovoice"] = None
runpy.run_path({str(BACKEND)!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "ImportError: the onnxruntime backend needs the package autovoice in the Python of"
    )


def test_only_what_a_model_needs_is_imported() -> None:
    """Every process of a model pays for it when it starts."""
    script = f"""
import runpy, sys, types
sys.modules["triton_python_backend_utils"] = types.ModuleType("utils")
runpy.run_path({str(BACKEND)!r})
print(*sorted(name for name in sys.modules if name.partition(".")[0] in {HEAVY!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_abandoned_sequences_are_bounded_and_expire(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(backend.time, "monotonic", lambda: clock[0])
    states = backend.SequenceStates(capacity=3, idle_seconds=10.0)
    for number in range(5):
        states.put(number, {})
    assert [states.get(number) is not None for number in range(5)] == [False, False, True, True, True]
    clock[0] = 9.0
    states.put(2, {})
    clock[0] = 12.0
    states.put(9, {})
    assert [states.get(number) is not None for number in (2, 3, 4, 9)] == [True, False, False, True]
    assert len(states) == 2


def test_parameters_of_the_native_backend(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    build = onnxruntime.InferenceSession

    def spy(path: str, options: Any, providers: Any) -> Any:
        made.append(options)
        return build(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    parameters = {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "0",
        "session.set_denormal_as_zero": "1",
    }
    extra = "".join(
        f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'
        for name, value in parameters.items()
    )
    load(backend, tmp_path, STATEFUL + extra + "optimization { graph { level: 2 } }")
    (options,) = made
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


def test_large_input_is_refused_where_the_config_says_so(backend: Any, tmp_path: Path) -> None:
    limit = 'parameters { key: "max_input_bytes" value { string_value: "16" } }'
    served = load(backend, tmp_path, STATEFUL + limit)
    assert answers(served, ask([1, 2, 3, 4], 1, START)) == [[1, 2, 3, 4]]
    assert "X has 24 bytes, more than the 16 allowed" in answers(served, ask([1] * 6, 2, START))[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIG, "needs input S, which the config of sums lacks"),
        (CONFIG.replace('name: "Y"', 'name: "Z"') + STATEFUL, "names output Z"),
        (CONFIG.replace("TYPE_FP32", "TYPE_FP64") + STATEFUL, "input X the type float64"),
        (CONFIG.replace("dims: [-1]", "dims: [-1, 2]") + STATEFUL, "input X the dims"),
        (CONFIG + STATEFUL.replace("dims: [1]", "dims: [2]"), "input S the dims"),
    ],
)
def test_config_and_file_that_disagree_do_not_load(
    backend: Any, tmp_path: Path, config: str, message: str
) -> None:
    with pytest.raises(RepositoryError, match=message):
        load(backend, tmp_path, config, whole=True)


def test_file_that_is_missing_does_not_load(backend: Any, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"NoSuch\.onnx"):
        load(backend, tmp_path, STATEFUL + 'default_model_filename: "NoSuch.onnx"')


def test_gpu_instance_without_cuda_does_not_load(backend: Any, tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(RuntimeError, match="no CUDA; install onnxruntime-gpu or set KIND_CPU"):
        load(backend, tmp_path, STATEFUL, model_instance_kind="GPU")


CONVERTER = """
name: "sums" backend: "onnxruntime" max_batch_size: 8
input { name: "SOURCE_AUDIO" data_type: TYPE_FP32 dims: [-1] }
input { name: "GAIN" data_type: TYPE_FP32 dims: [1] }
output { name: "CONVERTED_AUDIO" data_type: TYPE_FP32 dims: [-1] }
"""


def test_answers_and_their_faults_are_counted(backend: Any, counters: Counters, tmp_path: Path) -> None:
    """What is not finite in every model, what is silent or clipped in those that convert audio."""
    x = helper.make_tensor_value_info("SOURCE_AUDIO", TensorProto.FLOAT, ["B", "T"])
    gain = helper.make_tensor_value_info("GAIN", TensorProto.FLOAT, ["B", 1])
    y = helper.make_tensor_value_info("CONVERTED_AUDIO", TensorProto.FLOAT, ["B", "T"])
    nodes = [helper.make_node("Mul", ["SOURCE_AUDIO", "GAIN"], ["CONVERTED_AUDIO"])]
    served = load(
        backend, tmp_path, CONVERTER, whole=True, graph=helper.make_graph(nodes, "gain", [x, gain], [y])
    )
    tone = 0.5 * np.sin(np.arange(480, dtype=np.float32) / 8)[None]
    for times in (1.0, 1.0, 1e-6, 0.0, 0.0, 0.0, 3.0, 3e38, float("inf")):
        feeds = {"SOURCE_AUDIO": tone * 4 if times > 1e38 else tone, "GAIN": np.array([[times]], np.float32)}
        served.execute([Request(feeds, wanted="CONVERTED_AUDIO")])
    served.finalize()
    assert counters.values == {
        "autovoice_answers_total model=sums version=1": 8,  # one was refused: its gain was infinite
        "autovoice_faulty_answers_total model=sums version=1 fault=not_finite": 1,
        "autovoice_faulty_answers_total model=sums version=1 fault=silent": 4,
        "autovoice_faulty_answers_total model=sums version=1 fault=clipped": 1,
    }


def test_what_is_not_finite_is_counted_in_every_model(sums: Any, counters: Counters) -> None:
    answers(sums, ask([3e38, 0], 1, START), ask([1, 0], 2, START), ask([1, 2, 3], 3, START))
    answers(sums, ask([3e38, 0], 1), ask([0, 0], 2))
    sums.finalize()
    assert counters.values["autovoice_answers_total model=sums version=1"] == 4
    assert counters.values["autovoice_faulty_answers_total model=sums version=1 fault=not_finite"] == 1


def test_counts_are_told_while_requests_come(sums: Any, counters: Counters) -> None:
    answers(sums, ask([1, 0], 1, START))
    until(lambda: counters.values["autovoice_answers_total model=sums version=1"] == 1)
