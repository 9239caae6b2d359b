"""Conversion by a voice that is not causal: windows of a core and the context around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autovoice.audio.samples import Resampler
from autovoice.engines.engine import Engine
from autovoice.errors import InferenceError, RepositoryError
from autovoice.results import FloatArray
from autovoice.voices.voice import Target, Voice, VoiceStream, fit_length, join

PHASE_GRID = 1 << 24  # the source's phase advances in whole parts of a cycle, which every precision can hold


@dataclass(frozen=True)
class Windows:
    """How a source is cut for a voice whose models need context on both sides.

    Attributes:
        model: the ensemble that converts a window.
        grid_samples: windows begin and end on multiples of it in the source.
        context_left_samples: how much a window needs to hear before its core, a multiple of the grid.
        context_right_samples: likewise after it.
    """

    model: str
    grid_samples: int
    context_left_samples: int
    context_right_samples: int


class WindowedStream(VoiceStream):
    """Converts audio core by core, each with the context around it; only the core of the result is kept.

    Nothing of a source is held by the engine: what joins one core to the next, the phase of the source signal
    and the place in its noise, goes along with every request. So a window may be sent again, or to another
    engine, at any time. Windows end where the source does, so that the models see its ends as they do in a
    whole source.

    Args:
        engine: runs the models.
        voice: the voice's constants.
        target: what to convert to.
        core: samples of each window that are kept, a multiple of the grid.
        live: always convert in windows; otherwise a source that is no longer than one is sent in one piece.
        passthrough: return the source unconverted from the first failed request on.
    """

    def __init__(
        self,
        engine: Engine,
        voice: Voice,
        windows: Windows,
        target: Target,
        *,
        core: int,
        live: bool,
        passthrough: bool = False,
    ) -> None:
        super().__init__(passthrough=passthrough)
        self._engine = engine
        self._voice = voice
        self._windows = windows
        self._target = target
        self._core = core
        self._live = live
        self._audio = np.zeros(0, np.float32)  # what is still needed of the source
        self._audio_start = 0  # where that begins in the source
        self._position = 0  # where the next core begins in the source, on the grid
        self._returned = 0
        self._phase = 0.0  # cycles, of the source signal at the next core's first sample
        self._bypass: Resampler | None = None

    @property
    def latency_seconds(self) -> float:
        """One core and the context after it."""
        return (self._core + self._windows.context_right_samples) / self._voice.sample_rate

    def push(self, audio: FloatArray) -> FloatArray:
        """Take the next samples [n], return the converted ones that are ready [m]."""
        self.received += audio.size
        self._audio = np.concatenate((self._audio, audio))
        ready: list[FloatArray] = []
        needed = self._core + self._windows.context_right_samples
        while not self.passthrough and self.received - self._position >= needed:
            ready.append(self._convert(self._core, self._position + needed))
        if self.passthrough:
            ready.append(self._unconverted())
        return self._count(join(ready))

    def flush(self) -> FloatArray:
        """End the source; return the rest, `voice.converted_samples(received)` in all."""
        if self.passthrough:
            rest = self._unconverted(last=True)
        elif self._position == self.received:
            rest = np.zeros(0, np.float32)
        elif not self._position and not self._live:
            rest = self._convert_at_once()
        else:
            rest = self._convert(self.received - self._position, self.received)
            if self.passthrough:
                rest = self._unconverted(last=True)
        return self._count(fit_length(rest, self._voice.converted_samples(self.received) - self._returned))

    def close(self) -> None:
        """Nothing to do: the engine holds nothing of the source."""

    def _convert_at_once(self) -> FloatArray:
        model = self._voice.offline_model(self._target)
        inputs = self._voice.offline_inputs(self._target, self._audio)
        return self._infer(model, inputs, self._voice.converted_samples(self._audio.size))["CONVERTED_AUDIO"]

    def _convert(self, core: int, stop: int) -> FloatArray:
        """Convert the next `core` samples with all context there is up to `stop`, and go on to the next."""
        voice, windows = self._voice, self._windows
        start = max(self._position - windows.context_left_samples, 0)
        window = self._audio[start - self._audio_start : stop - self._audio_start]
        window = fit_length(window, -(-window.size // windows.grid_samples) * windows.grid_samples)
        anchor = (self._position - start) // voice.frame_samples
        inputs = self._target.inputs(window) | {
            "FIRST_FRAME": np.full((1, 1), start // voice.frame_samples, np.int64),
            "ANCHOR_FRAME": np.full((1, 1), anchor, np.int64),
            "ANCHOR_PHASE": np.full((1, 1), self._phase, np.float32),
        }
        try:
            outputs = self._infer(windows.model, inputs, voice.converted_samples(window.size))
        except InferenceError as error:
            self._pass_through(error)
            return np.zeros(0, np.float32)
        first = voice.converted_samples(self._position - start)
        converted = outputs["CONVERTED_AUDIO"][first : first + voice.converted_samples(core)]
        if "F0" in outputs:
            self._phase = self._phase_after(outputs["F0"][anchor : anchor + core // voice.frame_samples])
        self._position += core
        kept = max(self._position - windows.context_left_samples, 0)
        self._audio = self._audio[kept - self._audio_start :]
        self._audio_start = kept
        return converted

    def _infer(
        self, model: str, inputs: dict[str, npt.NDArray[Any]], expected: int
    ) -> dict[str, npt.NDArray[Any]]:
        outputs = {name: values[0] for name, values in self._engine.infer(model, inputs).items()}
        if outputs["CONVERTED_AUDIO"].size != expected:
            raise RepositoryError(
                f"model {model} made {outputs['CONVERTED_AUDIO'].size} samples of "
                f"{inputs['SOURCE_AUDIO'].size} where {expected} belong; import the voice again"
            )
        return outputs

    def _phase_after(self, f0: FloatArray) -> float:
        """The phase where the frames of `f0` [F] end, by the rule of the models' own source signal."""
        cycles = f0.astype(np.float64) * (1 / self._voice.frames_per_second)
        # Sums of whole parts of a cycle are exact in float64.
        return float(np.mod(self._phase + (np.round(cycles * PHASE_GRID) / PHASE_GRID).sum(), 1.0))

    def _unconverted(self, *, last: bool = False) -> FloatArray:
        """The source from the first sample that was not converted, at the output's rate."""
        if self._bypass is None:
            self._bypass = Resampler(self._voice.sample_rate, self._voice.output_sample_rate)
        pending = self._audio[self._position - self._audio_start :]
        self._position = self._audio_start = self.received
        self._audio = np.zeros(0, np.float32)
        return self._bypass.push(pending, last=last)

    def _count(self, converted: FloatArray) -> FloatArray:
        self._returned += converted.size
        return converted
