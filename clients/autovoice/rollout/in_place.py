"""In-place mode: one server holds two releases, and its models answer with one of them.

For a GPU whose memory has no room for a second server. The server's repository is a view: the models of
each release under names of its own, such as `synthesizer.7`, and those that clients ask under their own, as
ensembles over these. A switch loads these ensembles with another config, which takes milliseconds, and
touches nothing else: the models of the release before stay loaded, so that the way back takes no longer. Live
sequences do not outlast a switch: who sent them begins them again.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from autovoice.atomic import atomic_path
from autovoice.errors import ReleaseError, UnavailableError
from autovoice.releases.contract import read_contract
from autovoice.repository.model_config import ENSEMBLE, dump_config, protobuf_module, read_config
from autovoice.repository.reader import CONFIG_FILENAME, ModelRepository, is_hidden
from autovoice.server.control import load_model, model_config, unload_model
from autovoice.voices.pitch import PITCH_STREAM

_ALTERNATIVES = "configs"
_LOADS_AT_ONCE = 4
_INNER = re.compile(r".+\.[1-9][0-9]*")


class InPlace:
    """Two releases in one server.

    Releases are not checked here: verify them first.

    Args:
        releases: folder of the releases.
        view: folder that the server serves, `ServeOptions(view)`; made by `start`.
        config_name: the server's `config_name`.
        headers: that the server's model control asks for.
    """

    def __init__(
        self,
        releases: Path,
        view: Path,
        *,
        config_name: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._releases = releases
        self._view = view
        self._config_name = config_name
        self._headers = dict(headers or {})

    def start(self, number: int) -> None:
        """Write a view of one release, for a server that is started next.

        Raises:
            RepositoryError: the release cannot be read.
            OSError: the view cannot be written.
        """
        if self._view.exists():
            shutil.rmtree(self._view)
        self._view.mkdir(parents=True)
        self._write_inner(number)
        for name, variants in self._outer(number).items():
            self._write_outer(name, number, variants)

    @property
    def resident(self) -> list[int]:
        """Numbers of the releases whose models the view holds, ascending."""
        return sorted({_number_of(name) for name in self._inner_names()})

    @property
    def wanted(self) -> int:
        """Number of the release that a server started now answers with.

        Raises:
            ReleaseError: a switch was interrupted, so that the models are not of one release.
        """
        found = {_pinned(self._config(name)) for name in self._outer_names()}
        if len(found) != 1:
            raise ReleaseError(
                f"{self._view} stands between releases {', '.join(map(str, sorted(found)))}; promote one of "
                "them"
            )
        return found.pop()

    def serving(self, url: str) -> dict[str, int]:
        """The release that each model of a running server answers with.

        Raises:
            UnavailableError: the server does not answer.
        """
        return {name: _served_version(url, name) for name in self._outer_names()}

    def add(self, number: int, url: str) -> None:
        """Load the models of a release beside those that answer; of others than these, none stays loaded.

        Args:
            number: of the release.
            url: HTTP address of the server.

        Raises:
            ReleaseError: clients would have to know that this is another release.
            RepositoryError: it cannot be read.
            UnavailableError: the server refused one of the models or does not answer; the view is then
                without all of them, and so is a server that answers.
        """
        answering = set(self.serving(url).values())
        self._check_contract(number, answering)
        for other in set(self.resident) - answering - {number}:
            self.remove(other, url)
        try:
            for name in self._write_inner(number):
                load_model(url, name, self._headers)
        except UnavailableError:
            if number not in answering:
                self._discard(number, url)
            raise

    def switch(self, number: int, url: str) -> float:
        """Let all models answer with a release that `add` loaded.

        Args:
            number: of the release.
            url: HTTP address of the server.

        Returns:
            Seconds from the first model to the last.

        Raises:
            ReleaseError: the release is not loaded.
            UnavailableError: the server refused a model, and those before it answer as they did; or it does
                not answer.
        """
        if number not in self.resident:
            raise ReleaseError(f"release {number} is not loaded in {self._view}; add it first")
        outer = self._outer(number)
        before = {name: self._config(name) for name in outer}
        for name, variants in outer.items():
            self._write_outer(name, number, variants)
        after = {name: _as_json(self._config(name)) for name in outer}
        started = time.perf_counter()
        try:
            self._load_all(url, after)
        except UnavailableError:
            for name, config in before.items():
                self._write_outer(name, _pinned(config), self._outer(_pinned(config))[name])
            self._load_all(url, {name: _as_json(config) for name, config in before.items()})
            raise
        return time.perf_counter() - started

    def remove(self, number: int, url: str) -> None:
        """Unload the models of a release that does not answer.

        Raises:
            ReleaseError: it does.
            UnavailableError: the server refused or does not answer.
        """
        if number in self.serving(url).values():
            raise ReleaseError(f"release {number} answers requests; promote another one first")
        for name in self._inner_names():
            if _number_of(name) == number:
                unload_model(url, name, self._headers)
                shutil.rmtree(self._view / name)

    def _discard(self, number: int, url: str) -> None:
        """Remove the models of a release that may have ended the server."""
        for name in self._inner_names():
            if _number_of(name) == number:
                with suppress(UnavailableError):
                    unload_model(url, name, self._headers)
                shutil.rmtree(self._view / name)

    def _load_all(self, url: str, configs: Mapping[str, str]) -> None:
        """Load models with these configs, JSON, some at once."""

        def load(name: str) -> None:
            load_model(url, name, self._headers, config=configs[name])

        with ThreadPoolExecutor(_LOADS_AT_ONCE, thread_name_prefix="autovoice-switch") as threads:
            for _ in threads.map(load, configs):
                pass

    def _inner_names(self) -> list[str]:
        return [name for name in self._names() if _INNER.fullmatch(name)]

    def _outer_names(self) -> list[str]:
        return [name for name in self._names() if not _INNER.fullmatch(name)]

    def _names(self) -> list[str]:
        return sorted(path.parent.name for path in self._view.glob(f"[!.]*/{CONFIG_FILENAME}"))

    def _config(self, name: str) -> Any:
        """The config of a model of the view, as the server reads it."""
        chosen = self._view / name / _ALTERNATIVES / f"{self._config_name}.pbtxt"
        return read_config(chosen if chosen.is_file() else self._view / name / CONFIG_FILENAME)

    def _check_contract(self, number: int, answering: set[int]) -> None:
        wanted = self._contract(number)
        for other in answering - {number}:
            known = self._contract(other)
            different = sorted(
                name for name in known.keys() | wanted.keys() if known.get(name) != wanted.get(name)
            )
            if different:
                raise ReleaseError(
                    f"release {number} has other models, tensors or parameters than release {other} "
                    f"({', '.join(different)}); roll it out with a server of its own"
                )

    def _contract(self, number: int) -> dict[str, Any]:
        source = self._releases / str(number)
        return read_contract(ModelRepository(source), _hidden(_read_configs(source)))

    def _write_inner(self, number: int) -> list[str]:
        """Write the models of a release under names of its own; returns these, ensembles last."""
        source = self._releases / str(number)
        written = []
        for name, variants in _read_configs(source).items():
            target = self._view / f"{name}.{number}"
            if not target.exists():
                partial = self._view / f".{target.name}"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                for entry in (source / name).absolute().iterdir():
                    if entry.name not in (CONFIG_FILENAME, _ALTERNATIVES) and not is_hidden(entry):
                        (partial / entry.name).symlink_to(entry)
                for relative, config in variants.items():
                    config.name = target.name
                    _rename_steps(config, number)
                    (partial / relative).parent.mkdir(exist_ok=True)
                    (partial / relative).write_text(dump_config(config), encoding="utf-8")
                partial.rename(target)
            written.append(target.name)
        return written

    def _outer(self, number: int) -> dict[str, dict[str, Any]]:
        """Configs of the models that clients ask, under their own names, by their path inside the folder."""
        configs = _read_configs(self._releases / str(number))
        hidden = _hidden(configs)
        outer = {name: variants for name, variants in configs.items() if name not in hidden}
        for variants in outer.values():
            for relative, config in variants.items():
                ensemble = config if _is_ensemble(config) else _over(config)
                ensemble.version_policy.specific.versions[:] = [number]
                _rename_steps(ensemble, number)
                variants[relative] = ensemble
        return outer

    def _write_outer(self, name: str, number: int, variants: Mapping[str, Any]) -> None:
        folder = self._view / name
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        for relative, config in variants.items():
            (folder / relative).parent.mkdir(exist_ok=True)
            with atomic_path(folder / relative) as temporary:
                temporary.write_text(dump_config(config), encoding="utf-8")


def _read_configs(source: Path) -> dict[str, dict[str, Any]]:
    """Configs of the models of a release, ensembles last, by their path inside the model's folder."""
    found = {name: _read_variants(source / name) for name in ModelRepository(source).names()}
    return dict(sorted(found.items(), key=lambda item: _is_ensemble(item[1][CONFIG_FILENAME])))


