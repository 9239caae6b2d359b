"""Committed ONNX files against what TensorRT does in silence or takes otherwise than TensorRT for RTX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autovoice_export.base import build
from autovoice_export.tensorrt.graph_rules import FLOAT_ONLY, RANDOM, check_model, check_models


def test_committed_files_hold_to_the_rules() -> None:
    assert list(build.DEFAULT_REPOSITORY.rglob("*.onnx"))
    assert not [str(violation) for violation in check_models(build.DEFAULT_REPOSITORY)]


def test_table_knows_onnx() -> None:
    unknown = [name for name in FLOAT_ONLY | RANDOM if not onnx.defs.has(name)]
    assert unknown == []


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, Any] | None = None,
    kind: int = TensorProto.FLOAT,
    opset: int = 20,
) -> Path:
    value = helper.make_tensor_value_info("X", kind, [None, 4])
    output = onnx.ValueInfoProto(name="Y")
    initializers = [
        numpy_helper.from_array(np.asarray(item), name) for name, item in (constants or {}).items()
    ]
    graph = helper.make_graph(nodes, "g", [value], [output], initializers)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("autovoice", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def node(kind: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, ["X", *inputs], ["Y"], name="n", **attributes)


ONE = np.array(1, np.int64)


@pytest.mark.parametrize(
    ("nodes", "constants", "kind", "message"),
    [
        ([node("CumSum", "A")], {"A": ONE}, TensorProto.INT64, "CumSum (n) computes with INT64 (X)"),
        ([node("Clip", "A")], {"A": ONE}, TensorProto.INT64, "Clip (n) computes with INT64 (X)"),
        ([node("Add", "X")], {}, TensorProto.DOUBLE, "Add (n) computes with DOUBLE (X)"),
        ([node("Cast", to=TensorProto.DOUBLE)], {}, TensorProto.FLOAT, "Cast (n) computes with DOUBLE (Y)"),
        ([node("Add", "X")], {}, TensorProto.UINT8, "Add (n) computes with UINT8 (X)"),
        ([node("RandomNormalLike", seed=1.0)], {}, TensorProto.FLOAT, "draws random numbers"),
        (
            [helper.make_node("Ours", ["X"], ["Y"], name="n", domain="autovoice")],
            {},
            TensorProto.FLOAT,
            "autovoice.Ours (n) has no function in the file",
        ),
    ],
)
def test_violations_are_named(
    tmp_path: Path, nodes: list[onnx.NodeProto], constants: dict[str, Any], kind: int, message: str
) -> None:
    found = [str(item) for item in check_model(write(tmp_path / "m.onnx", nodes, constants, kind))]
    assert any(message in text for text in found), found
    assert all(str(tmp_path / "m.onnx") in text for text in found)


def test_graphs_inside_nodes_are_walked_too(tmp_path: Path) -> None:
    def branch(name: str, kind: int) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(name, kind, None)
        return helper.make_graph(
            [helper.make_node("Cast", ["X"], [name], name=f"to_{name}", to=kind)], name, [], [output]
        )

    wide, narrow = branch("A", TensorProto.DOUBLE), branch("B", TensorProto.DOUBLE)
    nodes = [helper.make_node("If", ["C"], ["Y"], name="n", then_branch=wide, else_branch=narrow)]
    found = [str(item) for item in check_model(write(tmp_path / "m.onnx", nodes, {"C": np.array(True)}))]
    assert any("Cast (to_A) computes with DOUBLE (A)" in text for text in found), found


def test_bodies_of_functions_are_walked_too(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["a"], ["w"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["w"], ["b"], to=TensorProto.FLOAT),
    ]
    function = helper.make_function("autovoice", "Ours", ["a"], ["b"], nodes, [helper.make_opsetid("", 20)])
    path = write(tmp_path / "m.onnx", [helper.make_node("Ours", ["X"], ["Y"], name="n", domain="autovoice")])
    model = onnx.load(path)
    model.functions.append(function)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None, 4]))
    onnx.save(model, path)
    found = [str(item) for item in check_model(path)]
    assert found
    assert all("computes with DOUBLE" in text for text in found)


def test_opset_beyond_the_parser_is_named(tmp_path: Path) -> None:
    found = [str(item) for item in check_model(write(tmp_path / "m.onnx", [node("Abs")], opset=23))]
    assert any("opset () is 23; TensorRT 10.13 takes up to 22" in text for text in found)


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["X"], ["I"], to=TensorProto.INT64),
        helper.make_node("Greater", ["X", "ZERO"], ["B"]),
        helper.make_node("TopK", ["X", "K"], ["V", "P"]),
        helper.make_node("ReduceSum", ["V", "AXES"], ["R"]),
        helper.make_node("CumSum", ["X", "AXIS"], ["S"]),
        helper.make_node("Pad", ["S", "PADS"], ["D"]),
        helper.make_node("Where", ["B", "X", "ZERO"], ["Y"]),
    ]
    constants = {
        "ZERO": np.float32(0),
        "K": np.array([2]),
        "AXES": np.array([1]),
        "AXIS": ONE,
        "PADS": np.array([0, 1, 0, 1]),
    }
    assert check_model(write(tmp_path / "m.onnx", nodes, constants)) == []
