"""Repositories that do not hold together: each fault is one readable error that names it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from toy_repository import MODELS, make_model

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.engines.local import check_repository
from autovoice.errors import RepositoryError
from autovoice.repository.reader import ModelRepository


@pytest.fixture
def models(toy: Path, tmp_path: Path) -> Path:
    """A copy of the toy repository to spoil."""
    return Path(shutil.copytree(toy, tmp_path / "models", symlinks=True))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_specs_tell_what_the_configs_say(toy: Path) -> None:
    repository = ModelRepository(toy)
    assert "voice_conversion" in repository.names()
    spec = repository.spec("voice_conversion")
    assert (spec.kind, spec.max_batch_size, spec.version) == ("ensemble", 16, 1)
    assert spec.input("TARGET_EMBEDDING").dims == (4,)
    assert spec.integer_parameter("lookahead_samples") == 600
    stream = repository.spec("delay_stream")
    assert [(s.source.name, s.source.dims, s.output_name) for s in stream.states] == [
        ("STATE_IN", (600,), "STATE_OUT")
    ]
    assert stream.model_file is not None
    assert stream.model_file.resolve() == (toy / "delay" / "1" / "model.onnx").resolve()
    check_repository(repository)


def test_steps_are_ordered_by_what_they_need(toy: Path) -> None:
    repository = ModelRepository(toy)
    order = [step.model for step in repository.steps_in_order(repository.spec("voice_conversion"))]
    assert (
        order.index("pad_source")
        < order.index("delay")
        < order.index("synthesizer")
        < order.index("trim_output")
    )


def break_config(models: Path) -> None:
    (models / "delay" / "config.pbtxt").write_text('name: "delay" input {')


def binary_config(models: Path) -> None:
    (models / "delay" / "config.pbtxt").write_bytes(b"\xff\xfe\x00")


def foreign_backend(models: Path) -> None:
    edit(models / "delay" / "config.pbtxt", 'backend: "onnxruntime"', 'backend: "tensorrt"')


def wrong_name(models: Path) -> None:
    edit(models / "delay" / "config.pbtxt", 'name: "delay"', 'name: "other"')


def renamed_input(models: Path) -> None:
    edit(models / "target_pitch" / "config.pbtxt", 'name: "EMBEDDING"', 'name: "VOICE"')


def renamed_output(models: Path) -> None:
    edit(models / "target_pitch" / "config.pbtxt", 'name: "MEDIAN_F0"', 'name: "PITCH"')


def renamed_state(models: Path) -> None:
    edit(models / "delay_stream" / "config.pbtxt", 'output_name: "STATE_OUT"', 'output_name: "STATE_NEXT"')


def missing_input(models: Path) -> None:
    declared = 'input {\n  name: "EMBEDDING"\n  data_type: TYPE_FP32\n  dims: 4\n}'
    edit(models / "target_pitch" / "config.pbtxt", declared, "")


def wrong_type(models: Path) -> None:
    edit(models / "target_pitch" / "config.pbtxt", "TYPE_FP32", "TYPE_INT64")


def text_type(models: Path) -> None:
    edit(models / "target_pitch" / "config.pbtxt", "TYPE_FP32", "TYPE_STRING")


def wrong_dims(models: Path) -> None:
    edit(models / "target_pitch" / "config.pbtxt", "dims: 4", "dims: 5")


def wrong_state_size(models: Path) -> None:
    path = models / "delay_stream" / "config.pbtxt"
    path.write_text(path.read_text().replace("dims: 600", "dims: 601"))


def corrupt_model(models: Path) -> None:
    path = models / "target_pitch" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-40])


def no_model(models: Path) -> None:
    (models / "delay" / "1" / "model.onnx").unlink()


def lfs_pointer(models: Path) -> None:
    (models / "delay" / "1" / "model.onnx").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
    )


def no_version(models: Path) -> None:
    shutil.rmtree(models / "target_pitch" / "1")


def unknown_step(models: Path) -> None:
    edit(models / "voice_conversion" / "config.pbtxt", 'model_name: "synthesizer"', 'model_name: "vocoder"')


def unmapped_input(models: Path) -> None:
    mapped = 'input_map {\n      key: "F0"\n      value: "f0"\n    }'
    edit(models / "voice_conversion_stream" / "config.pbtxt", mapped, "")


def unknown_tensor(models: Path) -> None:
    edit(models / "voice_conversion" / "config.pbtxt", 'key: "DELAYED"', 'key: "SOUND"')


def never_made(models: Path) -> None:
    edit(models / "voice_conversion" / "config.pbtxt", 'value: "s0"', 'value: "s9"')


def made_twice(models: Path) -> None:
    edit(models / "voice_conversion_stream" / "config.pbtxt", 'value: "delayed"', 'value: "SOURCE_AUDIO"')
    edit(models / "voice_conversion_stream" / "config.pbtxt", 'value: "delayed"', 'value: "SOURCE_AUDIO"')


def crossed_types(models: Path) -> None:
    edit(models / "voice_conversion" / "config.pbtxt", "TYPE_FP32", "TYPE_FP16")


def crossed_sizes(models: Path) -> None:
    edit(
        models / "voice_conversion_stream" / "config.pbtxt",
        'value: "TARGET_EMBEDDING"',
        'value: "PITCH_SHIFT"',
    )


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (break_config, r"delay/config.pbtxt is not a Triton model config \(1:\d+"),
        (binary_config, "config.pbtxt cannot be read"),
        (foreign_backend, "asks for backend 'tensorrt'"),
        (wrong_name, "names the model 'other'"),
        (renamed_input, "names input VOICE, but .*target_pitch/1/model.onnx has EMBEDDING"),
        (renamed_output, "names output PITCH, but .* has MEDIAN_F0"),
        (renamed_state, "names output STATE_NEXT, but .* has DELAYED, STATE_OUT"),
        (missing_input, "needs input EMBEDDING, which the config of target_pitch lacks"),
        (wrong_type, r"gives input EMBEDDING the type int64, but .* has tensor\(float\)"),
        (text_type, "gives EMBEDDING the type TYPE_STRING"),
        (wrong_dims, r"gives input EMBEDDING the dims \[-1, 5\]"),
        (wrong_state_size, r"gives input STATE_IN the dims \[-1, 601\]"),
        (corrupt_model, "target_pitch/1/model.onnx is not a loadable ONNX model"),
        (no_model, "delay/1/model.onnx is missing"),
        (lfs_pointer, "is a Git LFS pointer; run `git lfs pull`"),
        (no_version, "target_pitch has no version folder to serve"),
        (unknown_step, "has no model 'vocoder'; it holds delay,"),
        (unmapped_input, "leaves input F0 of synthesizer_stream unmapped"),
        (unknown_tensor, "maps .*put SOUND of"),
        (never_made, "never makes s9"),
        (crossed_types, r"connects voice_conversion\.SOURCE_AUDIO, float16 .*, float32 .*, by SOURCE_AUDIO"),
        (crossed_sizes, r"PITCH_SHIFT, float32 \[1\], with synthesizer_stream.EMBEDDING, float32 \[4\]"),
        (made_twice, "makes SOURCE_AUDIO twice"),
    ],
)
def test_faults_are_named(models: Path, spoil: Callable[[Path], None], says: str) -> None:
    spoil(models)
    with pytest.raises(RepositoryError, match=says) as refusal:
        check_repository(ModelRepository(models))
    assert "\n" not in str(refusal.value)


def test_a_fault_reaches_the_caller_of_convert(models: Path, voice: np.ndarray) -> None:
    renamed_state(models)
    pipeline = VoiceConversionPipeline(PipelineConfig(repository=models))
    assert pipeline.convert(np.zeros(2400, np.float32), voice, None, 24_000).size == 2400
    with pipeline.stream(voice) as stream, pytest.raises(RepositoryError, match="STATE_NEXT"):
        stream.push(np.zeros(2400, np.float32))


def test_missing_and_empty_repositories(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="is not a folder"):
        VoiceConversionPipeline(PipelineConfig(repository=tmp_path / "none"))
    with pytest.raises(RepositoryError, match=r"holds no <model>/config\.pbtxt"):
        VoiceConversionPipeline(PipelineConfig(repository=tmp_path))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.pbtxt").write_text('backend: "onnxruntime"')
    with pytest.raises(RepositoryError, match="has no model 'voice_conversion'; it holds other"):
        VoiceConversionPipeline(PipelineConfig(repository=tmp_path))


@pytest.mark.parametrize(("value", "says"), [("0", "'0'"), ("ten", "'ten'"), ("-240", "'-240'")])
def test_parameters_must_make_sense(models: Path, value: str, says: str) -> None:
    edit(models / "voice_conversion" / "config.pbtxt", 'string_value: "240"', f'string_value: "{value}"')
    with pytest.raises(RepositoryError, match=f"frame_samples = {says}"):
        VoiceConversionPipeline(PipelineConfig(repository=models))


def test_the_embedding_size_must_be_that_of_the_input(models: Path) -> None:
    edit(models / "voice_conversion" / "config.pbtxt", 'string_value: "4"', 'string_value: "5"')
    with pytest.raises(RepositoryError, match=r"embedding_size = 5, but its TARGET_EMBEDDING has dims \[4\]"):
        VoiceConversionPipeline(PipelineConfig(repository=models))


def add_version(models: Path, version: int, factor: str) -> None:
    folder = models / "target_pitch" / str(version)
    folder.mkdir()
    onnx.save(
        make_model("target_pitch", MODELS["target_pitch"].replace("thousand", factor)), folder / "model.onnx"
    )


def median(models: Path) -> float:
    from autovoice.engines.local import LocalEngine

    engine = LocalEngine(ModelRepository(models))
    outputs = engine.infer("target_pitch", {"EMBEDDING": np.ones((1, 4), np.float32)})
    return float(outputs["MEDIAN_F0"][0, 0])


def test_the_newest_version_is_served_unless_the_policy_names_another(models: Path) -> None:
    add_version(models, 10, "half")
    add_version(models, 9, "hundredth")
    assert median(models) == 0.5
    config = models / "target_pitch" / "config.pbtxt"
    config.write_text(config.read_text() + "version_policy { specific { versions: [1, 9] } }")
    assert ModelRepository(models).spec("target_pitch").versions == (1, 9, 10)
    assert median(models) == pytest.approx(0.01)
    assert ModelRepository(models).spec("target_pitch", 1).version == 1
    with pytest.raises(RepositoryError, match="no version 4"):
        ModelRepository(models).spec("target_pitch", 4)


@pytest.mark.parametrize("order", ["autovoice first", "tritonclient first"])
def test_the_protobuf_module_lives_beside_the_real_client(order: str, toy: Path) -> None:
    """Loading it by file is only sound if a later, or earlier, ordinary import still works."""
    ours = (
        "from autovoice.repository.reader import ModelRepository; "
        f"spec = ModelRepository({str(toy)!r}).spec('voice_conversion')"
    )
    theirs = "import tritonclient.grpc; from tritonclient.grpc import model_config_pb2"
    alone = "import sys; assert 'grpc' not in sys.modules"
    lines = [ours, alone, theirs] if order == "autovoice first" else [theirs, ours]
    check = "assert model_config_pb2.ModelConfig(name='x').name == 'x' and spec.max_batch_size == 16"
    subprocess.run([sys.executable, "-c", "\n".join([*lines, check])], check=True)
