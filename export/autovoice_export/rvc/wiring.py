"""The RVC family: which models a voice consists of, how they are wired, and what their configs say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from autovoice_export.config_types import (
    FIRST_VERSION,
    VARIABLE,
    AnyModelConfig,
    EnsembleConfig,
    EnsembleStep,
    Instances,
    StageModelConfig,
    TensorConfig,
)
from autovoice_export.config_types import MAX_INPUT_BYTES as DEFAULT_MAX_INPUT_BYTES
from autovoice_export.rvc.geometry import FRAME, GRID, SOURCE_RATE
from autovoice_export.rvc.pitch import YinPitch
from autovoice_export.rvc.source_audio import HighPass, MixLoudness, PadToGrid, SpareSettings, TrimToSource
from autovoice_export.stage import Axis, Stage, StageTensor

MAX_BATCH_SIZE = 4
MAX_INPUT_BYTES = 4 << 20
"""Any one input of audio: 65 s; what is longer goes in windows, as the clients do.

Attention needs memory with the square of the length, 2.1 GB for the scores of one layer of the content
encoder in the largest batch, and a TensorRT plan reserves what that needs.
"""

WINDOW_SUFFIX = "_window"
CONTENT_MODELS = {"v1": "contentvec_v1", "v2": "contentvec"}
PITCH_MODELS = {"yin": "rvc_pitch_yin", "rmvpe": "rmvpe"}

CONTEXT_LEFT_SAMPLES = 100 * GRID
CONTEXT_RIGHT_SAMPLES = 50 * GRID
"""What a window gets around its core: 2 s and 1 s.

Attention and the normalisation over time see all they are given, so the difference to the uncut recording
falls with the context but not to nothing: ``benchmarks/rvc.py`` prints the curve. The loudness needs 1 s.
"""

_WARMUP_SIZES = {"T": SOURCE_RATE // 2, "G": SOURCE_RATE // 2 // GRID, "P": SOURCE_RATE // 2 // GRID}

_STEPS = Axis("G")
_FRAMES = Axis("G", 2)
_AUDIO = StageTensor("AUDIO", (Axis("G", GRID),))
_SOURCE_AUDIO = StageTensor("SOURCE_AUDIO", (Axis("T"),))
_F0 = StageTensor("F0", (_FRAMES,))
_FIRST_FRAME = StageTensor("FIRST_FRAME", (1,), "INT64")
_ANCHOR_FRAME = StageTensor("ANCHOR_FRAME", (1,), "INT64")
_ANCHOR_PHASE = StageTensor("ANCHOR_PHASE", (1,))
_SPEAKER_ID = StageTensor("SPEAKER_ID", (1,), "INT64")
_PITCH_SHIFT = StageTensor("PITCH_SHIFT", (1,))
_INDEX_RATE = StageTensor("INDEX_RATE", (1,))
_PROTECT = StageTensor("PROTECT", (1,))
_RMS_MIX = StageTensor("RMS_MIX", (1,))
_SETTINGS = (_SPEAKER_ID, _PITCH_SHIFT, _INDEX_RATE, _PROTECT, _RMS_MIX)
_PLACE = (_FIRST_FRAME, _ANCHOR_FRAME, _ANCHOR_PHASE)


@dataclass(frozen=True)
class VoiceModels:
    """Names of the models of one voice.

    Attributes:
        name: of the voice and its ensemble for whole recordings.
        content: content encoder, shared.
        pitch: pitch tracker, shared; None for a voice without pitch.
        has_index: whether the voice has a retrieval model.
        sample_rate: of the voice, Hz.
    """

    name: str
    content: str
    pitch: str | None
    has_index: bool
    sample_rate: int

    @property
    def window(self) -> str:
        """The ensemble for windows."""
        return self.name + WINDOW_SUFFIX

    @property
    def synthesizer(self) -> str:
        """The model with the voice's own weights."""
        return f"{self.name}_synthesizer"

    @property
    def retrieval(self) -> str:
        """The model with the voice's index."""
        return f"{self.name}_retrieval"

    @property
    def loudness(self) -> str:
        """Shared by the voices of one rate."""
        return f"rvc_loudness_{self.sample_rate}"

    @property
    def trim(self) -> str:
        """Shared by the voices of one rate."""
        return f"rvc_trim_{self.sample_rate}"

    @property
    def possible(self) -> tuple[str, ...]:
        """Every model that only a voice of this name has."""
        return self.name, self.window, self.synthesizer, self.retrieval


