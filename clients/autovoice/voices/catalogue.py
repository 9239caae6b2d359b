"""The voices of a repository or a server: which there are, and opening one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from autovoice.config import BASE_VOICE, PipelineConfig, as_config
from autovoice.engines.engine import Engine
from autovoice.engines.opening import connect
from autovoice.errors import RepositoryError
from autovoice.repository.model_config import ModelSpec
from autovoice.repository.reader import ModelRepository
from autovoice.voices.base import read_base_voice
from autovoice.voices.rvc import RVC, check_ensembles, read_rvc_voice
from autovoice.voices.voice import PLACE_INPUTS, Voice


class Models(Protocol):
    """A set of models that can be listed."""

    def names(self) -> list[str]:
        """Names of all models, sorted."""

    def spec(self, model: str, /) -> ModelSpec:
        """The config of a model."""


@dataclass(frozen=True)
class VoiceInfo:
    """A voice that conversions can be asked for by name.

    Attributes:
        name: for `PipelineConfig(voice=...)`.
        family: `"base"` or `"rvc"`.
        sample_rate: of its own output, Hz; results have their source's unless asked otherwise.
        speakers: how many it holds; None where a target embedding names any.
        f0: whether it follows a pitch, so that it can be shifted.
        index: whether `index_rate` has something to take from.
        checkpoint: version of the checkpoint it was imported from, `"v1"` or `"v2"`; None for the base voice.
        version: of the model, 0 when unknown.
        defaults: the settings used where none are given.
    """

    name: str
    family: str
    sample_rate: int
    speakers: int | None
    f0: bool
    index: bool
    checkpoint: str | None
    version: int
    defaults: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain types, for JSON."""
        return asdict(self)


def open_voice(engine: Engine, voice: str | None) -> Voice:
    """Read what a voice fixes.

    Args:
        engine: runs its models.
        voice: its name, None for the base voice.

    Raises:
        RepositoryError: when there is no such voice, or its config does not fit together.
    """
    if voice is None or voice == BASE_VOICE:
        return read_base_voice(engine)
    try:
        spec = engine.spec(voice)
    except RepositoryError as error:
        raise RepositoryError(
            f"voice {voice!r} cannot be opened: {error}; `autovoice voices` lists the voices"
        ) from error
    if not _is_imported(spec):
        raise RepositoryError(f"{voice!r} is a model, but no voice; `autovoice voices` lists the voices")
    opened = read_rvc_voice(spec)
    try:
        window = engine.spec(opened.windows.model)
    except RepositoryError as error:
        raise RepositoryError(
            f"voice {voice!r} has no usable model for windows: {error}; import the voice again"
        ) from error
    check_ensembles(spec, window, opened)
    return opened


def list_voices(config: PipelineConfig | None = None) -> list[VoiceInfo]:
    """The voices of the repository or the server that `config` names, the base voice first.

    Raises:
        ConfigurationError: the server wants another API key.
        InferenceError: the server does not answer.
        RepositoryError: no repository, or a voice whose config does not fit together.
    """
    config = as_config(config)
    if config.backend == "embedded":
        return voices_of(ModelRepository(config.repository_path()))
    server = connect(config)
    try:
        return voices_of(server)
    finally:
        server.close()


def voices_of(models: Models) -> list[VoiceInfo]:
    """The voices among `models`; see `list_voices`."""
    specs = [models.spec(name) for name in models.names()]
    base = [_base_info(spec) for spec in specs if spec.name == BASE_VOICE]
    return base + [_imported_info(spec) for spec in specs if _is_imported(spec)]


def _is_imported(spec: ModelSpec) -> bool:
    """Whether a model is an imported voice, and not the ensemble for windows beside it."""
    whole = PLACE_INPUTS.isdisjoint(tensor.name for tensor in spec.inputs)
    return spec.parameters.get("family") == RVC and whole


def _base_info(spec: ModelSpec) -> VoiceInfo:
    return VoiceInfo(
        name=spec.name,
        family=spec.parameters.get("family", ""),
        sample_rate=spec.integer_parameter("sample_rate"),
        speakers=None,
        f0=True,
        index=False,
        checkpoint=None,
        version=spec.version,
        defaults={},
    )


def _imported_info(spec: ModelSpec) -> VoiceInfo:
    voice = read_rvc_voice(spec)
    return VoiceInfo(
        name=spec.name,
        family=voice.family,
        sample_rate=voice.output_sample_rate,
        speakers=voice.speakers,
        f0=voice.has_f0,
        index=voice.has_index,
        checkpoint=voice.version,
        version=spec.version,
        defaults=asdict(voice.defaults),
    )
