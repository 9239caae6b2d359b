"""A view of a model repository: the same files, other GPUs and numbers of instances and threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autovoice.repository.model_config import ONNX_BACKEND, parse_config
from autovoice.repository.reader import CONFIG_FILENAME, ModelRepository, is_hidden

_ALTERNATIVES = "configs"
_THREADS = "intra_op_thread_count"


def write_view(
    repository: ModelRepository,
    view: Path,
    *,
    instances: int | None = None,
    threads: int | None = None,
    gpus: Sequence[int] | None = None,
) -> None:
    """Fill `view` with configs that say otherwise and links to everything else.

    Args:
        repository: the models; stays as it is.
        view: an empty folder.
        instances: copies of each model for each device, None for what its config says.
        threads: ONNX Runtime threads of each copy, None for what its config says.
        gpus: numbers of the GPUs of the models that may use one, None for what their configs say.
    """
    for name in repository.names():
        folder = (repository.path / name).absolute()
        target = view / name
        target.mkdir(parents=True)
        for entry in folder.iterdir():
            if entry.name not in (CONFIG_FILENAME, _ALTERNATIVES) and not is_hidden(entry):
                (target / entry.name).symlink_to(entry)
        alternatives = [path for path in (folder / _ALTERNATIVES).glob("*.pbtxt") if not is_hidden(path)]
        for path in (folder / CONFIG_FILENAME, *alternatives):
            changed = target / path.relative_to(folder)
            changed.parent.mkdir(exist_ok=True)
            changed.write_text(_override(path, instances, threads, gpus), encoding="utf-8")


def _override(path: Path, instances: int | None, threads: int | None, gpus: Sequence[int] | None) -> str:
    """Text of a config that says otherwise."""
    from google.protobuf import text_format

    config = parse_config(path.read_text(encoding="utf-8"), str(path))
    if config.backend == ONNX_BACKEND and threads is not None:
        config.parameters[_THREADS].string_value = str(threads)
    if config.backend and instances is not None:  # ensembles have none
        for group in config.instance_group or [config.instance_group.add()]:
            group.count = instances
    if config.backend and gpus is not None:
        for group in config.instance_group or [config.instance_group.add()]:
            if group.kind != group.KIND_CPU:
                group.kind = group.KIND_GPU
                group.gpus[:] = gpus
    return str(text_format.MessageToString(config, use_short_repeated_primitives=True))