def shared_stages(models: VoiceModels) -> tuple[Stage, ...]:
    """The stages without weights, which all voices (of one rate) share."""
    hop = models.sample_rate * FRAME // SOURCE_RATE
    made = StageTensor("AUDIO", (Axis("G", 2 * hop),))
    padded = StageTensor("PADDED_AUDIO", (Axis("P", GRID),))
    stages = [
        Stage("rvc_pad", PadToGrid().eval(), (_SOURCE_AUDIO,), (padded, _FIRST_FRAME, _ANCHOR_PHASE)),
        Stage(
            "rvc_high_pass",
            HighPass().eval(),
            (StageTensor("SOURCE_AUDIO", (Axis("G", GRID),)),),
            (_AUDIO,),
        ),
        Stage(
            models.loudness,
            MixLoudness(hop).eval(),
            (made, StageTensor("SOURCE", (Axis("G", GRID),)), _RMS_MIX, _FIRST_FRAME),
            (StageTensor("MIXED_AUDIO", (Axis("G", 2 * hop),)),),
        ),
        Stage(
            models.trim,
            TrimToSource(models.sample_rate).eval(),
            (StageTensor("MIXED_AUDIO", (Axis("P", 2 * hop),)), _SOURCE_AUDIO),
            (StageTensor("CONVERTED_AUDIO", (Axis("C"),)),),
        ),
    ]
    if not (models.pitch and models.has_index):
        inputs = (_AUDIO, _INDEX_RATE, _PROTECT, _PITCH_SHIFT, _ANCHOR_FRAME, _ANCHOR_PHASE)
        passed = StageTensor("PASSED_AUDIO", (Axis("G", GRID),))
        stages.insert(2, Stage("rvc_spare_settings", SpareSettings().eval(), inputs, (passed,)))
    if models.pitch == PITCH_MODELS["yin"]:
        stages.insert(2, pitch_stage(models.pitch, YinPitch().eval()))
    return tuple(stages)


def pitch_stage(name: str, module: nn.Module) -> Stage:
    """A pitch tracker, which hands on the audio.

    No two steps of an ensemble become ready at once: Triton up to 2.51 at least crashes when it refuses the
    first of two such steps.
    """
    return Stage(name, module, (_AUDIO,), (_F0, StageTensor("PASSED_AUDIO", (Axis("G", GRID),))))


def content_stage(name: str, module: nn.Module, size: int) -> Stage:
    """A content encoder."""
    return Stage(name, module, (_AUDIO,), (StageTensor("CONTENT", (_STEPS, size)),))


def retrieval_stage(models: VoiceModels, module: nn.Module, size: int) -> Stage:
    """The retrieval of a voice."""
    content = StageTensor("CONTENT", (_STEPS, size))
    return Stage(
        models.retrieval, module, (content, _INDEX_RATE), (StageTensor("RETRIEVED", (_STEPS, size)),)
    )


def synthesizer_stage(models: VoiceModels, module: nn.Module, size: int) -> Stage:
    """The synthesizer of a voice: `PlainVoice`, `PitchedVoice` or, with pitch and index, `IndexedVoice`."""
    inputs = [StageTensor("CONTENT", (_STEPS, size))]
    if models.pitch and models.has_index:
        inputs += [StageTensor("RETRIEVED", (_STEPS, size)), _PROTECT]
    if models.pitch:
        inputs += [_F0, _PITCH_SHIFT, _ANCHOR_FRAME, _ANCHOR_PHASE]
    inputs += [_SPEAKER_ID, _FIRST_FRAME]
    hop = models.sample_rate * FRAME // SOURCE_RATE
    outputs = (
        StageTensor("AUDIO", (Axis("G", 2 * hop),)),
        # Not F0, which is what it was measured to be.
        StageTensor("SOURCE_F0", (_FRAMES,)),
    )
    return Stage(models.synthesizer, module, tuple(inputs), outputs)


def model_config(
    stage: Stage, instances: Instances, parameters: Mapping[str, str], version: int = FIRST_VERSION
) -> StageModelConfig:
    """Config of a stage."""
    # What has no weights gains nothing on the GPU.
    small = stage.name.startswith(("rvc_pad", "rvc_high_pass", "rvc_spare", "rvc_loudness", "rvc_trim"))
    where = Instances("cpu", instances.count, instances.intra_op_threads) if small else instances
    takes_source = any(tensor.name == "SOURCE_AUDIO" for tensor in stage.inputs)
    return StageModelConfig(
        stage.name,
        tuple(tensor.config() for tensor in stage.inputs),
        tuple(tensor.config() for tensor in stage.outputs),
        MAX_BATCH_SIZE,
        instances=where,
        warmup={tensor.name: tensor.shape(1, _WARMUP_SIZES)[1:] for tensor in stage.inputs},
        parameters=parameters,
        version=version,
        max_input_bytes=MAX_INPUT_BYTES if takes_source else DEFAULT_MAX_INPUT_BYTES,
    )


