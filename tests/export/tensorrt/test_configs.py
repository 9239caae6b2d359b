"""Length buckets, the configurations made from them, and what a build reads back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from autovoice.errors import RepositoryError
from autovoice.repository.model_config import dump_config, parse_config
from autovoice.repository.reader import ModelRepository
from autovoice_export.base import build, plans, wiring
from autovoice_export.base.checkpoint import load_checkpoint
from autovoice_export.build_errors import PlanError
from autovoice_export.config_types import Instances, SequenceBatching
from autovoice_export.stage import Stage
from autovoice_export.tensorrt import plan_config
from autovoice_export.tensorrt.buckets import AXIS_RATES, REQUESTS, STREAMS, AxisRate, Bucket, profiles
from autovoice_export.tensorrt.plan_config import Graph, PlanConfig, Profile, ShapeRange
from autovoice_export.tensorrt.plan_config_check import check_plan_configs, models_for_plans

GPU_MODELS = {
    f"{name}{suffix}"
    for name in ("content_encoder", "pitch_extractor", "synthesizer")
    for suffix in ("", "_stream")
}


def test_small_models_stay_on_the_cpu(engines: dict[str, PlanConfig], root: Path) -> None:
    assert set(engines) == GPU_MODELS
    assert set(models_for_plans(ModelRepository(root))) == GPU_MODELS


@given(st.integers(1, 30 * 24000), st.integers(1, wiring.MAX_BATCH_SIZE))
def test_every_request_up_to_the_longest_bucket_has_a_profile(samples: int, batch: int) -> None:
    frames = -(-(samples + 600) // 240)  # what pad_source makes of it
    stage = wiring.StageTensor("AUDIO", (wiring._BLOCKS, wiring._FRAMES))
    made = profiles((stage,), AXIS_RATES, REQUESTS, wiring.MAX_BATCH_SIZE)
    assert any(profile.shapes["AUDIO"].holds((batch, 240 * frames, frames)) for profile in made)


@given(st.integers(1, 1000), st.integers(1, wiring.MAX_BATCH_SIZE))
def test_every_chunk_of_a_stream_has_a_profile(frames: int, batch: int) -> None:
    stage = wiring.StageTensor("AUDIO", (wiring._BLOCKS,))
    made = profiles((stage,), AXIS_RATES, STREAMS, wiring.MAX_BATCH_SIZE)
    assert any(profile.shapes["AUDIO"].holds((batch, 240 * frames)) for profile in made)


def test_configuration_says_what_a_server_needs(engines: dict[str, PlanConfig]) -> None:
    for name, engine in engines.items():
        message = parse_config(dump_config(plan_config.to_message(engine)), "text")
        assert message.backend == "tensorrt"
        assert message.cc_model_filenames["8.6"] == "sm_86.plan"
        assert message.default_model_filename not in message.cc_model_filenames.values()
        (group,) = message.instance_group
        assert group.kind == pb.ModelInstanceGroup.KIND_GPU
        assert list(group.profile) == [str(index) for index in range(len(engine.profiles))]
        assert list(message.version_policy.specific.versions) == [1]
        assert plan_config.read_profiles(message) == engine.profiles
        streaming = name.endswith("_stream")
        assert bool(message.sequence_batching.state) == streaming
        assert message.optimization.cuda.graphs == streaming
        # Triton's warm-up passes the scheduler that adds the state.
        warmed = [] if streaming else [profile.name for profile in engine.profiles]
        assert [item.name for item in message.model_warmup] == warmed


def test_graphs_cover_the_usual_chunks_and_name_the_state(engines: dict[str, PlanConfig]) -> None:
    message = plan_config.to_message(engines["pitch_extractor_stream"])
    shapes = {(spec.batch_size, spec.input["AUDIO"].dim[0]) for spec in message.optimization.cuda.graph_spec}
    assert shapes == {(batch, samples) for batch in (1, 2, 4, 8) for samples in (240, 480, 960)}
    assert all(list(spec.input["STATE_IN"].dim) == [1765] for spec in message.optimization.cuda.graph_spec)


def test_committed_configurations_are_the_generated_ones() -> None:
    stages = wiring.stages(load_checkpoint(build.DEFAULT_CHECKPOINT))
    made = {item.model.name: item for item in plans.plan_configs(stages, Instances())}
    ours = {
        name
        for name in models_for_plans(ModelRepository(build.DEFAULT_REPOSITORY))
        if name.removesuffix("_stream") in {stage.name for stage in stages}
    }
    assert ours == set(made)
    for name, engine in made.items():
        committed = plan_config.config_path(build.DEFAULT_REPOSITORY / name).read_text()
        assert committed == dump_config(plan_config.to_message(engine)), f"{name}: run  make export"
    check_plan_configs(ModelRepository(build.DEFAULT_REPOSITORY))


def test_the_runtime_does_not_look_at_them(root: Path) -> None:
    before = {name: ModelRepository(root).spec(name) for name in ModelRepository(root).names()}
    for folder in root.glob("*/configs"):
        shutil.rmtree(folder)
    assert {name: ModelRepository(root).spec(name) for name in before} == before
    assert all(spec.kind in ("onnxruntime", "ensemble") for spec in before.values())


RANGES = st.lists(
    st.tuples(st.integers(1, 99), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=3
)


def shape_range(axes: list[tuple[int, int, int]]) -> ShapeRange:
    rising = [(low, low + more, low + more + most) for low, more, most in axes]
    smallest, typical, largest = zip(*rising, strict=True)
    return ShapeRange(smallest, typical, largest)


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z0-9_]{0,6}", fullmatch=True), RANGES, min_size=1, max_size=4))
def test_profiles_survive_the_file(axes: dict[str, list[tuple[int, int, int]]]) -> None:
    profile = Profile("bucket", {name: shape_range(value) for name, value in axes.items()})
    message = pb.ModelConfig(name="model")
    message.instance_group.add(profile=["0"])
    message.parameters["profile_0"].string_value = plan_config.dump_profile(profile)
    assert plan_config.read_profiles(parse_config(dump_config(message), "text")) == (profile,)


ONE = ShapeRange((1, 1), (1, 1), (16, 9))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda engine: Bucket("b", (2, 1, 3), 1), "bucket b: .* must rise"),
        (lambda engine: Bucket("b", (0, 0, 0), 1), "bucket b"),
        (lambda engine: Bucket("b", (0, 1, 3), 0), "batch 0"),
        (lambda engine: ShapeRange((1, 5), (1, 4), (1, 6)), "must rise"),
        (lambda engine: ShapeRange((1,), (1, 4), (1, 6)), "must rise"),
        (lambda engine: ShapeRange((0,), (1,), (1,)), "must rise"),
        (lambda engine: replace(engine, profiles=()), "has no optimisation profile"),
        (
            lambda engine: replace(engine, profiles=(Profile("p", {"AUDIO": ONE}),)),
            r"profile p of pitch_extractor has \['AUDIO'\], the model \['AUDIO', 'STATE_IN'\]",
        ),
        (
            lambda engine: replace(
                engine,
                profiles=(
                    Profile("p", {"AUDIO": ONE, "STATE_IN": ShapeRange((1, 1765), (1, 1765), (8, 1765))}),
                ),
            ),
            "must take batches of 1 to 16",
        ),
        (
            lambda engine: replace(engine, graphs=(Graph(1, {"AUDIO": (240,)}),)),
            r"a CUDA graph of pitch_extractor has \['AUDIO'\]",
        ),
        (
            lambda engine: replace(engine, graphs=(Graph(1, {"AUDIO": (240,), "STATE_IN": (1765,)}),)),
            "profile medium of pitch_extractor does not hold the CUDA graph",
        ),
    ],
)
def test_nonsense_is_refused(
    make: Callable[[PlanConfig], object], message: str, engines: dict[str, PlanConfig]
) -> None:
    with pytest.raises(ValueError, match=message):
        make(engines["pitch_extractor"])


def edit(root: Path, model: str, change: Callable[[Any], object]) -> None:
    message = plan_config.read_plan_config(root / model)
    change(message)
    plan_config.config_path(root / model).write_text(dump_config(message))


def set_profile(text: str) -> Callable[[Any], object]:
    def change(message: Any) -> None:
        message.parameters["profile_0"].string_value = text

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda message: setattr(message, "max_batch_size", 3), "max_batch_size differs"),
        (lambda message: setattr(message, "backend", "onnxruntime"), "asks for backend 'onnxruntime'"),
        (lambda message: message.input.pop(), "input differs"),
        (
            set_profile("short: AUDIO=1x241:1x480:16x480,STATE_IN=1x1765:1x1765:16x1765"),
            r"profile short gives AUDIO the shape \[1, 241\], the ONNX file \['B', '240\*F'\]",
        ),
        (
            set_profile("short: AUDIO=1x240:1x480:16x480,STATE_IN=1x7:1x7:16x7"),
            r"gives STATE_IN the shape \[1, 7\], the ONNX file \['B', 1765\]",
        ),
        (set_profile("short: AUDIO=1x240:1x480:16x480"), r"profile short has \['AUDIO'\]"),
        (lambda message: message.model_warmup[0].inputs.pop("STATE_IN"), r"warm-up short has \['AUDIO'\]"),
    ],
)
def test_what_does_not_fit_is_named(root: Path, change: Callable[[Any], object], message: str) -> None:
    edit(root, "pitch_extractor", change)
    with pytest.raises(RepositoryError, match=message):
        check_plan_configs(ModelRepository(root))


@pytest.mark.parametrize("text", ["", "short", "short: AUDIO=1x240", "short: AUDIO=a:b:c", "x: A=1:0:1"])
def test_unreadable_profile_is_named(root: Path, text: str) -> None:
    edit(root, "pitch_extractor", set_profile(text))
    with pytest.raises(PlanError, match="of pitch_extractor has no readable profile 0"):
        plan_config.read_profiles(plan_config.read_plan_config(root / "pitch_extractor"))


def test_missing_and_broken_files_are_named(root: Path) -> None:
    path = plan_config.config_path(root / "synthesizer")
    path.write_text("max_batch: 1")
    with pytest.raises(RepositoryError, match=r"configs/tensorrt\.pbtxt is not a Triton model config"):
        plan_config.read_plan_config(root / "synthesizer")
    path.unlink()
    with pytest.raises(RepositoryError, match=r"configs/tensorrt\.pbtxt is missing"):
        plan_config.read_plan_config(root / "synthesizer")


def test_states_of_streams_are_those_of_the_plain_models(
    engines: dict[str, PlanConfig], family: dict[str, Stage]
) -> None:
    for name, engine in engines.items():
        if isinstance(engine.model.batching, SequenceBatching):
            (state,) = engine.model.batching.states
            assert state.size == family[name.removesuffix("_stream")].state_size
            assert all(profile.shapes["STATE_IN"].largest == (16, state.size) for profile in engine.profiles)


def test_axis_rates_round_up() -> None:
    assert AxisRate(100).size(0.011) == 2
    assert AxisRate(100).size(0.02) == 2
    assert AxisRate(100, extra=3).size(1, padded=True) == 103
    assert AxisRate(100).size(0) == 1
