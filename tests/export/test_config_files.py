"""Model configs: what is said, the messages made of it, what stands in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from autovoice.errors import RepositoryError
from autovoice.repository.model_config import dump_config, parse_config, read_config
from autovoice_export.base import build, wiring
from autovoice_export.base.checkpoint import Checkpoint, load_checkpoint
from autovoice_export.config_files import to_message
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

AUDIO, F0 = TensorConfig("AUDIO", (-1,)), TensorConfig("F0", (-1,))


@pytest.fixture(scope="module")
def messages(family: dict[str, Stage]) -> dict[str, pb.ModelConfig]:
    configs = wiring.model_configs(tuple(family.values()), Instances("auto", 2, 3))
    return {config.name: to_message(config) for config in configs}


def test_text_and_back_is_the_same_message(messages: dict[str, pb.ModelConfig]) -> None:
    for name, message in messages.items():
        text = dump_config(message)
        assert parse_config(text, "text") == message, name
        assert dump_config(parse_config(text, "text")) == text, name


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
    message = parse_config(dump_config(to_message(config)), "text")
    assert tuple(TensorConfig(t.name, tuple(t.dims)) for t in message.input) == inputs
    assert tuple(TensorConfig(t.name, tuple(t.dims)) for t in message.output) == outputs
    assert message.max_batch_size == batch
    assert pb.ModelInstanceGroup.Kind.Name(message.instance_group[0].kind) == f"KIND_{kind.upper()}"
    assert (
        message.instance_group[0].count == message.sequence_batching.oldest.max_candidate_sequences == count
    )
    assert message.sequence_batching.max_sequence_idle_microseconds == round(idle * 1e6)
    assert message.parameters["intra_op_thread_count"].string_value == "4"


def test_stream_variants_keep_their_state_on_the_server(messages: dict[str, pb.ModelConfig]) -> None:
    for name in ("content_encoder", "pitch_extractor", "synthesizer"):
        plain, stream = messages[name], messages[f"{name}_stream"]
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


def test_converter_keeps_the_states_of_its_stages(messages: dict[str, pb.ModelConfig]) -> None:
    stages = {"PITCH": "pitch_extractor", "CONTENT": "content_encoder", "SYNTHESIZER": "synthesizer"}
    converter = messages["converter_stream"]
    states = converter.sequence_batching.state
    assert [(state.input_name, state.output_name) for state in states] == [
        (f"{name}_STATE_IN", f"{name}_STATE_OUT") for name in stages
    ]
    for state, stage in zip(states, stages.values(), strict=True):
        (alone,) = messages[f"{stage}_stream"].sequence_batching.state
        assert state.dims == alone.dims
        assert state.initial_state == alone.initial_state
    ensemble = messages["voice_conversion_stream"]
    assert (converter.input, converter.output) == (ensemble.input, ensemble.output)
    (step,) = ensemble.ensemble_scheduling.step
    assert step.model_name == converter.name


def test_ensembles_tell_clients_what_they_need(messages: dict[str, pb.ModelConfig]) -> None:
    ensembles = {
        name: message for name, message in messages.items() if message.HasField("ensemble_scheduling")
    }
    assert set(ensembles) == {
        f"voice_conversion{f0}{stream}" for f0 in ("", "_with_f0") for stream in ("", "_stream")
    }
    for name, message in ensembles.items():
        assert {key: value.string_value for key, value in message.parameters.items()} == {
            "family": "base",
            "sample_rate": "24000",
            "frame_samples": "240",
            "lookahead_samples": "600",
            "embedding_size": "12545",
            "identity_size": "256",
            "embedding_frames": "192",
        }
        inputs = [
            "SOURCE_AUDIO",
            *(["SOURCE_F0"] if "with_f0" in name else []),
            "TARGET_EMBEDDING",
            "PITCH_SHIFT",
        ]
        assert [tensor.name for tensor in message.input] == inputs
        steps = [step.model_name for step in message.ensemble_scheduling.step]
        assert all(step.endswith("_stream") for step in steps) == name.endswith("_stream")


def test_a_config_serves_its_own_version_and_asks_for_those_of_its_steps() -> None:
    steps = (EnsembleStep("a", {"X": "AUDIO"}, {"Y": "P"}, 3), EnsembleStep("b", {"X": "P"}, {"Y": "F0"}, 7))
    message = to_message(EnsembleConfig("e", (AUDIO,), (F0,), steps, 1, version=5))
    assert list(message.version_policy.specific.versions) == [5]
    assert [step.model_version for step in message.ensemble_scheduling.step] == [3, 7]
    stage = to_message(StageModelConfig("s", (AUDIO,), (F0,), 1, version=4))
    assert list(stage.version_policy.specific.versions) == [4]


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
    path = tmp_path / "config.pbtxt"
    with pytest.raises(RepositoryError, match=r"config\.pbtxt is missing"):
        read_config(path)
    path.write_text('name: "x"\nmax_batch: 3\n')
    with pytest.raises(RepositoryError, match=r"config\.pbtxt is not a Triton model config \(2:1"):
        read_config(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RepositoryError, match=r"config\.pbtxt cannot be read"):
        read_config(path)


def test_committed_configs_are_the_generated_ones() -> None:
    if not (build.DEFAULT_REPOSITORY / "voice_conversion").is_dir():
        pytest.skip("model_repository holds no models yet")
    trained = build.DEFAULT_CHECKPOINT
    checkpoint = load_checkpoint(trained) if trained.is_file() else Checkpoint.untrained(0)
    for config in wiring.model_configs(wiring.stages(checkpoint), Instances()):
        committed = (build.DEFAULT_REPOSITORY / config.name / "config.pbtxt").read_text()
        assert committed == dump_config(to_message(config)), f"{config.name}: run  make export"


def test_every_committed_config_is_pinned() -> None:
    paths = sorted(build.DEFAULT_REPOSITORY.glob("*/**/*.pbtxt"))
    assert paths
    for path in paths:
        config = read_config(path)
        assert list(config.version_policy.specific.versions) == [1], path
        assert all(step.model_version == 1 for step in config.ensemble_scheduling.step), path