def ensembles(
    models: VoiceModels, parameters: Mapping[str, str], version: int = FIRST_VERSION
) -> tuple[AnyModelConfig, ...]:
    """The two ensembles of a voice: whole recordings, and windows of longer ones.

    Args:
        models: their names.
        parameters: what the ensembles tell their clients.
        version: of the voice's own models; those that voices share have the first.
    """
    source = TensorConfig("SOURCE_AUDIO", (VARIABLE,))
    converted = TensorConfig("CONVERTED_AUDIO", (VARIABLE,))
    settings = tuple(tensor.config() for tensor in _SETTINGS)
    place = tuple(tensor.config() for tensor in _PLACE)
    pad = EnsembleStep("rvc_pad", _same("SOURCE_AUDIO"), _same("PADDED_AUDIO", "FIRST_FRAME", "ANCHOR_PHASE"))
    trim = EnsembleStep(models.trim, _same("MIXED_AUDIO", "SOURCE_AUDIO"), _same("CONVERTED_AUDIO"))
    # Triton refuses ensembles with a tensor that nothing reads: only windows tell their F0.
    whole = _steps(models, "PADDED_AUDIO", "FIRST_FRAME", {"AUDIO": "SYNTHESISED_AUDIO"}, "MIXED_AUDIO")
    made = {"AUDIO": "SYNTHESISED_AUDIO", "SOURCE_F0": "F0"}
    window = _steps(models, "SOURCE_AUDIO", "ANCHOR_FRAME", made, "CONVERTED_AUDIO")

    def ensemble(
        name: str,
        inputs: tuple[TensorConfig, ...],
        outputs: tuple[TensorConfig, ...],
        steps: tuple[EnsembleStep, ...],
    ) -> EnsembleConfig:
        pinned = tuple(
            replace(step, version=version) if step.model in models.possible else step for step in steps
        )
        return EnsembleConfig(name, inputs, outputs, pinned, MAX_BATCH_SIZE, parameters, version)

    return (
        ensemble(models.name, (source, *settings), (converted,), (pad, *whole, trim)),
        ensemble(models.window, (source, *settings, *place), (converted, _F0.config()), window),
    )


def _steps(
    models: VoiceModels, source: str, anchor: str, made: Mapping[str, str], result: str
) -> tuple[EnsembleStep, ...]:
    """The steps on the grid, one after the other."""
    steps = [EnsembleStep("rvc_high_pass", {"SOURCE_AUDIO": source}, {"AUDIO": "FILTERED_AUDIO"})]
    heard, content = "FILTERED_AUDIO", "CONTENT"
    if not (models.pitch and models.has_index):
        spare = _same("INDEX_RATE", "PROTECT", "PITCH_SHIFT", "ANCHOR_PHASE")
        inputs = {"AUDIO": heard, "ANCHOR_FRAME": anchor, **spare}
        heard = "CHECKED_AUDIO"
        steps.append(EnsembleStep("rvc_spare_settings", inputs, {"PASSED_AUDIO": heard}))
    place = {"SPEAKER_ID": "SPEAKER_ID", "FIRST_FRAME": "FIRST_FRAME"}
    if models.pitch:
        steps.append(
            EnsembleStep(models.pitch, {"AUDIO": heard}, {"F0": "MEASURED_F0", **_same("PASSED_AUDIO")})
        )
        heard = "PASSED_AUDIO"
        place |= {"F0": "MEASURED_F0", **_same("PITCH_SHIFT", "ANCHOR_PHASE"), "ANCHOR_FRAME": anchor}
    steps.append(EnsembleStep(models.content, {"AUDIO": heard}, _same("CONTENT")))
    if models.has_index:
        steps.append(EnsembleStep(models.retrieval, _same("CONTENT", "INDEX_RATE"), _same("RETRIEVED")))
        if models.pitch:
            place |= _same("RETRIEVED", "PROTECT")
        else:
            content = "RETRIEVED"
    steps.append(EnsembleStep(models.synthesizer, {"CONTENT": content, **place}, made))
    steps.append(
        EnsembleStep(
            models.loudness,
            {"AUDIO": "SYNTHESISED_AUDIO", "SOURCE": "FILTERED_AUDIO", **_same("RMS_MIX", "FIRST_FRAME")},
            {"MIXED_AUDIO": result},
        )
    )
    return tuple(steps)


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}
