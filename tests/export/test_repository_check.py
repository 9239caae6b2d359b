"""Repositories whose parts do not fit together: each fault is one error that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from autovoice.errors import RepositoryError
from autovoice.repository.model_config import dump_config, read_config
from autovoice_export.repository_check import check_repository


def edit(root: Path, model: str, change: Callable[[Any], None]) -> None:
    path = root / model / "config.pbtxt"
    message = read_config(path)
    change(message)
    path.write_text(dump_config(message))


def rename_input(message: Any) -> None:
    message.input[0].name = "SOUND"


def resize_state(message: Any) -> None:
    message.sequence_batching.state[0].dims[0] = 3


def fix_content(message: Any) -> None:
    message.output[0].dims[1] = 9


def drop_input(message: Any) -> None:
    del message.ensemble_scheduling.step[-1].input_map["PITCH_SHIFT"]


def cross_inputs(message: Any) -> None:
    message.ensemble_scheduling.step[-1].input_map["EMBEDDING"] = "PITCH_SHIFT"


def misname_output(message: Any) -> None:
    step = next(step for step in message.ensemble_scheduling.step if "CONTENT" in step.output_map)
    del step.output_map["CONTENT"]
    step.output_map["CONTENTS"] = "CONTENT"


def misname_model(message: Any) -> None:
    message.ensemble_scheduling.step[0].model_name = "encoder"


def rename_model(message: Any) -> None:
    message.name = "other"


def change_batch(message: Any) -> None:
    message.max_batch_size = 3


ENSEMBLE = "voice_conversion_with_f0_stream"


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("content_encoder", rename_input, "config of content_encoder names input SOUND, but .* has AUDIO"),
        (
            "pitch_extractor_stream",
            resize_state,
            r"gives input STATE_IN the dims \[-1, 3\] .* has \['B', 1765\]",
        ),
        ("content_encoder", fix_content, r"output CONTENT the dims \[-1, -1, 9\] .* has \['B', 'F', 73\]"),
        (ENSEMBLE, drop_input, "leaves input PITCH_SHIFT of synthesizer_stream unmapped"),
        (ENSEMBLE, cross_inputs, r"float32 \[1\], with synthesizer_stream\.EMBEDDING, float32 \[12545\]"),
        (ENSEMBLE, misname_output, "maps output CONTENTS of content_encoder_stream, which has CONTENT"),
        (ENSEMBLE, misname_model, "has no model 'encoder'"),
        ("target_pitch", rename_model, "names the model 'other'"),
        ("pitch_extractor", change_batch, "pitch_extractor: max_batch_size differs between configs/tensorrt"),
    ],
)
def test_what_does_not_fit_is_named(
    root: Path, model: str, change: Callable[[Any], None], message: str
) -> None:
    check_repository(root)
    edit(root, model, change)
    with pytest.raises(RepositoryError, match=message):
        check_repository(root)


def test_missing_file_and_other_types_are_named(root: Path) -> None:
    path = root / "trim_output" / "1" / "model.onnx"
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(model, path)
    with pytest.raises(
        RepositoryError, match=r"CONVERTED_AUDIO the type float32, but .* has tensor\(double\)"
    ):
        check_repository(root)
    path.write_bytes(b"\xff\xff nothing")
    with pytest.raises(RepositoryError, match=r"trim_output/1/model\.onnx cannot be read as ONNX"):
        check_repository(root)
    path.unlink()
    with pytest.raises(RepositoryError, match=r"trim_output/1/model\.onnx is missing"):
        check_repository(root)


def test_empty_folder_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"holds no <model>/config\.pbtxt"):
        check_repository(tmp_path)
