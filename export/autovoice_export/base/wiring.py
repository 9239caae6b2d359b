"""The base family: which stages it has, how they are wired, and what its model configs say."""

from __future__ import annotations

from dataclasses import replace

from autovoice_export.base.checkpoint import Checkpoint
from autovoice_export.base.stages.alignment import PadSource, PadSourceWithF0, PassAudio, TrimOutput
from autovoice_export.base.stages.timing import LOOKAHEAD
from autovoice_export.base.stages.voice import IDENTITY_SIZE, TOKENS, VOICE_SIZE
from autovoice_export.base.stages.voice_encoder import VoiceEncoder
from autovoice_export.config_types import (
    VARIABLE,
    AnyModelConfig,
    EnsembleConfig,
    EnsembleStep,
    Instances,
    SequenceBatching,
    StageModelConfig,
    StateConfig,
    TensorConfig,
)
from autovoice_export.onnx.composition import Composition, State
from autovoice_export.stage import STATE_INPUT, STATE_OUTPUT, Axis, Stage, StageTensor
from autovoice_plugins.geometry import HOP, SAMPLE_RATE

MAX_BATCH_SIZE = 16
STREAM_SUFFIX = "_stream"
CONVERTER = "converter" + STREAM_SUFFIX

_FRAMES = Axis("F")
_BLOCKS = Axis("F", HOP)
_SAMPLES = Axis("T")
_PADDED_BLOCKS = Axis("P", HOP)

_AUDIO = StageTensor("AUDIO", (_BLOCKS,))
_LOUDNESS = StageTensor("LOUDNESS", (_FRAMES,))
_F0 = StageTensor("F0", (_FRAMES,))
_PERIODICITY = StageTensor("PERIODICITY", (_FRAMES,))
_EMBEDDING = StageTensor("EMBEDDING", (VOICE_SIZE,))
_PITCH_SHIFT = StageTensor("PITCH_SHIFT", (1,))
_SOURCE_AUDIO = StageTensor("SOURCE_AUDIO", (_SAMPLES,))
_SOURCE_BLOCKS = StageTensor("SOURCE_AUDIO", (_BLOCKS,))
_SOURCE_F0 = StageTensor("SOURCE_F0", (_FRAMES,))
_PASSED_AUDIO = StageTensor("PASSED_AUDIO", (_BLOCKS,))
_PADDED_AUDIO = StageTensor("AUDIO", (_PADDED_BLOCKS,))

_STATES = {
    "pitch_extractor": "PITCH_STATE",
    "content_encoder": "CONTENT_STATE",
    "synthesizer": "SYNTHESIZER_STATE",
}
"""The state of a stage where it is beside those of others."""

