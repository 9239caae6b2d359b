"""The repository of the base voice in FP16: what is converted, and that its cost is measured and kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice_export.base import build
from autovoice_export.base.checkpoint import Checkpoint
from autovoice_export.onnx.graph import holds_half, load_model
from autovoice_export.parity import errors_db, session_run
from autovoice_export.tensorrt import plan_config
from autovoice_export.tensorrt.plan_config import PlanConfig

IN_HALF = {"content_encoder", "synthesizer", "speaker_encoder", "converter_stream"}
EXACT = {"F0", "PERIODICITY", "PASSED_AUDIO", "LOUDNESS", "PITCH_STATE_OUT"}


def test_errors_are_levels_below_the_output_and_the_worst_counts() -> None:
    x = {"X": np.ones(4)}
    expected = [(x, {"A": np.full(4, 2.0), "B": np.ones(4)}), (x, {"A": np.full(4, 20.0), "Z": np.zeros(4)})]
    found = iter([{"A": np.full(4, 2.2), "B": np.ones(4)}, {"A": np.full(4, 20.2), "Z": np.full(4, 0.1)}])
    errors = errors_db(lambda feed: next(found), expected)
    assert errors == {"A": pytest.approx(-20.0), "B": -math.inf, "Z": math.inf}


@pytest.mark.parametrize("name", ["content_encoder", "pitch_extractor", "synthesizer"])
def test_a_stage_in_fp16_says_what_that_costs(
    name: str, exported: Callable[[str], Path], engines: dict[str, PlanConfig], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported(name).read_bytes())
    before, exact = load_model(path), session_run(path)
    errors = build._halve(name, path, plan_config.to_message(engines[name]), exact)
    model = load_model(path)
    assert holds_half(model) == (name in IN_HALF)
    assert [*model.graph.input] == [*before.graph.input]
    assert [*model.graph.output] == [*before.graph.output]
    assert errors.keys() == {value.name for value in model.graph.output}
    for output, level in errors.items():
        if output in EXACT or name == "pitch_extractor":
            assert level == -math.inf
        else:
            assert -120 < level < -40
    facts = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert facts["stage"] == name
    assert facts["precision"] == "fp16"
    assert all(f"{output} " in facts["fp16_errors"] for output in errors)


@pytest.mark.slow
def test_a_whole_repository_in_fp16_converts_as_that_in_fp32(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = {}
    for precision in ("fp32", "fp16"):
        root = tmp_path / precision
        agreements = build.build_repository(checkpoint, root, precision=precision)
        halved = {one.model for one in agreements if one.half_errors_db}
        assert halved == (IN_HALF | {"pitch_extractor"} if precision == "fp16" else set())
        with VoiceConversionPipeline(PipelineConfig(repository=root, device="cpu", threads=1)) as pipeline:
            audio = 0.1 * np.sin(np.arange(24_000) * 2 * np.pi * 150 / 24_000, dtype=np.float32)
            made[precision] = pipeline.convert(audio, pipeline.embed(audio, 24_000), None, 24_000)
    for file in sorted((tmp_path / "fp16").glob("*/1/model.onnx")):
        model = onnx.load(file)
        assert holds_half(model) == (
            file.parts[-3].removesuffix("_stream") in {n.removesuffix("_stream") for n in IN_HALF}
        )
        assert {value.type.tensor_type.elem_type for value in model.graph.output} == {TensorProto.FLOAT}
        twin = tmp_path / "fp32" / file.relative_to(tmp_path / "fp16").parents[1] / "config.pbtxt"
        assert (file.parents[1] / "config.pbtxt").read_text() == twin.read_text()
    error = np.sqrt(np.mean(np.square(made["fp16"] - made["fp32"])) / np.mean(np.square(made["fp32"])))
    assert 0 < error < 0.05
