"""How much the benchmark of the server measures, and the audio it sends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from speech import FloatArray, looped
from workload import Bench

from autovoice.repository.reader import ModelRepository

OFFLINE = "voice_conversion"
STREAM = "voice_conversion_stream"
STREAM_WITH_F0 = "voice_conversion_with_f0_stream"
CHUNK_S = 0.020


@dataclass(frozen=True)
class TritonWorkload:
    """How much is measured.

    Attributes:
        ratio_lengths_s: sources converted in process and over the server in turns; 5 s has an aim.
        ratio_repeats: runs of each.
        shared_lengths_s: sources sent with and without shared memory, in turns.
        mix: requests in the file of mixed lengths.
        window_s: one of perf_analyzer's windows.
        concurrency: requests under way at any time.
        rates: requests a second, as shares of the highest throughput that `concurrency` reached.
        sequence_s: length of the sequences that perf_analyzer sends.
        sequences: of them under way at any time.
        live: streams at the pace of real time, until there are too many.
        live_s: length of these streams.
    """

    ratio_lengths_s: tuple[float, ...] = (1, 5, 10, 30)
    ratio_repeats: int = 15
    shared_lengths_s: tuple[float, ...] = (1, 5, 30)
    mix: int = 24
    window_s: float = 3.0
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16)
    rates: tuple[float, ...] = (0.3, 0.6, 0.8, 0.95)
    sequence_s: float = 4.0
    sequences: tuple[int, ...] = (1, 2, 4, 8, 16)
    live: tuple[int, ...] = (1, 2, 4, 8, 10, 12, 14, 16, 20, 24)
    live_s: float = 9.0


QUICK = TritonWorkload(
    ratio_lengths_s=(1,),
    ratio_repeats=2,
    shared_lengths_s=(1,),
    mix=3,
    window_s=1.0,
    concurrency=(2,),
    rates=(0.5,),
    sequence_s=0.5,
    sequences=(2,),
    live=(2,),
    live_s=2.0,
)


class TritonBench(Bench[TritonWorkload]):
    """What all measurements of the server share; see `Bench`."""

    def steps(self, ensemble: str) -> list[str]:
        """An ensemble and its stages, in their order."""
        models = ModelRepository(self.repository)
        return [ensemble, *(step.model for step in models.steps_in_order(models.spec(ensemble)))]

    @property
    def voice(self) -> Mapping[str, FloatArray]:
        """The inputs of an ensemble besides the audio, without the batch axis."""
        return {"TARGET_EMBEDDING": self.embedding, "PITCH_SHIFT": np.zeros(1, np.float32)}

    def stretch(self, seconds: float, start_s: float) -> FloatArray:
        """Speech of that length at the models' rate, from some point of the material on."""
        first = round(start_s * self.sample_rate)
        return looped(np.roll(self.speech, -first), round(seconds * self.sample_rate))

    def requests(self) -> list[Mapping[str, FloatArray]]:
        """Sources as long as utterances are: log-normal about 4 s, 1 to 15 s, each another stretch."""
        dice = np.random.default_rng(0)
        lengths = np.clip(dice.lognormal(np.log(4.0), 0.6, self.workload.mix), 1.0, 15.0)
        starts = dice.uniform(0.0, self.speech.size / self.sample_rate, self.workload.mix)
        return [
            {"SOURCE_AUDIO": self.stretch(length, start), **self.voice}
            for length, start in zip(lengths, starts, strict=True)
        ]

    def sequences(self, count: int) -> Iterator[list[Mapping[str, FloatArray]]]:
        """Streams of chunks, each from another stretch of the speech."""
        chunk = round(CHUNK_S * self.sample_rate)
        for number in range(count):
            audio = self.stretch(self.workload.sequence_s, number * 1.7)
            yield [
                {"SOURCE_AUDIO": audio[start : start + chunk], **self.voice}
                for start in range(0, audio.size - chunk + 1, chunk)
            ]