# One second of audio: samples, frames, and frames after padding.
_WARMUP_SIZES = {"T": SAMPLE_RATE, "F": SAMPLE_RATE // HOP, "P": -(-(SAMPLE_RATE + LOOKAHEAD) // HOP)}

PARAMETERS = {
    "family": "base",
    "sample_rate": str(SAMPLE_RATE),
    "frame_samples": str(HOP),
    "lookahead_samples": str(LOOKAHEAD),
    "embedding_size": str(VOICE_SIZE),
    "identity_size": str(IDENTITY_SIZE),
    "embedding_frames": str(TOKENS),
}
"""What every ensemble tells its clients."""


def stages(checkpoint: Checkpoint) -> tuple[Stage, ...]:
    """The stages of the base family around the weights of a checkpoint."""
    content_encoder, synthesizer = checkpoint.content_encoder, checkpoint.synthesizer
    pitch_extractor = checkpoint.pitch_extractor
    content = StageTensor("CONTENT", (_FRAMES, content_encoder.config.width))
    sizes = content_encoder.state_size, pitch_extractor.state_size, synthesizer.state_size
    padded = (
        _PADDED_AUDIO,
        StageTensor("CONTENT_STATE", (sizes[0],)),
        StageTensor("PITCH_STATE", (sizes[1],)),
        StageTensor("SYNTHESIZER_STATE", (sizes[2],)),
    )
    return (
        Stage(
            "speaker_encoder",
            VoiceEncoder(checkpoint.reference_encoder).eval(),
            (StageTensor("REFERENCE_AUDIO", (_SAMPLES,)),),
            (_EMBEDDING,),
        ),
        Stage("target_pitch", checkpoint.target_pitch, (_EMBEDDING,), (StageTensor("MEDIAN_F0", (1,)),)),
        Stage("pad_source", PadSource(*sizes).eval(), (_SOURCE_AUDIO,), padded),
        Stage(
            "pad_source_with_f0",
            PadSourceWithF0(*sizes).eval(),
            (_SOURCE_AUDIO, _SOURCE_F0),
            (*padded, StageTensor("F0", (Axis("P"),))),
        ),
        Stage(
            "content_encoder",
            content_encoder,
            (_AUDIO, _state(sizes[0])),
            (content, _LOUDNESS, _next_state(sizes[0])),
            runs_in_float64=True,
        ),
        Stage(
            "pitch_extractor",
            PassAudio(pitch_extractor).eval(),
            (_AUDIO, _state(sizes[1])),
            (_F0, _PERIODICITY, _next_state(sizes[1]), _PASSED_AUDIO),
            runs_in_float64=True,
        ),
        Stage(
            "synthesizer",
            synthesizer,
            (content, _LOUDNESS, _F0, _PERIODICITY, _EMBEDDING, _PITCH_SHIFT, _state(sizes[2])),
            (_AUDIO, _next_state(sizes[2])),
        ),
        Stage(
            "trim_output",
            TrimOutput().eval(),
            (_PADDED_AUDIO, _SOURCE_AUDIO),
            (StageTensor("CONVERTED_AUDIO", (_SAMPLES,)),),
        ),
    )


def _state(size: int) -> StageTensor:
    return StageTensor(STATE_INPUT, (size,))


def _next_state(size: int) -> StageTensor:
    return StageTensor(STATE_OUTPUT, (size,))


def converter(family: tuple[Stage, ...]) -> Composition:
    """What a live stream runs: pitch extractor, content encoder and synthesizer in one model.

    A chunk of 20 ms is little work, and on a server every call of a model has its cost:
    `benchmarks/triton.py` shows what one costs instead of three.
    """
    sizes = {stage.name: stage.state_size for stage in family}
    states = {
        model: State(StageTensor(f"{name}_IN", (sizes[model],)), StageTensor(f"{name}_OUT", (sizes[model],)))
        for model, name in _STATES.items()
    }
    return Composition(
        CONVERTER,
        (_SOURCE_BLOCKS, StageTensor("TARGET_EMBEDDING", (VOICE_SIZE,)), _PITCH_SHIFT),
        (StageTensor("CONVERTED_AUDIO", (_BLOCKS,)),),
        tuple(states.values()),
        tuple(
            EnsembleStep(
                step.model,
                {**step.inputs, STATE_INPUT: states[step.model].input.name},
                {**step.outputs, STATE_OUTPUT: states[step.model].output.name},
            )
            for step in _feature_steps("", "SOURCE_AUDIO", "F0", measure_f0=True)
        ),
    )


def model_configs(family: tuple[Stage, ...], instances: Instances) -> tuple[AnyModelConfig, ...]:
    """Configs of all stages, of the stream variants of those with state, and of the ensembles."""
    configs: list[AnyModelConfig] = []
    for stage in family:
        # Padding, trimming and one dot product gain nothing on the GPU.
        small = stage.name in {"target_pitch", "pad_source", "pad_source_with_f0", "trim_output"}
        where = Instances("cpu", instances.count, instances.intra_op_threads) if small else instances
        inputs = tuple(tensor.config() for tensor in stage.inputs)
        outputs = tuple(tensor.config() for tensor in stage.outputs)
        warmup = {tensor.name: tensor.shape(1, _WARMUP_SIZES)[1:] for tensor in stage.inputs}
        configs.append(
            StageModelConfig(stage.name, inputs, outputs, MAX_BATCH_SIZE, instances=where, warmup=warmup)
        )
        if stage.state_size:
            configs.append(
                StageModelConfig(
                    stage.name + STREAM_SUFFIX,
                    tuple(tensor for tensor in inputs if tensor.name != STATE_INPUT),
                    tuple(tensor for tensor in outputs if tensor.name != STATE_OUTPUT),
                    MAX_BATCH_SIZE,
                    batching=SequenceBatching((StateConfig(STATE_INPUT, STATE_OUTPUT, stage.state_size),)),
                    instances=where,
                )
            )
    return (*configs, converter(family).config(MAX_BATCH_SIZE, instances), *_ensembles())


def stream_of_stages() -> EnsembleConfig:
    """The stream ensemble stage by stage, for servers that run each as a TensorRT engine of its own."""
    (stream,) = (ensemble for ensemble in _ensembles() if ensemble.name == "voice_conversion_stream")
    return replace(stream, steps=_feature_steps(STREAM_SUFFIX, "SOURCE_AUDIO", "F0", measure_f0=True))


def _ensembles() -> tuple[EnsembleConfig, ...]:
    audio = TensorConfig("SOURCE_AUDIO", (VARIABLE,))
    f0 = TensorConfig("SOURCE_F0", (VARIABLE,))
    voice = (TensorConfig("TARGET_EMBEDDING", (VOICE_SIZE,)), TensorConfig("PITCH_SHIFT", (1,)))
    converted = (TensorConfig("CONVERTED_AUDIO", (VARIABLE,)),)

    def ensemble(
        name: str, inputs: tuple[TensorConfig, ...], steps: tuple[EnsembleStep, ...]
    ) -> EnsembleConfig:
        return EnsembleConfig(name, inputs, converted, steps, MAX_BATCH_SIZE, PARAMETERS)

    return (
        ensemble("voice_conversion", (audio, *voice), _offline_steps(with_f0=False)),
        ensemble("voice_conversion_with_f0", (audio, f0, *voice), _offline_steps(with_f0=True)),
        ensemble("voice_conversion_stream", (audio, *voice), _stream_steps(with_f0=False)),
        ensemble("voice_conversion_with_f0_stream", (audio, f0, *voice), _stream_steps(with_f0=True)),
    )


def _offline_steps(*, with_f0: bool) -> tuple[EnsembleStep, ...]:
    """Pad, run the stages from zero states, trim."""
    source = _same("SOURCE_AUDIO", "SOURCE_F0") if with_f0 else _same("SOURCE_AUDIO")
    padded = {"AUDIO": "PADDED_AUDIO", **_same("CONTENT_STATE", "PITCH_STATE", "SYNTHESIZER_STATE")}
    pad = (
        EnsembleStep("pad_source_with_f0", source, {**padded, "F0": "F0"})
        if with_f0
        else EnsembleStep("pad_source", source, padded)
    )
    pitch, content, synthesizer = _feature_steps("", "PADDED_AUDIO", "F0", measure_f0=not with_f0)
    return (
        pad,
        EnsembleStep(pitch.model, {**pitch.inputs, STATE_INPUT: _STATES[pitch.model]}, pitch.outputs),
        EnsembleStep(content.model, {**content.inputs, STATE_INPUT: _STATES[content.model]}, content.outputs),
        EnsembleStep(
            synthesizer.model,
            {**synthesizer.inputs, STATE_INPUT: _STATES[synthesizer.model]},
            {"AUDIO": "SYNTHESIZED_AUDIO"},
        ),
        EnsembleStep(
            "trim_output", {"AUDIO": "SYNTHESIZED_AUDIO", **_same("SOURCE_AUDIO")}, _same("CONVERTED_AUDIO")
        ),
    )


def _stream_steps(*, with_f0: bool) -> tuple[EnsembleStep, ...]:
    """The stages alone: the server keeps their states, and the caller gets audio that is late."""
    if with_f0:
        return _feature_steps(STREAM_SUFFIX, "SOURCE_AUDIO", "SOURCE_F0", measure_f0=False)
    inputs, outputs = _same("SOURCE_AUDIO", "TARGET_EMBEDDING", "PITCH_SHIFT"), _same("CONVERTED_AUDIO")
    return (EnsembleStep(CONVERTER, inputs, outputs),)


def _feature_steps(suffix: str, audio: str, f0: str, *, measure_f0: bool) -> tuple[EnsembleStep, ...]:
    measured = _same("PERIODICITY", "PASSED_AUDIO") | ({"F0": f0} if measure_f0 else {})
    return (
        EnsembleStep("pitch_extractor" + suffix, {"AUDIO": audio}, measured),
        # Not the audio itself: one step at a time, see PassAudio.
        EnsembleStep("content_encoder" + suffix, {"AUDIO": "PASSED_AUDIO"}, _same("CONTENT", "LOUDNESS")),
        EnsembleStep(
            "synthesizer" + suffix,
            {
                **_same("CONTENT", "LOUDNESS", "PERIODICITY", "PITCH_SHIFT"),
                "F0": f0,
                "EMBEDDING": "TARGET_EMBEDDING",
            },
            {"AUDIO": "CONVERTED_AUDIO"},
        ),
    )


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}