def _hidden(configs: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Models that no client asks: steps of ensembles, but for the one that follows the pitch of a source."""
    messages = [config for variants in configs.values() for config in variants.values()]
    steps = {step.model_name for config in messages for step in config.ensemble_scheduling.step}
    return steps - {PITCH_STREAM}


def _is_ensemble(config: Any) -> bool:
    return bool(config.ensemble_scheduling.step)


def _read_variants(folder: Path) -> dict[str, Any]:
    """The config of a model and the alternatives beside it."""
    others = [path for path in sorted((folder / _ALTERNATIVES).glob("*.pbtxt")) if not is_hidden(path)]
    return {
        path.relative_to(folder).as_posix(): read_config(path) for path in (folder / CONFIG_FILENAME, *others)
    }


def _over(config: Any) -> Any:
    """Config of an ensemble whose one step is the model of `config`."""
    ensemble = protobuf_module().ModelConfig(
        name=config.name,
        platform=ENSEMBLE,
        max_batch_size=config.max_batch_size,
        input=config.input,
        output=config.output,
        parameters=config.parameters,
    )
    ensemble.ensemble_scheduling.step.add(
        model_name=config.name,
        input_map={tensor.name: tensor.name for tensor in config.input},
        output_map={tensor.name: tensor.name for tensor in config.output},
    )
    return ensemble


def _rename_steps(config: Any, number: int) -> None:
    for step in config.ensemble_scheduling.step:
        step.model_name = f"{step.model_name}.{number}"
        step.model_version = number


def _as_json(config: Any) -> str:
    from google.protobuf import json_format

    return str(json_format.MessageToJson(config, preserving_proto_field_name=True))


def _number_of(inner: str) -> int:
    return int(inner.rpartition(".")[2])


def _pinned(config: Any) -> int:
    return int(config.version_policy.specific.versions[0])


def _served_version(url: str, name: str) -> int:
    """The version of a model that a server answers with."""
    config = model_config(url, name)
    return int(config["version_policy"]["specific"]["versions"][0])
