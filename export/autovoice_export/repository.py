"""Model repositories on disk: written whole or not at all, and checked against the ONNX files in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx

from autovoice_export import config_text
from autovoice_export.model_config import AnyModelConfig
from autovoice_export.wire_config import BACKEND, MODEL_FILENAME, to_wire

VERSION = "1"


class RepositoryError(RuntimeError):
    """A model repository that could not be written or whose parts do not fit together."""


class RepositoryWriter:
    """Builds a repository beside its destination and puts it in place when everything succeeded.

    Used as a context manager: leaving it normally replaces the models of the same names in ``root`` in one
    rename, keeping everything else that lies there; leaving it by an exception changes nothing.

    Args:
        root: the repository; made where missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._partial = self.root.with_name(f".{self.root.name}.{os.getpid()}.partial")
        self._former = self.root.with_name(f".{self.root.name}.{os.getpid()}.former")

    def __enter__(self) -> RepositoryWriter:
        if self.root.exists() and not self.root.is_dir():
            raise RepositoryError(f"{self.root} is not a folder: name another place for the model repository")
        try:
            self._partial.mkdir(parents=True)
        except OSError as error:
            raise RepositoryError(f"cannot write beside {self.root}: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._keep_the_rest()
                self._swap()
        finally:
            for leftover in (self._partial, self._former):
                shutil.rmtree(leftover, ignore_errors=True)

    def _swap(self) -> None:
        if not self.root.exists():
            self._partial.rename(self.root)
            return
        self.root.rename(self._former)
        try:
            self._partial.rename(self.root)
        except OSError:
            self._former.rename(self.root)
            raise

    def _keep_the_rest(self) -> None:
        for entry in self.root.iterdir() if self.root.exists() else ():
            target = self._partial / entry.name
            if target.exists():
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.copytree(entry, target, symlinks=True)
            else:
                shutil.copy2(entry, target, follow_symlinks=False)

    def add_config(self, config: AnyModelConfig) -> None:
        """Makes the folder of a model with its config and its version folder."""
        folder = self._partial / config.name
        (folder / VERSION).mkdir(parents=True)
        config_text.write(to_wire(config), folder)
        if not any((folder / VERSION).iterdir()):
            # Git keeps no empty folders, and Triton refuses a model without a version folder.
            (folder / VERSION / ".gitkeep").touch()

    def add_alternative(self, model: str, config_name: str, message: Any) -> None:
        """Gives a model a second configuration, ``configs/NAME.pbtxt``, after `add_config`."""
        path = self._partial / model / "configs" / f"{config_name}.pbtxt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(config_text.dumps(message), encoding="utf-8")

    def onnx_path(self, model: str) -> Path:
        """Where the ONNX file of a model belongs, after `add_config`."""
        folder = self._partial / model / VERSION
        (folder / ".gitkeep").unlink(missing_ok=True)
        return folder / MODEL_FILENAME

    def share_onnx(self, model: str, owner: str) -> None:
        """Gives a model the ONNX file of another one by a relative link."""
        self.onnx_path(model).symlink_to(Path("..", "..", owner, VERSION, MODEL_FILENAME))

    @property
    def partial(self) -> Path:
        """The repository as built so far."""
        return self._partial


def check_repository(root: Path) -> None:
    """Holds every config of a repository to its ONNX file and every ensemble to its models.

    Raises:
        RepositoryError: names the first model and tensor that do not fit.
    """
    configs = {folder.name: config_text.read(folder) for folder in _model_folders(root)}
    if not configs:
        raise RepositoryError(f"{root} holds no models: build them with  python -m autovoice_export.build")
    for name, config in configs.items():
        if config.name != name:
            raise RepositoryError(f"{root / name}: the config is that of {config.name!r}")
        if config.backend == BACKEND:
            _check_model(root / name, config)
    for name, config in configs.items():
        for step in config.ensemble_scheduling.step:
            if step.model_name not in configs:
                raise RepositoryError(
                    f"ensemble {name} uses the model {step.model_name!r}, which {root} does not hold"
                )
            model = configs[step.model_name]
            for kind, mapping, tensors in (
                ("input", step.input_map, model.input),
                ("output", step.output_map, model.output),
            ):
                unknown = sorted(set(mapping) - {tensor.name for tensor in tensors})
                if unknown:
                    raise RepositoryError(f"ensemble {name}: {step.model_name} has no {kind} {unknown[0]}")
            missing = sorted({tensor.name for tensor in model.input} - set(step.input_map))
            if missing:
                raise RepositoryError(
                    f"ensemble {name}: nothing feeds the input {missing[0]} of {step.model_name}"
                )
        _check_wiring(name, config, configs)


def _model_folders(root: Path) -> Iterable[Path]:
    return sorted(path.parent for path in root.glob(f"*/{config_text.CONFIG_FILENAME}"))


def _check_model(folder: Path, config: Any) -> None:
    path = folder / VERSION / MODEL_FILENAME
    if not path.is_file():
        raise RepositoryError(f"{path} is missing: build the repository again")
    graph = onnx.load(path, load_external_data=False).graph
    states = config.sequence_batching.state
    declared = {
        "input": {t.name: tuple(t.dims) for t in config.input}
        | {s.input_name: tuple(s.dims) for s in states},
        "output": {t.name: tuple(t.dims) for t in config.output}
        | {s.output_name: tuple(s.dims) for s in states},
    }
    for kind, values in (("input", graph.input), ("output", graph.output)):
        found = {value.name: _dims(value) for value in values}
        if found != declared[kind]:
            raise RepositoryError(
                f"{folder.name}: the config declares the {kind}s {declared[kind]}, the ONNX file has {found}"
            )


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Sizes behind the batch axis, -1 for variable ones."""
    tensor = value.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        raise RepositoryError(
            f"{value.name} is {onnx.TensorProto.DataType.Name(tensor.elem_type)}, not FLOAT"
        )
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim[1:])


def _check_wiring(name: str, config: Any, configs: Mapping[str, Any]) -> None:
    """Checks that the two ends of every wire of an ensemble have the same dims."""
    wires: dict[str, tuple[str, tuple[int, ...]]] = {}

    def connect(tensor: str, end: str, dims: Iterable[int]) -> None:
        other, known = wires.setdefault(tensor, (end, tuple(dims)))
        if known != tuple(dims):
            raise RepositoryError(
                f"ensemble {name}: {tensor} is {list(known)} at {other} but {list(dims)} at {end}"
            )

    for tensor in (*config.input, *config.output):
        if config.HasField("ensemble_scheduling"):
            connect(tensor.name, "the ensemble", tensor.dims)
    for step in config.ensemble_scheduling.step:
        model = configs[step.model_name]
        for mapping, tensors in ((step.input_map, model.input), (step.output_map, model.output)):
            dims = {tensor.name: tensor.dims for tensor in tensors}
            for inner, outer in mapping.items():
                connect(outer, f"{step.model_name}.{inner}", dims[inner])
