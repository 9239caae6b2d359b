"""How much the pipeline benchmark measures, and what it shares with the others: models, voice and speech."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import soundfile
from report import Report
from speech import DEMO, FloatArray, find_recordings, load, looped

from autovoice import PipelineConfig, VoiceConversionPipeline, read_audio

if TYPE_CHECKING:
    from typing_extensions import Self

TARGET = DEMO / "target_slt.flac"
WorkloadT = TypeVar("WorkloadT")


@dataclass(frozen=True)
class Workload:
    """How much is measured.

    Attributes:
        lengths_s: sources of the RTF table.
        threads: ONNX Runtime threads of the RTF table.
        repeats: runs of each cell.
        calls_s: source of the table of other calls.
        cold_starts: processes started.
        memory_lengths_s: files converted, the last one being the one with an aim.
        stream_s: audio played in real time for every chunk length.
        chunks_ms: chunk lengths of streams.
    """

    lengths_s: tuple[float, ...] = (2, 10, 60)
    threads: tuple[int, ...] = (1, 2)
    repeats: int = 7
    calls_s: float = 10
    cold_starts: int = 7
    memory_lengths_s: tuple[float, ...] = (600, 3600)
    stream_s: float = 20
    chunks_ms: tuple[float, ...] = (10, 20, 40)


QUICK = Workload(
    lengths_s=(2, 10),
    repeats=2,
    calls_s=2,
    cold_starts=2,
    memory_lengths_s=(30, 60),
    stream_s=2,
    chunks_ms=(20,),
)


@dataclass(frozen=True)
class Material:
    """What is converted, and into what.

    Attributes:
        repository: of the models.
        family: of the models.
        sample_rate: of the models, Hz.
        embedding: target voice [256].
        speech: source audio [T] at the models' rate.
        origin: of the speech, in words.
    """

    repository: Path
    family: str
    sample_rate: int
    embedding: FloatArray
    speech: FloatArray
    origin: str


def load_material(repository: Path | None, speech: Path | None) -> Material:
    """Embeds the target voice and reads the speech.

    Args:
        repository: None for the one that `autovoice` finds.
        speech: folder of recordings; None for those of the demo.

    Raises:
        VoiceConversionError: the models cannot be used.
        SpeechError: there is no speech.
    """
    models = PipelineConfig(repository=repository).repository_path()
    with VoiceConversionPipeline(PipelineConfig(repository=models, device="cpu")) as pipeline:
        sample_rate, family = pipeline.sample_rate, pipeline.voice.family
        embedding = pipeline.embed(*read_audio(TARGET))
    recordings = find_recordings(speech, 20)
    origin = f"{'demo' if speech is None else speech.name}: {len(recordings)} recordings, looped"
    audio = np.concatenate([load(file, sample_rate) for file in recordings])
    return Material(models, family, sample_rate, embedding, audio, origin)


@dataclass(frozen=True)
class Bench(Generic[WorkloadT]):
    """What all measurements share.

    Attributes:
        repository: of the models.
        speech: source audio [T] at the models' rate.
        sample_rate: of the models, Hz.
        embedding: target voice [E].
        folder: for files that live as long as the benchmark.
        workload: how much is measured.
        report: where figures go.
    """

    repository: Path
    speech: FloatArray
    sample_rate: int
    embedding: FloatArray
    folder: Path
    workload: WorkloadT
    report: Report

    @classmethod
    def over(cls, material: Material, folder: Path, workload: WorkloadT, report: Report) -> Self:
        """What all measurements share, around that material."""
        m = material
        return cls(m.repository, m.speech, m.sample_rate, m.embedding, folder, workload, report)

    @property
    def embedding_file(self) -> Path:
        """The target voice on disk."""
        return self.folder / "voice.npy"

    def source(self, seconds: float) -> FloatArray:
        """Speech of that length at the models' rate."""
        return looped(self.speech, round(seconds * self.sample_rate))

    def source_file(self, seconds: float) -> Path:
        """The same as a 16-bit WAV, written piece by piece however long it is."""
        file = self.folder / f"{seconds:g}s.wav"
        missing = round(seconds * self.sample_rate)
        with soundfile.SoundFile(file, "w", self.sample_rate, 1, "PCM_16") as sink:
            while missing > 0:
                sink.write(self.speech[:missing])
                missing -= self.speech.size
        return file
