"""``config.pbtxt`` files: Triton's ``ModelConfig`` messages as protobuf text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

CONFIG_FILENAME = "config.pbtxt"


def dumps(message: Any) -> str:
    """Text of a message; equal messages give equal text."""
    return str(text_format.MessageToString(message, use_short_repeated_primitives=True))


def loads(text: str) -> Any:
    """Message of a text.

    Raises:
        google.protobuf.text_format.ParseError: not a model configuration; the error names line and column.
    """
    return text_format.Parse(text, pb.ModelConfig())


def read(model_folder: Path) -> Any:
    """Message in the ``config.pbtxt`` of a model's folder.

    Raises:
        ValueError: the file is not a model configuration.
    """
    path = model_folder / CONFIG_FILENAME
    try:
        return loads(path.read_text(encoding="utf-8"))
    except text_format.ParseError as error:
        raise ValueError(f"{path} is no Triton model configuration: {error}") from error


def write(message: Any, model_folder: Path) -> None:
    """Writes ``config.pbtxt`` into a model's folder."""
    (model_folder / CONFIG_FILENAME).write_text(dumps(message), encoding="utf-8")
