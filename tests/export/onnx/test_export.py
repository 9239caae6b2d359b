"""Exported files against PyTorch, and the guards that notice a bad export."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn

from autovoice_export.base.checkpoint import load_checkpoint
from autovoice_export.base.wiring import stages
from autovoice_export.build_errors import ExportError, ParityError
from autovoice_export.onnx.export import export_stage
from autovoice_export.onnx.verification import example_inputs, verify
from autovoice_export.parity import session_run, stage_run
from autovoice_export.stage import Axis, Stage, StageTensor

pytestmark = pytest.mark.heavy

LIGHT_STAGES = [
    "target_pitch",
    "pad_source",
    "pad_source_with_f0",
    "content_encoder",
    "pitch_extractor",
    "synthesizer",
    "trim_output",
]
STATEFUL = {"content_encoder": ("AUDIO",), "pitch_extractor": ("AUDIO",), "synthesizer": ("CONTENT", "F0")}

Exported = Callable[[str], Path]


@pytest.mark.parametrize("name", LIGHT_STAGES)
def test_file_agrees_with_pytorch_at_every_length_and_batch_size(
    name: str, family: dict[str, Stage], exported: Exported
) -> None:
    agreement = verify(family[name], exported(name))
    assert agreement.runs == (20 if family[name].state_size else 10)


@pytest.mark.parametrize("name", sorted(STATEFUL))
def test_pieces_in_onnx_runtime_equal_the_whole_in_pytorch(
    name: str, family: dict[str, Stage], exported: Exported
) -> None:
    stage = family[name]
    run = session_run(exported(name))
    inputs = example_inputs(stage.inputs, 2, 60, np.random.default_rng(1))
    whole = stage_run(stage)(inputs)

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sets(st.integers(1, 59), max_size=12))
    def check(cuts: set[int]) -> None:
        state = inputs["STATE_IN"]
        pieces: dict[str, list[np.ndarray]] = {}
        for start, stop in itertools.pairwise([0, *sorted(cuts), 60]):
            piece = {"STATE_IN": state}
            for tensor in stage.inputs:
                if tensor.name != "STATE_IN":
                    piece[tensor.name] = _frames(tensor, inputs[tensor.name], start, stop)
            outputs = dict(run(piece))
            state = outputs.pop("STATE_OUT")
            for output, value in outputs.items():
                pieces.setdefault(output, []).append(value)
        for output, values in pieces.items():
            joined = np.concatenate(values, axis=1)
            np.testing.assert_allclose(joined, whole[output], rtol=1e-4, atol=1e-4, err_msg=output)
        np.testing.assert_allclose(state, whole["STATE_OUT"], rtol=1e-4, atol=1e-4)

    check()


def _frames(tensor: StageTensor, value: np.ndarray, start: int, stop: int) -> np.ndarray:
    axis = tensor.dims[0]
    if not isinstance(axis, Axis):
        return value
    return value[:, start * axis.multiple : stop * axis.multiple]


def test_same_stage_gives_the_same_bytes(
    family: dict[str, Stage], exported: Exported, tmp_path: Path
) -> None:
    again = tmp_path / "again.onnx"
    export_stage(family["content_encoder"], again, {"family": "base"})
    assert again.read_bytes() == exported("content_encoder").read_bytes()


@pytest.mark.parametrize("name", LIGHT_STAGES)
def test_file_is_self_contained_and_carries_no_machine_path(name: str, exported: Exported) -> None:
    data = exported(name).read_bytes()
    for trace in (
        sys.prefix,
        str(Path(__file__).parents[3]),
        "site-packages",
        ".py",
        str(exported(name).parent),
    ):
        assert trace.encode() not in data, trace
    model = onnx.load_from_string(data)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert {entry.key for entry in model.metadata_props} == {"stage", "family"}


def test_ops_stay_single_nodes_with_their_functions_attached(exported: Exported) -> None:
    model = onnx.load(exported("synthesizer"))
    nodes = [node.op_type for node in model.graph.node if node.domain == "autovoice"]
    assert sorted(nodes) == ["HarmonicSource", "SpectralSynth"]
    assert sorted(function.name for function in model.functions) == sorted(nodes)


class _Gru(nn.Module):
    """A recurrent layer over time, which the exporter unrolls to the length of the example."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 4, batch_first=True)

    def forward(self, content: Tensor) -> Tensor:
        return self.gru(content)[0]


