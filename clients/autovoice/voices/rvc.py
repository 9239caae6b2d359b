"""Voices imported from RVC checkpoints: one voice each, by networks that hear ahead and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from autovoice.audio.source import Source
from autovoice.config import PipelineConfig
from autovoice.engines.engine import Engine
from autovoice.errors import ConfigurationError, EmbeddingError, PitchError, RepositoryError
from autovoice.repository.model_config import ModelSpec
from autovoice.results import FloatArray
from autovoice.settings import RvcSettings
from autovoice.voices.rvc_stream import WindowedStream, Windows
from autovoice.voices.voice import (
    AUTO,
    FRAMES_PER_SECOND,
    PLACE_INPUTS,
    Live,
    Target,
    Voice,
    VoiceRequest,
    check_shift,
)

RVC = "rvc"
WINDOW_SUFFIX = "_window"
DEFAULT_CORE_SECONDS = 0.24
UNPROTECTED = 0.5


@dataclass(frozen=True)
class RvcVoice(Voice):
    """A voice from an RVC checkpoint; see `Voice`.

    Attributes:
        windows: how its source is cut, and which ensemble converts a piece of it.
        speakers: how many the checkpoint holds.
        has_f0: whether it follows a pitch.
        has_index: whether content can be taken from an index.
        version: of the checkpoint, `"v1"` or `"v2"`.
        defaults: settings of the voice, none of them None.
    """

    takes_embedding: ClassVar[bool] = False
    bounded: ClassVar[bool] = True

    windows: Windows
    speakers: int
    has_f0: bool
    has_index: bool
    version: str
    defaults: RvcSettings

    def level_share(self, target: Target) -> float:
        """See `Voice.level_share`: with RMS mixing at 1, the result has the voice's own level."""
        return 1.0 - float(target.tensors["RMS_MIX"][0, 0])

    def check_settings(self, settings: RvcSettings | None) -> None:
        """See `Voice.check_settings`; the ranges that all voices share have been checked."""
        if settings is None:
            return
        if not isinstance(settings, RvcSettings):
            raise ConfigurationError(f"voice_settings is {settings!r}; give RvcSettings or None")
        if settings.speaker is not None and settings.speaker >= self.speakers:
            raise ConfigurationError(
                f"speaker is {settings.speaker}, but voice {self.name!r} has {self.speakers}; give a number "
                f"from 0 to {self.speakers - 1}"
            )
        if settings.index_rate and not self.has_index:
            raise ConfigurationError(
                f"index_rate is {settings.index_rate:g}, but voice {self.name!r} has no index; give 0 or "
                "import the voice with its index"
            )
        if settings.protect is not None and settings.protect < UNPROTECTED and not self.has_f0:
            raise ConfigurationError(
                f"protect is {settings.protect:g}, but voice {self.name!r} was trained without pitch, which "
                f"tells what to protect; give {UNPROTECTED:g}"
            )

    def check_shift(self, shift: Any, *, live: bool = False) -> float:
        """See `Voice.check_shift`."""
        semitones = check_shift(shift)
        if semitones is None:
            raise PitchError(
                f"pitch shift {AUTO!r} needs the median pitch of the target, which voice {self.name!r} does "
                "not state; give semitones, such as 12 for a voice an octave higher"
            )
        if semitones and not self.has_f0:
            raise PitchError(
                f"pitch shift is {shift!r}, but voice {self.name!r} was trained without pitch; give 0"
            )
        return semitones

    def target(self, request: VoiceRequest, source: Source | None, config: PipelineConfig) -> Target:
        """See `Voice.target`."""
        if request.target_embedding is not None:
            raise EmbeddingError(
                f"voice {self.name!r} is one of its own and takes no target embedding; leave it out, or use "
                "the base voice (voice=None)"
            )
        if request.source_f0 is not None:
            raise PitchError(
                f"voice {self.name!r} follows the pitch of its source; leave source_f0 out and shift it by "
                "pitch_shift_semitones"
            )
        shift = self.check_shift(request.pitch_shift_semitones)
        settings = config.voice_settings or RvcSettings()
        if request.voice_settings is not None:
            self.check_settings(request.voice_settings)
            settings = request.voice_settings.over(settings)
        return self._target(shift, settings.over(self.defaults))

    def neutral_target(self) -> Target:
        """See `Voice.neutral_target`."""
        return self._target(0.0, self.defaults)

    def resolve(self, engine: Engine, target: Target, source: Source, block: int) -> Target:
        """See `Voice.resolve`; such a voice leaves nothing open."""
        return target

    def open_stream(
        self, engine: Engine, target: Target, *, block_seconds: float, live: Live | None = None
    ) -> WindowedStream:
        """See `Voice.open_stream`."""
        if live is None:
            core = self._whole(block_seconds, self.windows.grid_samples)
            return WindowedStream(engine, self, self.windows, target, core=core, live=False)
        seconds = DEFAULT_CORE_SECONDS if live.core_seconds is None else live.core_seconds
        core = self._whole(min(seconds, block_seconds), self.windows.grid_samples)
        return WindowedStream(
            engine, self, self.windows, target, core=core, live=True, passthrough=live.passthrough
        )

    def offline_model(self, target: Target) -> str:
        """See `Voice.offline_model`."""
        return self.name

    def offline_inputs(self, target: Target, audio: FloatArray) -> dict[str, npt.NDArray[Any]]:
        """See `Voice.offline_inputs`."""
        return target.inputs(audio)

    def may_share(self, samples: int, longest: int) -> bool:
        """See `Voice.may_share`: only padding that the model itself would add changes nothing."""
        return -(-samples // self.windows.grid_samples) == -(-longest // self.windows.grid_samples)

    def _target(self, shift: float, settings: RvcSettings) -> Target:
        values = {"INDEX_RATE": settings.index_rate, "PROTECT": settings.protect, "RMS_MIX": settings.rms_mix}
        tensors: dict[str, npt.NDArray[Any]] = {
            name: np.full((1, 1), value, np.float32) for name, value in values.items()
        }
        tensors["SPEAKER_ID"] = np.full((1, 1), settings.speaker, np.int64)
        return Target(tensors, shift)


def read_rvc_voice(spec: ModelSpec) -> RvcVoice:
    """Read a voice from its ensemble's config.

    Raises:
        RepositoryError: when a parameter is missing or makes no sense.
    """
    sample_rate = spec.integer_parameter("sample_rate")
    output_sample_rate = spec.integer_parameter("output_sample_rate")
    grid = spec.integer_parameter("frame_samples")
    contexts = {name: _number(spec, name, int) for name in ("context_left_samples", "context_right_samples")}
    frame = sample_rate // FRAMES_PER_SECOND
    fits = not (grid % frame or grid * output_sample_rate % sample_rate)
    if not fits or any(context < 0 or context % grid for context in contexts.values()):
        raise RepositoryError(
            f"model {spec.name} has frame_samples = {grid}, which frames of {frame} samples, its contexts "
            f"{list(contexts.values())} and {output_sample_rate} Hz do not fit; import the voice again"
        )
    try:
        defaults = RvcSettings(
            speaker=_number(spec, "default_speaker", int),
            index_rate=_number(spec, "default_index_rate", float),
            protect=_number(spec, "default_protect", float),
            rms_mix=_number(spec, "default_rms_mix", float),
        )
    except ConfigurationError as error:
        raise RepositoryError(f"model {spec.name} has a default that makes no sense: {error}") from error
    return RvcVoice(
        family=RVC,
        name=spec.name,
        sample_rate=sample_rate,
        output_sample_rate=output_sample_rate,
        frame_samples=frame,
        max_batch_size=max(spec.max_batch_size, 1),
        windows=Windows(spec.name + WINDOW_SUFFIX, grid, **contexts),
        speakers=spec.integer_parameter("speakers"),
        has_f0=spec.parameters.get("has_f0") == "1",
        has_index=spec.parameters.get("has_index") == "1",
        version=spec.parameters.get("version", ""),
        defaults=defaults,
    )


def check_ensembles(whole: ModelSpec, window: ModelSpec, voice: RvcVoice) -> None:
    """Hold both ensembles of a voice against what will be sent to them and read from them.

    Raises:
        RepositoryError: naming the first tensor that is missing or unknown.
    """
    inputs = set(voice.neutral_target().inputs(np.zeros(0, np.float32)))
    outputs = {"CONVERTED_AUDIO"}
    for spec, taken, given in (
        (whole, inputs, outputs),
        (window, inputs | PLACE_INPUTS, outputs | {"F0"} if voice.has_f0 else outputs),
    ):
        if odd := sorted(taken ^ {tensor.name for tensor in spec.inputs}):
            raise RepositoryError(
                f"model {spec.name} and what a voice is sent differ in {odd[0]}; import the voice again"
            )
        if missing := sorted(given - {tensor.name for tensor in spec.outputs}):
            raise RepositoryError(f"model {spec.name} has no output {missing[0]}; import the voice again")


def _number(spec: ModelSpec, name: str, kind: type[Any]) -> Any:
    text = spec.parameters.get(name, "")
    try:
        return kind(text)
    except ValueError:
        raise RepositoryError(
            f"model {spec.name} has parameter {name} = {text!r} where a number belongs; import the voice "
            "again"
        ) from None
