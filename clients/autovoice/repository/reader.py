"""A Triton model repository on disk: which models and versions it holds and whether they fit together."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from autovoice.errors import RepositoryError
from autovoice.repository.model_config import (
    DEFAULT_MODEL_FILENAME,
    ENSEMBLE,
    ModelSpec,
    StepSpec,
    TensorSpec,
    read_config,
    spec_from_config,
)

CONFIG_FILENAME = "config.pbtxt"
UPDATE_FOLDER = ".autovoice-update"
"""Where new models stand, inside the repository, while a build or an import prepares them."""
UPDATE_JOURNAL = "journal.json"
"""In that folder while models are exchanged: the repository is neither the old nor the new one."""
_VERSION = re.compile(r"[1-9][0-9]*")  # Triton, too, ignores folders of other names
_LFS_POINTER = b"version https://git-lfs"


def is_hidden(path: Path) -> bool:
    """Whether a name is that of no model or config but of what editors and file managers leave there."""
    return path.name.startswith(".")


class ModelRepository:
    """Reader of a folder that Triton serves: `<model>/config.pbtxt` and `<model>/<version>/model.onnx`.

    Configs are read when first asked for and kept; the folder is never written.

    Args:
        path: the folder.

    Raises:
        RepositoryError: it is not a folder, holds no model, or a change of it was interrupted.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise RepositoryError(
                f"model repository {self.path} is not a folder; pass the folder that holds "
                f"<model>/{CONFIG_FILENAME}"
            )
        if (self.path / UPDATE_FOLDER / UPDATE_JOURNAL).exists():
            raise RepositoryError(
                f"model repository {self.path} is being changed, or a change of it was interrupted; try "
                "again, or run `autovoice build` or `autovoice import` on it, which finish that change first"
            )
        self._specs: dict[str, ModelSpec] = {}
        self._lock = threading.Lock()
        if not self.names():
            raise RepositoryError(
                f"model repository {self.path} holds no <model>/{CONFIG_FILENAME}; build one or pass "
                "another folder"
            )

    def names(self) -> list[str]:
        """Names of all models, sorted."""
        # os.path: a folder that must not be entered (lost+found) is no model, and no error either.
        entries = [entry for entry in self.path.iterdir() if os.path.isfile(entry / CONFIG_FILENAME)]
        return sorted(entry.name for entry in entries if not is_hidden(entry))

    def spec(self, name: str, version: int = -1) -> ModelSpec:
        """Return a model's config with its version and file resolved.

        Args:
            name: of the model.
            version: a version number; -1 for the newest that the model's version policy serves.

        Raises:
            RepositoryError: no such model or version, unreadable config, missing or unfetched file.
        """
        with self._lock:
            spec = self._specs.get(name)
            if spec is None:
                spec = self._specs[name] = self._read(name)
        if version in (-1, 0, spec.version):
            return spec
        if version not in spec.versions:
            raise RepositoryError(
                f"model {name} has no version {version} in {self.path / name}; present are "
                f"{list(spec.versions)}"
            )
        return replace(spec, version=version, model_file=self._model_file(spec, version))

    def steps_in_order(self, ensemble: ModelSpec) -> list[StepSpec]:
        """Order an ensemble's steps so that every tensor is made before it is used.

        Raises:
            RepositoryError: a tensor is never made, made twice, or needed for its own making; a step maps a
                name that its model does not have; an output is never made; or the two ends of a wire differ
                in type or in a size that both fix.
        """
        origin = self.path / ensemble.name / CONFIG_FILENAME
        available = {tensor.name for tensor in ensemble.inputs}
        pending = list(ensemble.steps)
        for step in pending:
            self._check_step(step, origin)
        self._check_wires(ensemble, origin)
        ordered: list[StepSpec] = []
        while pending:
            ready = [step for step in pending if set(step.input_map.values()) <= available]
            if not ready:
                needed = {name for step in pending for name in step.input_map.values()} - available
                made_later = {name for step in pending for name in step.output_map.values()}
                missing = sorted(needed - made_later or needed)  # the latter when steps wait for each other
                raise RepositoryError(f"{origin} never makes {', '.join(missing)}; fix the maps of its steps")
            for step in ready:
                for name in step.output_map.values():
                    if name in available:
                        raise RepositoryError(
                            f"{origin} makes {name} twice; give each step's output its own name"
                        )
                    available.add(name)
            ordered.extend(ready)
            pending = [step for step in pending if step not in ready]
        for tensor in ensemble.outputs:
            if tensor.name not in available:
                raise RepositoryError(
                    f"{origin} never makes its output {tensor.name}; fix the maps of its steps"
                )
        return ordered

    def _check_step(self, step: StepSpec, origin: Path) -> None:
        model = self.spec(step.model, step.version)
        for kind, mapped, known in (
            ("input", set(step.input_map), {tensor.name for tensor in model.inputs}),
            ("output", set(step.output_map), {tensor.name for tensor in model.outputs}),
        ):
            if unknown := sorted(mapped - known):
                raise RepositoryError(
                    f"{origin} maps {kind} {unknown[0]} of {step.model}, which has {', '.join(sorted(known))}"
                )
        if unfed := sorted({tensor.name for tensor in model.inputs} - set(step.input_map)):
            raise RepositoryError(
                f"{origin} leaves input {unfed[0]} of {step.model} unmapped; map every input"
            )

    def _check_wires(self, ensemble: ModelSpec, origin: Path) -> None:
        """Compares everything that shares a tensor of the ensemble with what came first."""
        ends: dict[str, tuple[str, TensorSpec, tuple[int, ...]]] = {}

        def connect(wire: str, model: ModelSpec, tensor: TensorSpec) -> None:
            shape = (-1, *tensor.dims) if model.max_batch_size else tensor.dims
            end = f"{model.name}.{tensor.name}"
            other, known, sizes = ends.setdefault(wire, (end, tensor, shape))
            fits = len(sizes) == len(shape) and all(
                -1 in pair or pair[0] == pair[1] for pair in zip(sizes, shape, strict=True)
            )
            if known.dtype != tensor.dtype or not fits:
                raise RepositoryError(
                    f"{origin} connects {other}, {known.dtype} {list(known.dims)}, with {end}, "
                    f"{tensor.dtype} {list(tensor.dims)}, by {wire}; fix the maps of its steps"
                )

        for tensor in (*ensemble.inputs, *ensemble.outputs):
            connect(tensor.name, ensemble, tensor)
        for step in ensemble.steps:
            model = self.spec(step.model, step.version)
            for names, tensors in ((step.input_map, model.inputs), (step.output_map, model.outputs)):
                for tensor in tensors:
                    if tensor.name in names:
                        connect(names[tensor.name], model, tensor)

    def _read(self, name: str) -> ModelSpec:
        config_path = self.path / name / CONFIG_FILENAME
        if not os.path.isfile(config_path):
            raise RepositoryError(
                f"model repository {self.path} has no model {name!r}; it holds {', '.join(self.names())}"
            )
        config = read_config(config_path)
        if config.name and config.name != name:
            raise RepositoryError(f"{config_path} names the model {config.name!r}; rename it or its folder")
        config.name = name
        spec = spec_from_config(config, str(config_path))
        versions = self._versions(name)
        version = self._served_version(config, versions, config_path)
        spec = replace(spec, version=version, versions=versions)
        if spec.kind == ENSEMBLE:
            return spec
        filename = config.default_model_filename or DEFAULT_MODEL_FILENAME
        return replace(spec, model_file=self._model_file(spec, version, filename))

    def _versions(self, name: str) -> tuple[int, ...]:
        folder = self.path / name
        return tuple(
            sorted(
                int(entry.name)
                for entry in folder.iterdir()
                if _VERSION.fullmatch(entry.name) and entry.is_dir()
            )
        )

    def _served_version(self, config: Any, versions: tuple[int, ...], config_path: Path) -> int:
        """The newest version that Triton would serve under the config's version policy."""
        served = versions
        if config.version_policy.HasField("specific"):
            served = tuple(v for v in versions if v in config.version_policy.specific.versions)
        if not served:
            raise RepositoryError(
                f"{config_path.parent} has no version folder to serve (present: {list(versions)}); add one "
                "such as 1/"
            )
        return served[-1]

    def _model_file(self, spec: ModelSpec, version: int, filename: str | None = None) -> Path:
        name = filename or (spec.model_file.name if spec.model_file else DEFAULT_MODEL_FILENAME)
        path = self.path / spec.name / str(version) / name
        if not path.is_file():
            target = f" (a link to {os.readlink(path)})" if path.is_symlink() else ""
            raise RepositoryError(
                f"model file {path}{target} is missing; rebuild the repository or fetch its weights"
            )
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise RepositoryError(f"model file {path} is a Git LFS pointer; run `git lfs pull`")
        return path