class _TinyLog(nn.Module):
    def forward(self, content: Tensor) -> Tensor:
        return torch.log(torch.relu(content) + 1e-9) + (content + 1e-9).sign()


def _content_stage(module: nn.Module) -> Stage:
    content = StageTensor("CONTENT", (Axis("F"), 4))
    return Stage("probe", module.eval(), (content,), (replace(content, name="LOUDNESS"),))


def test_small_constants_survive_the_export(tmp_path: Path) -> None:
    stage, path = _content_stage(_TinyLog()), tmp_path / "log.onnx"
    export_stage(stage, path, {})
    silent = session_run(path)({"CONTENT": np.zeros((1, 3, 4), np.float32)})["LOUDNESS"]
    np.testing.assert_allclose(silent, np.log(1e-9) + 1.0, rtol=1e-6)


def _frozen_model(path: Path) -> None:
    """Doubles its input, but through a reshape to the five frames it was traced with."""
    nodes = [
        helper.make_node("Add", ["CONTENT", "CONTENT"], ["twice"]),
        helper.make_node("Reshape", ["twice", "traced_shape"], ["LOUDNESS"]),
    ]
    graph = helper.make_graph(
        nodes,
        "frozen",
        [helper.make_tensor_value_info("CONTENT", TensorProto.FLOAT, ["B", "F", 4])],
        [helper.make_tensor_value_info("LOUDNESS", TensorProto.FLOAT, ["B", "F", 4])],
        [helper.make_tensor("traced_shape", TensorProto.INT64, [3], [-1, 5, 4])],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


class _Twice(nn.Module):
    def forward(self, content: Tensor) -> Tensor:
        return content + content


def test_frozen_time_axis_is_noticed(tmp_path: Path) -> None:
    stage, path = _content_stage(_Twice()), tmp_path / "frozen.onnx"
    _frozen_model(path)
    verify(stage, path, frame_counts=[5])
    with pytest.raises(
        ParityError, match=r"LOUDNESS has the shape \[2, 5, 4\] where PyTorch gives \[1, 10, 4\]"
    ):
        verify(stage, path, frame_counts=[5, 10])
    with pytest.raises(ParityError, match=r"fails with inputs of the shapes \{'CONTENT': \[1, 7, 4\]\}"):
        verify(stage, path, frame_counts=[7])


def test_recurrent_layer_that_freezes_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="axis 1 of LOUDNESS should be F but is frozen at 5"):
        export_stage(_content_stage(_Gru()), tmp_path / "gru.onnx", {})


def test_other_weights_than_the_stage_has_are_noticed(family: dict[str, Stage], exported: Exported) -> None:
    stage = family["content_encoder"]
    other = type(stage.module)(stage.module.config)  # type: ignore[call-arg,arg-type]
    other.load_state_dict(stage.module.state_dict())
    with torch.no_grad():
        other.get_parameter("output.bias")[0] += 1e-3
    with pytest.raises(ParityError, match=r"content_encoder: CONTENT is .* from that of PyTorch as allowed"):
        verify(replace(stage, module=other.eval()), exported("content_encoder"))


def test_declared_sizes_are_held_to_the_graph(family: dict[str, Stage], tmp_path: Path) -> None:
    stage = family["target_pitch"]
    wrong = replace(stage, outputs=(StageTensor("MEDIAN_F0", (2,)),))
    with pytest.raises(ExportError, match="axis 1 of MEDIAN_F0 has size 1, the stage declares 2"):
        export_stage(wrong, tmp_path / "wrong.onnx", {})


def test_the_published_content_encoder_is_compared_with_float64() -> None:
    """Two float32 results are up to twice as far apart as each is from the exact one."""
    root = Path(__file__).resolve().parents[3]
    checkpoint = load_checkpoint(root / "training" / "checkpoints" / "base.safetensors")
    (stage,) = (stage for stage in stages(checkpoint) if stage.name == "content_encoder")
    inputs = example_inputs(stage.inputs, 1, 100, np.random.default_rng(0))
    reference = stage_run(stage)(inputs)
    with torch.no_grad():
        exact = copy.deepcopy(stage.module).double()(
            *(torch.from_numpy(inputs[tensor.name]).double() for tensor in stage.inputs)
        )
    for tensor, value in zip(stage.outputs, exact, strict=True):
        np.testing.assert_array_equal(reference[tensor.name], value.float().numpy())
    file = root / "model_repository" / "content_encoder" / "1" / "model.onnx"
    assert verify(stage, file, frame_counts=(1000,), batch_sizes=(3,)).worst <= 1
