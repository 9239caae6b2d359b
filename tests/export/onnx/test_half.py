"""FP16 files: what is converted, what is not, and how far the results are from FP32 in ONNX Runtime."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from autovoice_export.base import build
from autovoice_export.build_errors import ExportError, ParityError
from autovoice_export.onnx.graph import element_types, load_model
from autovoice_export.onnx.half import measure_ranges, to_half
from autovoice_export.parity import cases, compare, session_run
from autovoice_export.tensorrt import parity, plan_config

STATES = ("STATE_IN", "STATE_OUT")
# Largest error that FP16 may cost, relative to the root mean square of the output.
ALLOWED = {"CONTENT": 2e-3, "LOUDNESS": 0.0, "AUDIO": 4e-3, "EMBEDDING": 4e-3, "STATE_OUT": 4e-3}
EXACT = ("F0", "PERIODICITY", "PASSED_AUDIO", "LOUDNESS")


@pytest.fixture(
    scope="module", params=["content_encoder", "pitch_extractor", "synthesizer", "speaker_encoder"]
)
def committed(request: pytest.FixtureRequest) -> tuple[str, onnx.ModelProto, onnx.ModelProto, list[dict]]:
    """A committed stage, its FP16 form, and inputs that the ranges were not measured on."""
    folder = build.DEFAULT_REPOSITORY / request.param
    model = load_model(folder / "1" / "model.onnx")
    run = session_run(folder / "1" / "model.onnx")
    short, medium = plan_config.read_profiles(plan_config.read_plan_config(folder))[:2]
    states = parity.states_of(model)
    measured = [feed for feed, _ in cases(parity.example_feeds(model, short), run, states)]
    half = to_half(model, measure_ranges(model, measured), STATES)
    expected = cases(parity.example_feeds(model, medium), run, states)
    feeds = [feed for feed, _ in itertools.islice(expected, 2)]
    return request.param, model, half, feeds


def test_error_is_small_where_fp16_is_used_and_zero_where_not(
    committed: tuple[str, onnx.ModelProto, onnx.ModelProto, list[dict]],
) -> None:
    name, model, half, feeds = committed
    exact, rounded = (session_run(item.SerializeToString()) for item in (model, half))
    for feed in feeds:
        expected, found = exact(feed), rounded(feed)
        for output, value in expected.items():
            error = np.sqrt(np.mean(np.square(found[output] - value))) / np.sqrt(np.mean(np.square(value)))
            if output in EXACT or name == "pitch_extractor":
                np.testing.assert_array_equal(found[output], value, err_msg=output)
            else:
                assert 0 < error < ALLOWED[output], output
    if name != "pitch_extractor":
        assert half.ByteSize() < 0.7 * model.ByteSize()


def ancestors(graph: onnx.GraphProto, names: set[str]) -> Iterator[onnx.NodeProto]:
    for node in reversed(graph.node):
        if names & set(node.output):
            names |= set(node.input)
            yield node


def test_pitch_phase_and_state_never_see_fp16(
    committed: tuple[str, onnx.ModelProto, onnx.ModelProto, list[dict]],
) -> None:
    _, model, half, _ = committed
    types = element_types(half)
    assert [*half.graph.input] == [*model.graph.input]
    assert [*half.graph.output] == [*model.graph.output]
    for node in half.graph.node:
        if node.op_type in ("PitchYin", "HarmonicSource"):
            path = [node, *ancestors(half.graph, set(node.input))]
            assert all(
                types[tensor] != TensorProto.FLOAT16 for item in path for tensor in item.input if tensor
            )
    # The phase goes from STATE_IN to STATE_OUT through nodes that leave it alone.
    phase = [node.output[1] for node in half.graph.node if node.op_type == "HarmonicSource"]
    assert all(
        types[tensor] == TensorProto.FLOAT
        for node in half.graph.node
        if set(phase) & set(node.input)
        for tensor in node.output
    )


def model_of(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], output: str = "Y"
) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in ("X", output)]
    initializers = [
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


SQUARE = np.eye(4)


def halves(model: onnx.ModelProto) -> set[str]:
    """Ops that compute in FP16."""
    types = element_types(model)
    return {
        node.op_type
        for node in model.graph.node
        if node.op_type != "Cast" and types[node.output[0]] == TensorProto.FLOAT16
    }


@given(st.floats(1e-3, 1e6))
@settings(suppress_health_check=list(HealthCheck), max_examples=20)
def test_measured_ranges_decide(size: float) -> None:
    nodes = [helper.make_node("MatMul", ["X", "W"], ["H"]), helper.make_node("Tanh", ["H"], ["Y"])]
    model = model_of(nodes, {"W": SQUARE})
    feed = {"X": np.full((1, 4), size, np.float32)}
    half = to_half(model, measure_ranges(model, [feed]), ())
    assert halves(half) == ({"MatMul", "Tanh"} if size <= 1024 else set())
    run = session_run(half.SerializeToString())
    np.testing.assert_allclose(run(feed)["Y"], np.tanh(feed["X"]), rtol=2e-3, atol=1e-3)


def test_what_leads_to_a_logarithm_and_what_has_a_tiny_constant_stay() -> None:
    nodes = [
        helper.make_node("Mul", ["X", "X"], ["P"]),
        helper.make_node("Add", ["P", "FLOOR"], ["Q"]),
        helper.make_node("Log", ["Q"], ["L"]),
        helper.make_node("MatMul", ["L", "W"], ["H"]),
        helper.make_node("Max", ["H", "TINY"], ["Y"]),
    ]
    model = model_of(nodes, {"W": SQUARE, "FLOOR": np.array(1.0), "TINY": np.array(1e-9)})
    assert halves(to_half(model, {}, ())) == {"MatMul"}


def test_values_between_exact_nodes_are_not_rounded() -> None:
    nodes = [
        helper.make_node("Sin", ["X"], ["S"]),
        helper.make_node("Cos", ["S"], ["C"]),
        helper.make_node("MatMul", ["S", "W"], ["H"]),
        helper.make_node("Sub", ["C", "H"], ["D"]),
        helper.make_node("Identity", ["C"], ["Y"]),
    ]
    model = model_of(nodes, {"W": SQUARE})
    half = to_half(model, {}, ())
    assert halves(half) == {"MatMul", "Sub"}
    feed = {"X": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    exact, rounded = (session_run(item.SerializeToString())(feed)["Y"] for item in (model, half))
    np.testing.assert_array_equal(exact, rounded)


def test_graphs_inside_nodes_are_refused() -> None:
    inner = helper.make_graph([], "inner", [], [])
    model = model_of([helper.make_node("If", ["X"], ["Y"], then_branch=inner, else_branch=inner)], {})
    with pytest.raises(ExportError, match="If has a graph inside"):
        to_half(model, {}, ())


def test_conversion_that_goes_wrong_is_noticed(exported: Callable[[str], Path], engines: dict) -> None:
    model = load_model(exported("content_encoder"))
    profile = engines["content_encoder"].profiles[0]
    reference = session_run(exported("content_encoder"))
    expected = list(itertools.islice(cases(parity.example_feeds(model, profile), reference), 2))
    for item in model.graph.initializer:
        weights = numpy_helper.to_array(item)
        if weights.dtype == np.float32 and weights.ndim == 2:
            item.CopyFrom(numpy_helper.from_array(np.asarray(weights * np.float32(1.1)), item.name))
    changed = session_run(model.SerializeToString())
    with pytest.raises(ParityError, match=r"changed: .* times as far from that of the original as allowed"):
        compare("changed", changed, expected, parity.TOLERANCES["fp16"], "the original")
