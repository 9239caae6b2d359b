"""Import of an RVC voice: checkpoint, index and encoders to models of a repository, whole or not at all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor, nn

from autovoice.repository.model_config import read_config
from autovoice.repository.reader import CONFIG_FILENAME, ModelRepository
from autovoice_export.build_errors import ImportFailure
from autovoice_export.config_types import FIRST_VERSION, NUMPY_TYPES, EnsembleConfig, Instances
from autovoice_export.examples import example
from autovoice_export.onnx.export import export_stage
from autovoice_export.onnx.graph import load_model
from autovoice_export.onnx.half import measure_ranges, to_half
from autovoice_export.parity import Agreement
from autovoice_export.repository_writer import RepositoryWriter, finish_interrupted_change, model_versions
from autovoice_export.rvc import parity, plans, wiring
from autovoice_export.rvc.archive import unpacked
from autovoice_export.rvc.content_encoders import CONTENTVEC, check_encoder, content_model, where
from autovoice_export.rvc.faiss_index import FeatureIndex, load_index
from autovoice_export.rvc.geometry import GRID, SOURCE_RATE
from autovoice_export.rvc.hubert import Hubert
from autovoice_export.rvc.hubert_weights import WHERE as WHERE_CONTENTVEC
from autovoice_export.rvc.hubert_weights import load_hubert
from autovoice_export.rvc.retrieval import Retrieval
from autovoice_export.rvc.rmvpe import WHERE as WHERE_RMVPE
from autovoice_export.rvc.rmvpe import Rmvpe, load_rmvpe
from autovoice_export.rvc.voice import IndexedVoice, PitchedVoice, PlainVoice
from autovoice_export.rvc.voice_checkpoint import CONTENT_SIZES, VoiceCheckpoint, load_voice
from autovoice_export.rvc.wiring import PITCH_MODELS, VoiceModels
from autovoice_export.stage import Stage
from autovoice_export.tensorrt.plan_config import to_message

FINGERPRINT = "weights_sha256"
"""Parameter of the configs of shared models: two imports with the same weights share one."""

REVISION = {"rvc_revision": "2"}
"""Parameter of the configs of shared models. Those without it hear content 2.5 ms late and bound nothing."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_SHARED_NAME = re.compile(r"rvc_|hubert_v[12]_|(contentvec(_v1)?(_fp16)?|rmvpe)$")
_HALF_SUFFIX = "_fp16"
_EXAMPLE_SIZES = {"G": SOURCE_RATE // GRID}
"""One second of the inputs on which the ranges of float16 are measured."""


@dataclass(frozen=True)
class ImportRequest:
    """What to import.

    Attributes:
        checkpoint: the voice's ``.pth``, or a ZIP archive with it and perhaps its index.
        name: of the voice: lower case letters, digits, underscores and hyphens.
        repository: folder of the models; made where missing.
        index: faiss file, None for that of the archive or none.
        contentvec: folder or ``.pt``; None where the repository has the encoder already. For a voice that
            names another encoder, that one, in a folder or file of its name.
        pitch: tracker of a voice with pitch.
        rmvpe: its ``.pt``; None where the repository has the tracker already.
        unvoiced: what the voice was trained with where there is no pitch.
        speaker: default of a voice with several.
        replace: whether a voice of that name gets a new version.
        half: whether content encoder and synthesizer become float16.
    """

    checkpoint: Path
    name: str
    repository: Path
    index: Path | None = None
    contentvec: Path | None = None
    pitch: Literal["yin", "rmvpe"] = "yin"
    rmvpe: Path | None = None
    unvoiced: Literal["zero", "interpolate"] = "zero"
    speaker: int = 0
    replace: bool = False
    half: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ImportFailure(
                f"voice name {self.name!r} must be lower case letters, digits, underscores and hyphens"
            )
        if _SHARED_NAME.match(self.name):
            raise ImportFailure(f"voice name {self.name!r} is that of a shared model: choose another name")


@dataclass(frozen=True)
class ImportReport:
    """What an import made.

    Attributes:
        models: names of the voice's models.
        version: folder of the voice's own models.
        written: models that were written now.
        reused: models that were there already.
        parity: one line for each model written.
        checkpoint: what was imported.
    """

    models: VoiceModels
    version: int
    written: tuple[str, ...]
    reused: tuple[str, ...]
    parity: tuple[Agreement, ...]
    checkpoint: VoiceCheckpoint


def import_voice(
    request: ImportRequest,
    instances: Instances | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> ImportReport:
    """Exports a voice, checks every model against PyTorch, and puts all into the repository at once.

    Args:
        request: what to import.
        instances: copies and threads of the models on a server.
        progress: told the name of every model that is being exported.

    Raises:
        ImportFailure: a file or setting that cannot be imported; the repository is as it was.
        ExportError: a model cannot be exported; the repository is as it was.
        ParityError: a model behaves differently from PyTorch; the repository is as it was.
        RepositoryError: the repository cannot be written or holds something broken; it is as it was.
    """
    finish_interrupted_change(request.repository)
    with unpacked(request.checkpoint, request.index) as files:
        voice = load_voice(files.checkpoint)
        index = load_index(files.index, voice.synthesizer.config.content) if files.index else None
    config = voice.synthesizer.config
    if not 0 <= request.speaker < config.speakers:
        raise ImportFailure(
            f"speaker {request.speaker} does not exist: {request.checkpoint} has {config.speakers}, from 0"
        )
    models = VoiceModels(
        request.name,
        content_model(voice.encoder, voice.version) + (_HALF_SUFFIX if request.half else ""),
        PITCH_MODELS[request.pitch] if config.has_f0 else None,
        index is not None,
        config.sample_rate,
    )
    version = _next_version(request, models)
    hubert = _content_encoder(request, models.content, voice)
    tracker = _rmvpe(request, models.pitch)
    shared = {stage.name: stage for stage in wiring.shared_stages(models)}
    if hubert is not None:
        shared[models.content] = wiring.content_stage(models.content, hubert, config.content)
    if tracker is not None and models.pitch:
        shared[models.pitch] = wiring.pitch_stage(models.pitch, tracker)
    fingerprints = {
        name: REVISION | ({FINGERPRINT: fingerprint(stage.module)} if _has_weights(stage) else {})
        for name, stage in shared.items()
    }
    absent = {
        name: stage
        for name, stage in shared.items()
        if not _is_there(request.repository, name, fingerprints[name].get(FINGERPRINT))
    }
    own = _own_stages(models, voice, index, bridges_gaps=request.unvoiced == "interpolate")
    parameters = _parameters(request, voice, models)
    whole, window = wiring.ensembles(models, parameters, version)
    assert isinstance(whole, EnsembleConfig)
    assert isinstance(window, EnsembleConfig)
    _check_revisions(request.repository, {step.model for step in whole.steps} - set(models.possible))
    metadata = {"family": "rvc", "checkpoint_sha256": voice.sha256}
    settings = instances or Instances()
    with RepositoryWriter(request.repository) as repository:
        for config_of_ensemble in (whole, window):
            repository.add(config_of_ensemble)
        for stage in (*absent.values(), *own):
            mine = stage in own
            facts = {} if mine else fingerprints[stage.name]
            config_of_model = wiring.model_config(stage, settings, facts, version if mine else FIRST_VERSION)
            plan = plans.plan_config(stage, config_of_model)
            path = repository.add(config_of_model, tensorrt=plan and to_message(plan))
            progress(stage.name)
            export_stage(stage, path, metadata if mine else {"family": "rvc", **facts})
            if request.half and stage.name in (models.content, models.synthesizer):
                _halve(stage, path)
        made = {stage.name: stage for stage in (*absent.values(), *own)}
        for stale in set(models.possible) - {whole.name, window.name, *made}:
            repository.drop(stale)
        progress("checking")
        checked = repository.check()
        agreement = parity.check_parity(
            whole if made.keys() & {"rvc_pad", models.trim} else window,
            made,
            {step.model: _file_of(checked, step.model) for step in (*whole.steps, *window.steps)},
            parity.HALF_TOLERANCE if request.half else parity.TOLERANCE,
        )
    used = {step.model for step in whole.steps}
    return ImportReport(
        models,
        version,
        tuple(made),
        tuple(sorted(used - set(made))),
        tuple(agreement),
        voice,
    )


def _own_stages(
    models: VoiceModels, voice: VoiceCheckpoint, index: FeatureIndex | None, *, bridges_gaps: bool
) -> tuple[Stage, ...]:
    size = voice.synthesizer.config.content
    module: nn.Module
    if not models.pitch:
        module = PlainVoice(voice.synthesizer)
    elif index is None:
        module = PitchedVoice(voice.synthesizer, bridges_gaps=bridges_gaps)
    else:
        module = IndexedVoice(voice.synthesizer, bridges_gaps=bridges_gaps)
    synthesizer = wiring.synthesizer_stage(models, module.eval(), size)
    if index is None:
        return (synthesizer,)
    return wiring.retrieval_stage(models, Retrieval(index).eval(), size), synthesizer


def _parameters(request: ImportRequest, voice: VoiceCheckpoint, models: VoiceModels) -> dict[str, str]:
    """What the ensembles tell their clients."""
    config = voice.synthesizer.config
    return {
        "family": "rvc",
        "version": voice.version,
        "sample_rate": str(SOURCE_RATE),
        "output_sample_rate": str(config.sample_rate),
        "frame_samples": str(GRID),
        "context_left_samples": str(wiring.CONTEXT_LEFT_SAMPLES),
        "context_right_samples": str(wiring.CONTEXT_RIGHT_SAMPLES),
        "speakers": str(config.speakers),
        "default_speaker": str(request.speaker),
        "has_f0": str(int(config.has_f0)),
        "has_index": str(int(models.has_index)),
        "default_index_rate": "0.75" if models.has_index else "0",
        "default_protect": "0.33",
        "default_rms_mix": "0.25",
        "unvoiced": request.unvoiced,
        "checkpoint_sha256": voice.sha256,
    }


def _next_version(request: ImportRequest, models: VoiceModels) -> int:
    """The version to write.

    Raises:
        ImportFailure: a voice of that name exists and may not be replaced, or another model is in the way.
    """
    present = [name for name in models.possible if (request.repository / name).exists()]
    if not present:
        return FIRST_VERSION
    if not _is_voice(request.repository / request.name):
        raise ImportFailure(
            f"{request.repository} holds {present[0]}, which is no part of a voice {request.name}: "
            "choose another name"
        )
    if not request.replace:
        raise ImportFailure(
            f"{request.repository} already holds the voice {request.name}: choose another name, or "
            "write a new version of it with --replace"
        )
    return 1 + max(
        number for name in present for number in (model_versions(request.repository / name) or [0])
    )


def _is_voice(folder: Path) -> bool:
    if not (folder / CONFIG_FILENAME).is_file():
        return False
    config = read_config(folder / CONFIG_FILENAME)
    is_window = any(tensor.name == "FIRST_FRAME" for tensor in config.input)
    return config.parameters["family"].string_value == "rvc" and not is_window


def _content_encoder(request: ImportRequest, model: str, voice: VoiceCheckpoint) -> Hubert | None:
    version = voice.version
    if request.contentvec is not None:
        check_encoder(voice.encoder, request.contentvec, request.checkpoint)
        hubert = load_hubert(request.contentvec, version)
        if hubert.content_size != CONTENT_SIZES[version]:
            raise ImportFailure(
                f"{request.contentvec} makes features of {hubert.content_size} values, voices of version "
                f"{version} need {CONTENT_SIZES[version]}: {WHERE_CONTENTVEC}"
            )
        return hubert
    if (request.repository / model).is_dir():
        return None
    remedy = WHERE_CONTENTVEC
    if voice.encoder != CONTENTVEC:
        remedy = (
            f"{request.checkpoint} was trained on another encoder than ContentVec, {where(voice.encoder)}"
        )
    raise ImportFailure(f"{request.repository} holds no {model} yet: {remedy}")


def _rmvpe(request: ImportRequest, model: str | None) -> Rmvpe | None:
    if request.rmvpe is not None and model != PITCH_MODELS["rmvpe"]:
        raise ImportFailure(
            "--rmvpe is given, but "
            + ("--pitch is yin: add --pitch rmvpe" if model else "the voice knows no pitch: leave it out")
        )
    if model != PITCH_MODELS["rmvpe"]:
        return None
    if request.rmvpe is not None:
        return load_rmvpe(request.rmvpe)
    if (request.repository / model).is_dir():
        return None
    raise ImportFailure(f"{request.repository} holds no {model} yet: {WHERE_RMVPE}")


def _is_there(repository: Path, model: str, weights: str | None) -> bool:
    """Whether the repository has a shared model already.

    Raises:
        ImportFailure: it has one with other weights.
    """
    folder = repository / model
    if not (folder / CONFIG_FILENAME).is_file():
        return False
    present = read_config(folder / CONFIG_FILENAME).parameters[FINGERPRINT].string_value
    if weights is not None and present != weights:
        raise ImportFailure(
            f"{folder} has other weights than those given, and its voices depend on them: leave the option "
            "out to share what is there, or import into another repository"
        )
    return True


def _check_revisions(repository: Path, models: Iterable[str]) -> None:
    """Refuses shared models of an earlier revision: a voice of today would differ from itself elsewhere.

    Raises:
        ImportFailure: names the first.
    """
    for model in sorted(models):
        path = repository / model / CONFIG_FILENAME
        if path.is_file():
            parameters = read_config(path).parameters
            if any(parameters[key].string_value != value for key, value in REVISION.items()):
                raise ImportFailure(
                    f"{repository / model} was written by an earlier AutoVoice, which gave voices their "
                    "content 2.5 ms late: import all voices anew, into another repository"
                )


def _file_of(repository: ModelRepository, model: str) -> Path:
    path = repository.spec(model).model_file
    assert path is not None
    return path


def _halve(stage: Stage, path: Path) -> None:
    """Makes an exported file compute in float16 where it may."""
    model, generator = load_model(path), np.random.default_rng(0)
    shapes = {tensor.name: tensor.shape(2, _EXAMPLE_SIZES) for tensor in stage.inputs}
    types = {tensor.name: NUMPY_TYPES[tensor.data_type] for tensor in stage.inputs}
    feed = {name: example(name, shape, generator).astype(types[name]) for name, shape in shapes.items()}
    path.write_bytes(to_half(model, measure_ranges(model, [feed]), ()).SerializeToString(deterministic=True))


def _has_weights(stage: Stage) -> bool:
    return any(True for _ in stage.module.parameters())


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers by name: the same for the same weights in any file."""
    digest = hashlib.sha256()
    for name, tensor in _named_tensors(module):
        digest.update(f"{name} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _named_tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return sorted(module.state_dict().items())
