"""Model configs: what is said, what goes over the wire, what stands in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from autovoice_export import config_text
from autovoice_export.base import build, wiring
from autovoice_export.base.checkpoint import Checkpoint, load_checkpoint
from autovoice_export.config_types import (
    DynamicBatching,
    EnsembleConfig,
    EnsembleStep,
    Instances,
    SequenceBatching,
    StageModelConfig,
    StateConfig,
    TensorConfig,
)
from autovoice_export.stage import Stage
from autovoice_export.config_files import to_message

AUDIO, F0 = TensorConfig("AUDIO", (-1,)), TensorConfig("F0", (-1,))


@pytest.fixture(scope="module")
def wires(family: dict[str, Stage]) -> dict[str, pb.ModelConfig]:
    configs = wiring.model_configs(tuple(family.values()), Instances("auto", 2, 3))
    return {config.name: to_wire(config) for config in configs}


def test_text_and_back_is_the_same_message(wires: dict[str, pb.ModelConfig]) -> None:
    for name, wire in wires.items():
        text = config_text.dumps(wire)
        assert config_text.loads(text) == wire, name
        assert config_text.dumps(config_text.loads(text)) == text, name


NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True)
DIMS = st.lists(st.one_of(st.just(-1), st.integers(1, 2**40)), min_size=1, max_size=4).map(tuple)
TENSORS = st.lists(
    st.builds(TensorConfig, NAMES, DIMS), min_size=1, max_size=4, unique_by=lambda tensor: tensor.name
).map(tuple)


@given(
    TENSORS,
    TENSORS,
    st.integers(1, 1000),
    st.sampled_from(["auto", "cpu", "gpu"]),
    st.integers(1, 9),
    st.floats(0.001, 3600),
)
def test_every_setting_survives_the_file(
    inputs: tuple[TensorConfig, ...],
    outputs: tuple[TensorConfig, ...],
    batch: int,
    kind: str,
    count: int,
    idle: float,
) -> None:
    states = (StateConfig("STATE_IN", "STATE_OUT", 7),)
    config = StageModelConfig(
        "model",
        inputs,
        outputs,
        batch,
        SequenceBatching(states, max_sequences=count, idle_seconds=idle),
        Instances(kind, count, 4),  # type: ignore[arg-type]
    )
    wire = config_text.loads(config_text.dumps(to_wire(config)))
    assert tuple(TensorConfig(t.name, tuple(t.dims)) for t in wire.input) == inputs
    assert tuple(TensorConfig(t.name, tuple(t.dims)) for t in wire.output) == outputs
    assert wire.max_batch_size == batch
    assert pb.ModelInstanceGroup.Kind.Name(wire.instance_group[0].kind) == f"KIND_{kind.upper()}"
    assert wire.instance_group[0].count == wire.sequence_batching.oldest.max_candidate_sequences == count
    assert wire.sequence_batching.max_sequence_idle_microseconds == round(idle * 1e6)
    assert wire.parameters["intra_op_thread_count"].string_value == "4"


def test_stream_variants_keep_their_state_on_the_server(wires: dict[str, pb.ModelConfig]) -> None:
    for name in ("content_encoder", "pitch_extractor", "synthesizer"):
        plain, stream = wires[name], wires[f"{name}_stream"]
        (state,) = stream.sequence_batching.state
        assert (state.input_name, state.output_name) == ("STATE_IN", "STATE_OUT")
        assert [*plain.input] == [*stream.input, plain.input[-1]]
        assert plain.input[-1].name == "STATE_IN"
        (made,) = [tensor for tensor in plain.output if tensor.name == "STATE_OUT"]
        assert state.dims == plain.input[-1].dims == made.dims
        (initial,) = state.initial_state
        assert initial.zero_data
        assert (initial.dims, initial.data_type) == (state.dims, pb.TYPE_FP32)
        assert stream.sequence_batching.HasField("oldest")
        assert plain.HasField("dynamic_batching")


def test_converter_keeps_the_states_of_its_stages(wires: dict[str, pb.ModelConfig]) -> None:
    stages = {"PITCH": "pitch_extractor", "CONTENT": "content_encoder", "SYNTHESIZER": "synthesizer"}
    converter = wires["converter_stream"]
    states = converter.sequence_batching.state
    assert [(state.input_name, state.output_name) for state in states] == [
        (f"{name}_STATE_IN", f"{name}_STATE_OUT") for name in stages
    ]
    for state, stage in zip(states, stages.values(), strict=True):
        (alone,) = wires[f"{stage}_stream"].sequence_batching.state
        assert state.dims == alone.dims
        assert state.initial_state == alone.initial_state
    ensemble = wires["voice_conversion_stream"]
    assert (converter.input, converter.output) == (ensemble.input, ensemble.output)
    (step,) = ensemble.ensemble_scheduling.step
    assert step.model_name == converter.name


def test_ensembles_tell_clients_what_they_need(wires: dict[str, pb.ModelConfig]) -> None:
    ensembles = {name: wire for name, wire in wires.items() if wire.HasField("ensemble_scheduling")}
    assert set(ensembles) == {
        f"voice_conversion{f0}{stream}" for f0 in ("", "_with_f0") for stream in ("", "_stream")
    }
    for name, wire in ensembles.items():
        assert {key: value.string_value for key, value in wire.parameters.items()} == {
            "family": "base",
            "sample_rate": "24000",
            "frame_samples": "240",
            "lookahead_samples": "600",
            "embedding_size": "1282",
        }
        inputs = [
            "SOURCE_AUDIO",
            *(["SOURCE_F0"] if "with_f0" in name else []),
            "TARGET_EMBEDDING",
            "PITCH_SHIFT",
        ]
        assert [tensor.name for tensor in wire.input] == inputs
        steps = [step.model_name for step in wire.ensemble_scheduling.step]
        assert all(step.endswith("_stream") for step in steps) == name.endswith("_stream")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TensorConfig("audio", (1,)), "tensor name 'audio' must be upper case"),
        (lambda: TensorConfig("AUDIO", ()), r"dims of AUDIO must be positive or -1, got \[\]"),
        (lambda: TensorConfig("AUDIO", (0,)), r"got \[0\]"),
        (lambda: StateConfig("STATE_IN", "STATE_OUT", 0), "at least 1 value, got 0"),
        (lambda: SequenceBatching(()), "at least one StateConfig"),
        (lambda: DynamicBatching(-1), "got -1"),
        (lambda: Instances(count=0), "got 0, 1"),
        (lambda: StageModelConfig("Model", (AUDIO,), (F0,), 1), "model name 'Model' must be lower case"),
        (lambda: StageModelConfig("model", (AUDIO, AUDIO), (F0,), 1), "names a tensor twice"),
        (lambda: StageModelConfig("model", (AUDIO,), (), 1), "at least one input and one output"),
        (lambda: StageModelConfig("model", (AUDIO,), (F0,), 0), "max_batch_size of model must be at least 1"),
        (
            lambda: EnsembleConfig(
                "e", (AUDIO,), (F0,), (EnsembleStep("m", {"X": "CONTENT"}, {"Y": "F0"}),), 1
            ),
            "step m reads CONTENT, which nothing produces",
        ),
        (
            lambda: EnsembleConfig("e", (AUDIO,), (F0,), (EnsembleStep("m", {"X": "AUDIO"}, {}),), 1),
            "output F0 is produced by no step",
        ),
        (
            lambda: EnsembleConfig("e", (AUDIO,), (F0,), (EnsembleStep("m", {}, {"Y": "AUDIO"}),), 1),
            "tensor AUDIO is produced twice",
        ),
    ],
)
def test_nonsense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text('name: "x"\nmax_batch: 3\n')
    with pytest.raises(ValueError, match=r"config\.pbtxt is no Triton model configuration: 2:1") as caught:
        config_text.read(tmp_path)
    assert isinstance(caught.value.__cause__, text_format.ParseError)


def test_committed_configs_are_the_generated_ones() -> None:
    if not (build.DEFAULT_REPOSITORY / "voice_conversion").is_dir():
        pytest.skip("model_repository holds no models yet")
    trained = build.DEFAULT_CHECKPOINT
    checkpoint = load_checkpoint(trained) if trained.is_file() else Checkpoint.untrained(0)
    for config in wiring.model_configs(wiring.stages(checkpoint), Instances()):
        committed = (build.DEFAULT_REPOSITORY / config.name / "config.pbtxt").read_text()
        assert committed == config_text.dumps(to_wire(config)), f"{config.name}: run  make export"
