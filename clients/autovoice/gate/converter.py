"""Conversions as a release makes them, without the mending that the pipeline does around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autovoice.audio.source import ArraySource
from autovoice.config import BASE_VOICE, PipelineConfig
from autovoice.engines.engine import Engine
from autovoice.results import FloatArray
from autovoice.voices.base import BaseVoice
from autovoice.voices.catalogue import open_voice
from autovoice.voices.embedding import embed_source
from autovoice.voices.voice import Live, Target, Voice, VoiceRequest, VoiceStream, fit_length

BLOCK_SECONDS = 10.0
LIVE_SECONDS = 0.24
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Converter:
    """One voice of a release over an engine.

    Attributes:
        engine: runs the models.
        voice: what converts.
        target: what it converts to.
    """

    engine: Engine
    voice: Voice
    target: Target

    def whole(self, audio: FloatArray, shift: float = 0.0) -> FloatArray:
        """Convert mono audio [T] at the voice's rate in one request; exactly what came back [M]."""
        return self.batch([audio], shift)[0]

    def batch(self, audios: Sequence[FloatArray], shift: float = 0.0) -> list[FloatArray]:
        """Convert several sources in one request, padded on the right; each result without the padding."""
        target = replace(self.target, shift_semitones=shift)
        longest = max(audio.size for audio in audios)
        rows = [self.voice.offline_inputs(target, fit_length(audio, longest)) for audio in audios]
        inputs = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        outputs = self.engine.infer(self.voice.offline_model(target), inputs, timeout=TIMEOUT_SECONDS)
        made = outputs["CONVERTED_AUDIO"]
        if len(audios) == 1:
            return [made[0]]
        return [
            row[: self.voice.converted_samples(audio.size)] for row, audio in zip(made, audios, strict=True)
        ]

    def live(self, audio: FloatArray) -> FloatArray:
        """Convert mono audio [T] at the voice's rate as a live stream does, piece by piece."""
        stream = self.open_live()
        try:
            made = [stream.push(piece) for piece in self.pieces(audio)]
            return np.concatenate([*made, stream.flush()])
        except BaseException:
            stream.close()
            raise

    def open_live(self) -> VoiceStream:
        """A live stream."""
        target = replace(self.target, shift_semitones=0.0)
        live = Live(LIVE_SECONDS)
        return self.voice.open_stream(self.engine, target, block_seconds=BLOCK_SECONDS, live=live)

    def pieces(self, audio: FloatArray) -> Iterator[FloatArray]:
        """Audio in the pieces that a live stream is given."""
        size = round(LIVE_SECONDS * self.voice.sample_rate)
        for start in range(0, audio.size, size):
            yield audio[start : start + size]


def open_converters(
    engine: Engine, voices: Sequence[str], reference: FloatArray, rate: int
) -> dict[str, Converter]:
    """Open voices of an engine.

    Args:
        engine: runs the models.
        voices: their names.
        reference: recording [T] of the target of the base voice.
        rate: of it, Hz.

    Raises:
        RepositoryError: a voice's config does not fit together.
        InferenceError: the engine failed.
    """
    found: dict[str, Converter] = {}
    for name in voices:
        voice = open_voice(engine, None if name == BASE_VOICE else name)
        if isinstance(voice, BaseVoice):
            found[name] = base_converter(engine, voice, reference, rate)
        else:
            found[name] = Converter(engine, voice, voice.neutral_target())
    return found


def base_converter(engine: Engine, voice: BaseVoice, reference: FloatArray, rate: int) -> Converter:
    """The base voice with the voice of a recording [T] as its target."""
    embedding = embed_source(engine, voice.clock, ArraySource(reference, rate), "the suite's target")
    return Converter(engine, voice, voice.target(VoiceRequest(embedding), None, PipelineConfig()))
