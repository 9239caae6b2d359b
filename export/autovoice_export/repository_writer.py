"""Model repositories on disk: written whole or not at all, and checked against the ONNX files in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx
from tritonclient.grpc import model_config_pb2 as pb

from autovoice_export import config_text
from autovoice_export.model_config import AnyModelConfig
from autovoice_export.wire_config import BACKEND, MODEL_FILENAME, to_wire

FIRST_VERSION = 1


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
        self._dropped: set[str] = set()

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
                self.keep_the_rest()
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

    def keep_the_rest(self) -> None:
        """Takes over what else lies in the repository, so that `partial` can be checked as a whole."""
        for entry in self.root.iterdir() if self.root.exists() else ():
            target = self._partial / entry.name
            if entry.name in self._dropped or target.exists():
                continue
            if entry.is_dir() and not entry.is_symlink():
                _copy_tree(entry, target)
            else:
                shutil.copy2(entry, target, follow_symlinks=False)

    def drop(self, model: str) -> None:
        """Leaves a model of the repository out of the new one."""
        self._dropped.add(model)

    def add_config(self, config: AnyModelConfig, version: int = FIRST_VERSION) -> None:
        """Makes the folder of a model with its config and its version folder.

        Args:
            config: of the model.
            version: the number of the folder; above 1 it joins the versions that are there already.
        """
        folder = self._partial / config.name
        (folder / str(version)).mkdir(parents=True)
        for number in model_versions(self.root / config.name) if version > FIRST_VERSION else ():
            if number != version:
                _copy_tree(self.root / config.name / str(number), folder / str(number))
        config_text.write(to_wire(config), folder)
        # Git keeps no empty folders, and Triton refuses a model without a version folder.
        (folder / str(version) / ".gitkeep").touch()

    def add_alternative(self, model: str, config_name: str, message: Any) -> None:
        """Gives a model a second configuration, ``configs/NAME.pbtxt``, after `add_config`."""
        path = self._partial / model / "configs" / f"{config_name}.pbtxt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(config_text.dumps(message), encoding="utf-8")

    def onnx_path(self, model: str) -> Path:
        """Where the ONNX file of a model belongs, after `add_config`: in its newest version."""
        folder = self._partial / model / str(model_versions(self._partial / model)[-1])
        (folder / ".gitkeep").unlink(missing_ok=True)
        return folder / MODEL_FILENAME

    def share_onnx(self, model: str, owner: str) -> None:
        """Gives a model the ONNX file of another one by a relative link."""
        self.onnx_path(model).symlink_to(Path("..", "..", owner, str(FIRST_VERSION), MODEL_FILENAME))

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
        raise RepositoryError(
            f"{root} holds no models: build them with  python -m autovoice_export.base.build"
        )
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
    versions = model_versions(folder)
    path = folder / str(versions[-1] if versions else FIRST_VERSION) / MODEL_FILENAME
    if not path.is_file():
        raise RepositoryError(f"{path} is missing: build the repository again")
    graph = onnx.load(path, load_external_data=False).graph
    states = config.sequence_batching.state
    declared = {
        "input": {t.name: _declared(t) for t in config.input} | {s.input_name: _declared(s) for s in states},
        "output": {t.name: _declared(t) for t in config.output}
        | {s.output_name: _declared(s) for s in states},
    }
    for kind, values in (("input", graph.input), ("output", graph.output)):
        found = {value.name: _type_and_dims(value) for value in values}
        if found != declared[kind]:
            raise RepositoryError(
                f"{folder.name}: the config declares the {kind}s {declared[kind]}, the ONNX file has {found}"
            )


def _declared(tensor: Any) -> tuple[str | int, ...]:
    """Triton's data type, then the sizes behind the batch axis."""
    return (pb.DataType.Name(tensor.data_type), *tensor.dims)


def _type_and_dims(value: onnx.ValueInfoProto) -> tuple[str | int, ...]:
    """The same of a tensor of an ONNX file, -1 for variable sizes."""
    tensor = value.type.tensor_type
    types = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.INT64: "TYPE_INT64"}
    if tensor.elem_type not in types:
        raise RepositoryError(
            f"{value.name} is {onnx.TensorProto.DataType.Name(tensor.elem_type)}, neither FLOAT nor INT64"
        )
    sizes = (dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim[1:])
    return (types[tensor.elem_type], *sizes)


def model_versions(folder: Path) -> list[int]:
    """Numbers of the version folders of a model, ascending; none where there is no such model."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())


def _copy_tree(source: Path, target: Path) -> None:
    """Copies a folder by linking its files, which are never changed in place, where the disk can."""

    def link(file: str, copy: str) -> None:
        try:
            os.link(file, copy, follow_symlinks=False)
        except OSError:
            shutil.copy2(file, copy, follow_symlinks=False)

    shutil.copytree(source, target, symlinks=True, copy_function=link)


def _check_wiring(name: str, config: Any, configs: Mapping[str, Any]) -> None:
    """Checks that the two ends of every wire of an ensemble have the same dims."""
    wires: dict[str, tuple[str, tuple[str | int, ...]]] = {}

    def connect(value: Any, tensor: str, end: str) -> None:
        found = _declared(value)
        other, known = wires.setdefault(tensor, (end, found))
        if known != found:
            raise RepositoryError(
                f"ensemble {name}: {tensor} is {list(known)} at {other} but {list(found)} at {end}"
            )

    for tensor in (*config.input, *config.output):
        if config.HasField("ensemble_scheduling"):
            connect(tensor, tensor.name, "the ensemble")
    for step in config.ensemble_scheduling.step:
        model = configs[step.model_name]
        for mapping, tensors in ((step.input_map, model.input), (step.output_map, model.output)):
            by_name = {tensor.name: tensor for tensor in tensors}
            for inner, outer in mapping.items():
                connect(by_name[inner], outer, f"{step.model_name}.{inner}")
