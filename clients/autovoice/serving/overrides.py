"""A view of a model repository: the same files, other numbers of instances and threads."""

from __future__ import annotations

from pathlib import Path

from autovoice.model_config import ONNX_BACKEND, parse_config
from autovoice.repository import CONFIG_FILENAME, ModelRepository

_THREADS = "intra_op_thread_count"


def write_view(
    repository: ModelRepository, view: Path, *, instances: int | None, threads: int | None
) -> None:
    """Fill `view` with configs that say otherwise and links to everything else.

    Args:
        repository: the models; stays as it is.
        view: an empty folder.
        instances: copies of each model for each device, None for what its config says.
        threads: ONNX Runtime threads of each copy, None for what its config says.
    """
    from google.protobuf import text_format

    for name in repository.names():
        folder = (repository.path / name).absolute()
        target = view / name
        target.mkdir(parents=True)
        for entry in folder.iterdir():
            if entry.name != CONFIG_FILENAME:
                (target / entry.name).symlink_to(entry)
        path = folder / CONFIG_FILENAME
        config = parse_config(path.read_text(encoding="utf-8"), str(path))
        if config.backend == ONNX_BACKEND:
            if threads is not None:
                config.parameters[_THREADS].string_value = str(threads)
            if instances is not None:
                for group in config.instance_group or [config.instance_group.add()]:
                    group.count = instances
        text = text_format.MessageToString(config, use_short_repeated_primitives=True)
        (target / CONFIG_FILENAME).write_text(text, encoding="utf-8")
