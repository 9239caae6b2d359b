"""Stages in one file against the stages one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autovoice_export.base.stages.voice import VOICE_SIZE
from autovoice_export.build_errors import ExportError, ParityError
from autovoice_export.config_types import EnsembleStep
from autovoice_export.onnx.composition import Composition, compose_stages
from autovoice_export.onnx.verification import example_inputs, verify_composition
from autovoice_export.parity import session_run
from autovoice_export.stage import Stage
from autovoice_plugins.geometry import HOP

Exported = Callable[[str], Path]
FRAMES = 60


def files(converter: Composition, exported: Exported) -> dict[str, Path]:
    return {step.model: exported(step.model) for step in converter.steps}


def test_one_file_agrees_with_those_of_the_stages(converter: Composition, exported: Exported) -> None:
    agreement = verify_composition(converter, files(converter, exported), exported(converter.name))
    assert agreement.runs == 20
    assert agreement.worst < 0.01  # of a tolerance of 1e-4: rounding


Arrays = dict[str, np.ndarray]


def run(path: Path, inputs: Mapping[str, np.ndarray]) -> Arrays:
    return dict(session_run(path)(inputs))


@pytest.fixture(scope="module")
def stream(family: dict[str, Stage], exported: Exported) -> tuple[Arrays, Arrays]:
    """Source and voice of two streams, and what comes of them when each stage is called by hand."""
    generator = np.random.default_rng(1)
    heard, voice = (
        dict(example_inputs(family[stage].inputs, 2, FRAMES, generator))
        for stage in ("pitch_extractor", "synthesizer")
    )
    audio = heard["AUDIO"]
    melody = run(exported("pitch_extractor"), heard)
    silence = np.zeros((2, family["content_encoder"].state_size), np.float32)
    words = run(exported("content_encoder"), {"AUDIO": audio, "STATE_IN": silence})
    features = {
        "CONTENT": words["CONTENT"],
        "LOUDNESS": words["LOUDNESS"],
        "F0": melody["F0"],
        "PERIODICITY": melody["PERIODICITY"],
    }
    spoken = run(exported("synthesizer"), voice | features)
    inputs = {
        "SOURCE_AUDIO": audio,
        "TARGET_EMBEDDING": voice["EMBEDDING"],
        "PITCH_SHIFT": voice["PITCH_SHIFT"],
    }
    made = {
        "CONVERTED_AUDIO": spoken["AUDIO"],
        "PITCH_STATE_OUT": melody["STATE_OUT"],
        "CONTENT_STATE_OUT": words["STATE_OUT"],
        "SYNTHESIZER_STATE_OUT": spoken["STATE_OUT"],
    }
    return inputs, made


def test_chunks_equal_the_whole_of_the_stages_one_by_one(
    converter: Composition, exported: Exported, stream: tuple[Arrays, Arrays]
) -> None:
    run_chunk = session_run(exported(converter.name))
    inputs, whole = stream
    voice = {name: value for name, value in inputs.items() if name != "SOURCE_AUDIO"}

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sets(st.integers(1, FRAMES - 1), max_size=12))
    def check(cuts: set[int]) -> None:
        states = {
            state.input.name: np.zeros(state.input.shape(2, {}), np.float32) for state in converter.states
        }
        pieces = []
        for start, stop in itertools.pairwise([0, *sorted(cuts), FRAMES]):
            chunk = {"SOURCE_AUDIO": inputs["SOURCE_AUDIO"][:, start * HOP : stop * HOP], **voice, **states}
            made = run_chunk(chunk)
            pieces.append(made["CONVERTED_AUDIO"])
            states = {state.input.name: made[state.output.name] for state in converter.states}
        found = {**made, "CONVERTED_AUDIO": np.concatenate(pieces, axis=1)}
        for name, expected in whole.items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)

    check()


def test_file_stands_for_itself(converter: Composition, exported: Exported) -> None:
    model = onnx.load(exported(converter.name), load_external_data=False)
    assert sorted(function.name for function in model.functions) == [
        "HarmonicSource",
        "PitchYin",
        "SpectralSynth",
    ]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "stage": converter.name,
        "family": "base",
    }
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert axes["SOURCE_AUDIO"] == axes["CONVERTED_AUDIO"] == ["B", "240*F"]
    assert axes["TARGET_EMBEDDING"] == ["B", VOICE_SIZE]
    assert axes["PITCH_STATE_IN"] == axes["PITCH_STATE_OUT"]


def test_crossed_wires_are_noticed(converter: Composition, exported: Exported, tmp_path: Path) -> None:
    def cross(step: EnsembleStep) -> EnsembleStep:
        swapped = {"LOUDNESS": "PERIODICITY", "PERIODICITY": "LOUDNESS"}
        return replace(step, inputs={name: swapped.get(wire, wire) for name, wire in step.inputs.items()})

    crossed = replace(converter, steps=(*converter.steps[:-1], cross(converter.steps[-1])))
    compose_stages(crossed, files(converter, exported), tmp_path / "crossed.onnx", {})
    with pytest.raises(
        ParityError, match=r"converter_stream: \w+ is .* from that of the files of its stages as allowed"
    ):
        verify_composition(converter, files(converter, exported), tmp_path / "crossed.onnx")


def test_unnamed_tensor_is_refused(converter: Composition, exported: Exported, tmp_path: Path) -> None:
    first = replace(converter.steps[0], outputs={"F0": "F0"})
    composition = replace(converter, steps=(first, *converter.steps[1:]))
    with pytest.raises(ExportError, match=r"pitch_extractor has the outputs .*'STATE_OUT'.* names \['F0'\]"):
        compose_stages(composition, files(converter, exported), tmp_path / "model.onnx", {})
    assert list(tmp_path.iterdir()) == []
