"""Every graph through NVIDIA's own parser and builder: TensorRT for RTX, which needs no GPU for either."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, reference
from rtx_engines import Builder, manifests, shapes_of

from autovoice.repository.reader import ModelRepository
from autovoice_export.base import build
from autovoice_export.examples import example
from autovoice_export.onnx.graph import expanded, load_model
from autovoice_export.parity import session_run
from autovoice_export.stage import Stage
from autovoice_export.tensorrt import turing
from autovoice_export.tensorrt.engines import COMPUTE_CAPABILITIES, profiles_of

SHIPPED = ModelRepository(build.DEFAULT_REPOSITORY)
MODELS = [name for name in SHIPPED.names() if SHIPPED.spec(name).model_file is not None]
FILES = [name for name in MODELS if not (SHIPPED.path / name / "1" / "model.onnx").is_symlink()]

TYPES = {"float32": "FLOAT", "int64": "INT64"}
EVERY_CARD = ",".join(COMPUTE_CAPABILITIES)


def holds_to_config(manifest: Mapping[str, Any], root: Path) -> None:
    """The engine's tensors, and what its profiles allow, are what the model's config says."""
    repository = ModelRepository(root)
    spec = repository.spec(manifest["model"])
    states = {state.source.name for state in spec.states}
    assert {tensor.name for tensor in spec.inputs} | states == set(manifest["inputs"])
    for tensor in spec.inputs:
        kind, shape = manifest["inputs"][tensor.name]
        assert (kind, shape) == (TYPES[tensor.dtype.name], [-1, *tensor.dims])
    for tensor in spec.outputs:
        kind, shape = manifest["outputs"][tensor.name]
        assert kind == TYPES[tensor.dtype.name]
        assert len(shape) == 1 + len(tensor.dims)
        assert all(size in (-1, wanted) for size, wanted in zip(shape[1:], tensor.dims, strict=True))
    for name, (smallest, typical, largest) in shapes_of(manifest).items():
        assert smallest[0] == 1, name
        assert largest[0] == max(1, spec.max_batch_size), name
        for low, usual, high, size in zip(
            smallest, typical, largest, manifest["inputs"][name][1], strict=True
        ):
            assert low <= usual <= high
            assert low < high if size == -1 else low == high == size, f"{name} is {size}"


@pytest.mark.heavy
@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(
    ("capabilities", "models"), [(EVERY_CARD, MODELS), ("7.5", FILES)], ids=["ampere_to_blackwell", "turing"]
)
def test_every_model_of_the_shipped_repository(
    rtx: Builder, tmp_path: Path, capabilities: str, models: list[str], streams: bool
) -> None:
    models = [name for name in models if name.endswith("_stream") == streams]
    chosen = [option for name in models for option in ("--model", name)]
    done = rtx(SHIPPED.path, tmp_path, *chosen, "--compute-capability", capabilities)
    assert done.returncode == 0, done.stderr
    assert {manifest["model"] for manifest in manifests(tmp_path)} == set(models)
    for manifest in manifests(tmp_path):
        assert manifest["compute_capabilities"] == capabilities.split(",")
        holds_to_config(manifest, SHIPPED.path)
        assert (tmp_path / f"{manifest['model']}.engine").stat().st_size > 100_000
        assert f"{manifest['model']:24}" in done.stderr


def test_half_precision(rtx: Builder, root: Path, tmp_path: Path) -> None:
    done = rtx(root, tmp_path / "out", "--model", "synthesizer", "--precision", "fp16")
    assert done.returncode == 0, done.stderr
    (manifest,) = manifests(tmp_path / "out")
    assert manifest["precision"] == "fp16"
    holds_to_config(manifest, root)


def test_engines_of_an_ensemble_are_built_once(rtx: Builder, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = rtx(root, out, "--model", "voice_conversion")
    assert done.returncode == 0, done.stderr
    built = {path.stem: path.stat().st_mtime_ns for path in out.glob("*.engine")}
    steps = {step.model for step in ModelRepository(root).spec("voice_conversion").steps}
    assert set(built) == steps
    (out / "trim_output.engine").write_bytes(b"half of it")
    done = rtx(root, out, "--model", "voice_conversion")
    assert done.stderr.count("up to date") == len(steps) - 1
    changed = {path.stem for path in out.glob("*.engine") if path.stat().st_mtime_ns != built[path.stem]}
    assert changed == {"trim_output"}


def put_uint8_back(model: onnx.ModelProto) -> None:
    (function,) = (item for item in model.functions if item.name == "PitchYin")
    casts = {node.output[0]: node for node in function.node if node.op_type == "Cast"}
    (pick,) = (node for node in function.node if node.op_type == "ArgMax")
    casts[pick.input[0]].attribute[0].i = TensorProto.UINT8


def put_double_back(model: onnx.ModelProto) -> None:
    """The first product is in DOUBLE, and the rest in FLOAT again: TensorRT would say nothing."""
    (function,) = (item for item in model.functions if item.name == "PitchYin")
    index, product = next((i, node) for i, node in enumerate(function.node) if node.op_type == "Mul")
    output = product.output[0]
    wide = [
        helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.DOUBLE) for name in product.input
    ]
    del product.input[:]
    product.input.extend(cast.output[0] for cast in wide)
    product.output[0] = f"{output}_wide"
    narrow = helper.make_node("Cast", [product.output[0]], [output], to=TensorProto.FLOAT)
    nodes = list(function.node)
    nodes[index : index + 1] = [*wide, product, narrow]
    del function.node[:]
    function.node.extend(nodes)


def make_a_shape_impossible(model: onnx.ModelProto) -> None:
    (function,) = (item for item in model.functions if item.name == "PitchYin")
    reshape = next(node for node in function.node if node.op_type == "Reshape")
    shape = next(node for node in function.node if node.output[0] == reshape.input[1])
    shape.attribute[0].t.CopyFrom(numpy_helper.from_array(np.array([0, -1, 241], np.int64), reshape.input[1]))


def draw_noise(model: onnx.ModelProto) -> None:
    noise = helper.make_node("RandomNormalLike", ["AUDIO"], ["noise"])
    louder = helper.make_node("Add", ["AUDIO", "noise"], ["noisy"])
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name == "AUDIO":
                node.input[position] = "noisy"
    nodes = [noise, louder, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (put_uint8_back, "computes with UINT8"),
        (put_double_back, "computes with DOUBLE"),
        (make_a_shape_impossible, "building the engine failed"),
        (draw_noise, "draws random numbers"),
    ],
)
def test_a_graph_that_is_refused_is_named_and_the_others_are_built(
    rtx: Builder,
    root: Path,
    tmp_path: Path,
    harm: Callable[[onnx.ModelProto], None],
    reason: str,
) -> None:
    file = root / "pitch_extractor" / "1" / "model.onnx"
    model = load_model(file)
    harm(model)
    onnx.save(model, file)
    out = tmp_path / "out"
    done = rtx(root, out, "--model", "pitch_extractor", "--model", "trim_output")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last == "autovoice: TensorRT for RTX refuses 1 of 2 models: pitch_extractor"
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.stem for path in out.glob("*.engine")] == ["trim_output"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--compute-capability", "ada"), "'ada' is no compute capability; write it like 8.9"),
        (("--compute-capability", "9.0"), "builds for no compute capability 9.0; it knows"),
        (("--model", "no_such"), "no_such"),
        (("--timing-cache", "x"), "--timing-cache does not belong to --engine tensorrt-rtx"),
    ],
)
def test_mistakes_are_one_line(
    rtx: Builder, root: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = rtx(root, tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_every_model_has_profiles_from_one_table() -> None:
    for name in MODELS:
        spec = SHIPPED.spec(name)
        assert spec.model_file is not None
        model = load_model(spec.model_file)
        for profile in profiles_of(SHIPPED, spec, model):
            assert set(profile.shapes) == {value.name for value in model.graph.input}


@pytest.mark.parametrize("name", ["content_encoder", "pitch_extractor", "synthesizer", "target_pitch"])
def test_form_for_turing_computes_the_same(
    exported: Callable[[str], Path], family: dict[str, Stage], name: str
) -> None:
    model = expanded(load_model(exported(name)))
    rewritten = turing.without_float32_products(model)
    assert not {"MatMul", "Gemm"} & {node.op_type for node in rewritten.graph.node}
    rng = np.random.default_rng(5)
    shapes = {tensor.name: tensor.shape(2, {"F": 30, "T": 7200}) for tensor in family[name].inputs}
    feeds = {key: example(key, shape, rng) for key, shape in shapes.items()}
    wanted, got = (session_run(item.SerializeToString())(feeds) for item in (model, rewritten))
    for output, value in wanted.items():
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(got[output], value, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_products_of_every_rank_are_rewritten(rank: int) -> None:
    rng = np.random.default_rng(rank)
    left = rng.standard_normal((2, 3, 5, 7)[-max(rank, 2) :]).astype(np.float32)
    matrix = rng.standard_normal((2, 3, 7, 6)[-rank:] if rank > 1 else 7).astype(np.float32)
    for constant in (True, False):
        inputs = [helper.make_tensor_value_info("A", TensorProto.FLOAT, [None] * left.ndim)]
        if not constant:
            inputs.append(helper.make_tensor_value_info("B", TensorProto.FLOAT, [None] * matrix.ndim))
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["A", "B"], ["Y"])],
            "g",
            inputs,
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(matrix, "B")] if constant else [],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        rewritten = turing.without_float32_products(model)
        assert "MatMul" not in {node.op_type for node in rewritten.graph.node}
        feeds = {"A": left} if constant else {"A": left, "B": matrix}
        got = session_run(rewritten.SerializeToString())(feeds)["Y"]
        np.testing.assert_allclose(got, left @ matrix, rtol=0, atol=1e-5)


def test_recurrent_layers_compute_in_half_precision() -> None:
    rng = np.random.default_rng(3)
    weights = {
        "W": rng.standard_normal((1, 16, 4)) * 0.3,
        "R": rng.standard_normal((1, 16, 4)) * 0.3,
        "B": rng.standard_normal((1, 32)) * 0.1,
    }
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=4)],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, None, 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    feeds = {"X": rng.standard_normal((20, 2, 4)).astype(np.float32)}
    (wanted,) = reference.ReferenceEvaluator(model).run(None, feeds)
    rewritten = turing.without_float32_products(model)
    (layer,) = (node for node in rewritten.graph.node if node.op_type == "LSTM")
    assert not set(layer.input) & {"X", "W", "R", "B"}
    (got,) = reference.ReferenceEvaluator(rewritten).run(None, feeds)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-3)


def test_manifest_names_the_engine(rtx: Builder, root: Path, tmp_path: Path) -> None:
    assert rtx(root, tmp_path / "out", "--model", "trim_output").returncode == 0
    content = json.loads((tmp_path / "out" / "trim_output.json").read_text())
    engine = (tmp_path / "out" / "trim_output.engine").read_bytes()
    assert content["engine_sha256"] == hashlib.sha256(engine).hexdigest()
    assert content["tensorrt_rtx"].startswith("1.")
