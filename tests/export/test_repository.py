"""Writing repositories whole, and noticing parts that do not fit together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import typer
from typer.testing import CliRunner

from autovoice_export import config_text
from autovoice_export.base import build, wiring
from autovoice_export.config_types import Instances
from autovoice_export.onnx.export import ExportError
from autovoice_export.onnx.verification import verify, verify_composition
from autovoice_export.repository_writer import RepositoryError, RepositoryWriter, check_repository
from autovoice_export.stage import Stage

Exported = Callable[[str], Path]


@pytest.fixture
def repository(family: dict[str, Stage], exported: Exported, tmp_path: Path) -> Path:
    """The whole repository around the small stages, but for the speaker encoder, which is slow to export."""
    stages = tuple(stage for stage in family.values() if stage.name != "speaker_encoder")
    root = tmp_path / "repository"
    write(root, stages, exported)
    return root


def write(root: Path, stages: tuple[Stage, ...], exported: Exported) -> None:
    with RepositoryWriter(root) as writer:
        for config in wiring.model_configs(stages, Instances()):
            writer.add_config(config)
        for stage in stages:
            shutil.copy(exported(stage.name), writer.onnx_path(stage.name))
            if stage.state_size:
                writer.share_onnx(f"{stage.name}_stream", stage.name)
        shutil.copy(exported(wiring.CONVERTER), writer.onnx_path(wiring.CONVERTER))


def edit(root: Path, model: str, change: Callable[[Any], None]) -> None:
    message = config_text.read(root / model)
    change(message)
    config_text.write(message, root / model)


def test_written_repository_fits_together(repository: Path) -> None:
    check_repository(repository)
    link = repository / "synthesizer_stream" / "1" / "model.onnx"
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    moved = repository.rename(repository.with_name("elsewhere"))
    check_repository(moved)
    assert all(any((folder / "1").iterdir()) for folder in moved.iterdir())


def rename_input(message: Any) -> None:
    message.input[0].name = "SOUND"


def resize_state(message: Any) -> None:
    message.sequence_batching.state[0].dims[0] = 3


def fix_length(message: Any) -> None:
    message.output[0].dims[0] = 240


def drop_wire(message: Any) -> None:
    del message.ensemble_scheduling.step[-1].input_map["PITCH_SHIFT"]


def cross_wires(message: Any) -> None:
    message.ensemble_scheduling.step[-1].input_map["EMBEDDING"] = "PITCH_SHIFT"


def misname_output(message: Any) -> None:
    step = next(step for step in message.ensemble_scheduling.step if "CONTENT" in step.output_map)
    del step.output_map["CONTENT"]
    step.output_map["CONTENTS"] = "CONTENT"


def misname_model(message: Any) -> None:
    message.ensemble_scheduling.step[0].model_name = "encoder"


def rename_model(message: Any) -> None:
    message.name = "other"


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("content_encoder", rename_input, "content_encoder: the config declares the inputs .*SOUND"),
        ("pitch_extractor_stream", resize_state, r"pitch_extractor_stream: .*'STATE_IN': \('TYPE_FP32', 3\)"),
        ("trim_output", fix_length, "trim_output: the config declares the outputs"),
        (
            "voice_conversion_with_f0_stream",
            drop_wire,
            "nothing feeds the input PITCH_SHIFT of synthesizer_stream",
        ),
        (
            "voice_conversion_with_f0_stream",
            cross_wires,
            r"PITCH_SHIFT is \['TYPE_FP32', 1\] .* but \['TYPE_FP32', 1282\]",
        ),
        ("voice_conversion_with_f0_stream", misname_output, "content_encoder_stream has no output CONTENTS"),
        (
            "voice_conversion_with_f0_stream",
            misname_model,
            "uses the model 'encoder', which .* does not hold",
        ),
        ("target_pitch", rename_model, "the config is that of 'other'"),
    ],
)
def test_what_does_not_fit_is_named(
    repository: Path, model: str, change: Callable[[Any], None], message: str
) -> None:
    edit(repository, model, change)
    with pytest.raises(RepositoryError, match=message):
        check_repository(repository)


def test_missing_file_and_other_types_are_named(repository: Path) -> None:
    path = repository / "trim_output" / "1" / "model.onnx"
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(model, path)
    with pytest.raises(RepositoryError, match="CONVERTED_AUDIO is DOUBLE, neither FLOAT nor INT64"):
        check_repository(repository)
    path.unlink()
    with pytest.raises(RepositoryError, match=r"trim_output/1/model\.onnx is missing"):
        check_repository(repository)


def test_empty_folder_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="holds no models"):
        check_repository(tmp_path)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def fail(name: str) -> Path:
    raise ExportError(name)


def test_failed_build_changes_nothing(repository: Path, family: dict[str, Stage], tmp_path: Path) -> None:
    before = contents(repository)
    with pytest.raises(ExportError):
        write(repository, tuple(family.values()), fail)
    assert contents(repository) == before
    assert list(tmp_path.iterdir()) == [repository]


def test_failed_swap_puts_the_former_repository_back(
    repository: Path, family: dict[str, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(repository)
    rename = Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="Input/output"), RepositoryWriter(repository) as writer:
        writer.add_config(wiring.model_configs(tuple(family.values()), Instances())[0])
    assert contents(repository) == before
    assert list(tmp_path.iterdir()) == [repository]


def test_rebuild_replaces_its_models_and_keeps_the_rest(
    repository: Path, family: dict[str, Stage], exported: Exported
) -> None:
    (repository / "MODEL_CARD.md").write_text("a card")
    shutil.copytree(repository / "trim_output", repository / "other_voice")
    (repository / "trim_output" / "config.pbtxt").write_text("broken")
    (repository / "trim_output" / "2").mkdir()
    before = contents(repository)
    write(repository, tuple(s for s in family.values() if s.name != "speaker_encoder"), exported)
    after = contents(repository)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == {"trim_output/config.pbtxt"}
    assert not (repository / "trim_output" / "2").exists()


def run_build(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(build.main)
    return CliRunner().invoke(app, list(arguments))


def test_command_names_a_missing_checkpoint_in_one_line(tmp_path: Path) -> None:
    result = run_build("--checkpoint", str(tmp_path / "no.safetensors"), "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert f"error: checkpoint {tmp_path / 'no.safetensors'} does not exist" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_command_refuses_a_file_as_repository(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    result = run_build("--random", "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "is not a folder" in result.stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_command_leaves_nothing_behind_when_a_stage_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "export_stage", disk_full)
    result = run_build("--random", "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["speaker_encoder", "synthesizer"])
def test_committed_files_agree_with_pytorch(name: str) -> None:
    path = build.DEFAULT_REPOSITORY / name / "1" / "model.onnx"
    if not path.is_file() or not build.DEFAULT_CHECKPOINT.is_file():
        pytest.skip("model_repository holds no trained models yet")
    check_repository(build.DEFAULT_REPOSITORY)
    stages = wiring.stages(build.load_checkpoint(build.DEFAULT_CHECKPOINT))
    (stage,) = (stage for stage in stages if stage.name == name)
    verify(stage, path, frame_counts=(1, 2, 7, 100, 400))


def test_committed_converter_is_that_of_the_committed_stages() -> None:
    if not (build.DEFAULT_REPOSITORY / wiring.CONVERTER).is_dir() or not build.DEFAULT_CHECKPOINT.is_file():
        pytest.skip("model_repository holds no trained models yet")
    converter = wiring.converter(wiring.stages(build.load_checkpoint(build.DEFAULT_CHECKPOINT)))
    files = {
        name: build.DEFAULT_REPOSITORY / name / "1" / "model.onnx"
        for name in (converter.name, *(step.model for step in converter.steps))
    }
    verify_composition(converter, files, files[converter.name], frame_counts=(1, 2, 100), batch_sizes=(2,))
