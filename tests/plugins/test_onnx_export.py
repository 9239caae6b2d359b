"""From torch to an ONNX file that carries the ops as bare nodes and their functions beside them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, helper
from torch import Tensor, nn

from autovoice_plugins.function_builder import DOMAIN
from autovoice_plugins.geometry import (
    BANDS,
    HARMONIC_SOURCE_STATE_SIZE,
    HOP,
    PITCH_YIN_STATE_SIZE,
    SPECTRAL_SYNTH_STATE_SIZE,
)
from autovoice_plugins.harmonic_source import harmonic_source
from autovoice_plugins.onnx_export import OPS, attach_functions, register_schemas, translation_table
from autovoice_plugins.pitch_yin import pitch_yin
from autovoice_plugins.spectral_synth import spectral_synth

Build = Callable[..., ModelProto]


class Resynthesis(nn.Module):
    """All three ops, none fed with rounded results of another."""

    def forward(
        self,
        audio: Tensor,
        contour: Tensor,
        filters: Tensor,
        pitch_state: Tensor,
        phase: Tensor,
        tail: Tensor,
    ) -> tuple[Tensor, Tensor]:
        f0, _, _ = pitch_yin(audio, pitch_state)
        excitation, _ = harmonic_source(contour, phase)
        result, _ = spectral_synth(excitation, audio, filters, filters - 1, tail)
        return f0, result


def inputs(batch: int, frames: int) -> tuple[Tensor, ...]:
    torch.manual_seed(batch)
    time = torch.arange(frames * HOP) / 24000
    audio = 0.3 * torch.sin(2 * torch.pi * 150 * time).repeat(batch, 1)
    contour = torch.linspace(90, 300, frames).repeat(batch, 1)
    sizes = (PITCH_YIN_STATE_SIZE, HARMONIC_SOURCE_STATE_SIZE, SPECTRAL_SYNTH_STATE_SIZE)
    return audio, contour, torch.randn(batch, frames, BANDS), *(torch.zeros(batch, size) for size in sizes)


@pytest.fixture(scope="module")
def exported() -> bytes:
    batch, frames = torch.export.Dim("B"), torch.export.Dim("F")
    program = torch.onnx.export(
        Resynthesis(),
        inputs(2, 7),
        dynamo=True,
        opset_version=20,
        custom_translation_table=translation_table(),
        dynamic_shapes=({0: batch, 1: HOP * frames}, *[{0: batch, 1: frames}] * 2, *[{0: batch}] * 3),
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def test_export_emits_bare_nodes(exported: bytes) -> None:
    model = onnx.load_from_string(exported)
    nodes = {node.op_type: node for node in model.graph.node if node.domain == DOMAIN}
    assert set(nodes) == set(OPS)
    assert not model.functions
    for node in nodes.values():
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["plugin_namespace"] == b"autovoice"
        assert attributes["plugin_version"] == b"1"


@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (3, 50)])
def test_exported_model_runs_on_stock_onnxruntime(exported: bytes, batch: int, frames: int) -> None:
    model = attach_functions(onnx.load_from_string(exported))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    arguments = inputs(batch, frames)
    feeds = {value.name: a.numpy() for value, a in zip(session.get_inputs(), arguments, strict=True)}
    f0, audio = (tensor.numpy() for tensor in Resynthesis()(*arguments))
    got_f0, got_audio = session.run(None, feeds)
    np.testing.assert_allclose(got_f0, f0, rtol=0, atol=0.01)
    scale = np.abs(audio).max()
    assert scale > 0.01
    np.testing.assert_allclose(got_audio, audio, rtol=0, atol=1e-5 * max(scale, 1.0))


@pytest.mark.parametrize("name", OPS)
def test_functions_are_standard_and_small(single_node_model: Build, name: str) -> None:
    model = attach_functions(single_node_model(name))
    (function,) = model.functions
    assert {node.domain for node in function.node} == {""}
    assert [(o.domain, o.version) for o in function.opset_import] == [("", 20)]
    forbidden = {"DFT", "STFT", "Loop", "Scan", "RandomNormal", "RandomNormalLike"}
    assert not forbidden & {node.op_type for node in function.node}
    # Transforms are made at load time from tables; a stored one would be a megabyte.
    assert model.ByteSize() < 400_000
    assert attach_functions(model).functions == model.functions


def test_only_needed_functions_are_attached(single_node_model: Build) -> None:
    model = attach_functions(single_node_model("PitchYin"))
    assert [function.name for function in model.functions] == ["PitchYin"]
    plain = ModelProto()
    plain.CopyFrom(model)
    del plain.functions[:]
    with pytest.raises(Exception, match="PitchYin"):
        onnxruntime.InferenceSession(plain.SerializeToString(), providers=["CPUExecutionProvider"])


def test_schemas_may_be_registered_twice() -> None:
    register_schemas()
    register_schemas()
    assert onnx.defs.has("SpectralSynth", 1, DOMAIN)


def test_refuses_what_it_cannot_serve(single_node_model: Build) -> None:
    unknown = single_node_model("PitchYin")
    unknown.graph.node[0].op_type = "PitchCrepe"
    with pytest.raises(ValueError, match="PitchCrepe is no autovoice op; known are PitchYin"):
        attach_functions(unknown)

    lacking = single_node_model("PitchYin")
    del lacking.graph.node[0].attribute[:]
    with pytest.raises(ValueError, match=r"needs .*plugin_namespace"):
        attach_functions(lacking)

    two = single_node_model("HarmonicSource")
    other = single_node_model("HarmonicSource", hop=480).graph.node[0]
    del other.output[:]
    other.output.extend(["A", "B"])
    two.graph.node.append(other)
    with pytest.raises(ValueError, match="Two HarmonicSource nodes differ"):
        attach_functions(two)

    old = single_node_model("SpectralSynth")
    old.opset_import[0].version = 17
    with pytest.raises(ValueError, match="opset 17; export it with opset_version=20"):
        attach_functions(old)

    wrong = single_node_model("PitchYin", f0_min=10.0)
    with pytest.raises(ValueError, match="two hops"):
        attach_functions(wrong)
