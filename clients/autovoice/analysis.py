"""What can be learnt from a recording without converting it: its speaker and its pitch."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import TypeAlias, TypeVar

import numpy.typing as npt

from autovoice.audio.files import AudioSource
from autovoice.audio.source import Source
from autovoice.config import PipelineConfig
from autovoice.engines.engine import Engine
from autovoice.engines.opening import open_engine
from autovoice.engines.resilient import ResilientEngine
from autovoice.errors import StreamClosedError
from autovoice.repository.reader import ModelRepository
from autovoice.results import FloatArray, PipelineStats, StatsCounter
from autovoice.runner import Runner
from autovoice.voices.base import BaseVoice, read_base_voice
from autovoice.voices.catalogue import open_voice
from autovoice.voices.embedding import EmbeddingCache, embed_source
from autovoice.voices.pitch import median_voiced, track_source_f0
from autovoice.voices.voice import Voice

DEFAULT_SAMPLE_RATE = 22_050
PathLike: TypeAlias = "str | os.PathLike[str]"
_Self = TypeVar("_Self", bound="VoiceAnalysis")


class VoiceAnalysis:
    """Opens a repository and analyses recordings with it; the half of a pipeline that does not convert.

    Args:
        config: None for the defaults.
        voice: instead of `config.voice`.
        engine: runs the models instead of what `config.backend` names.
    """

    def __init__(
        self,
        config: PipelineConfig | None = None,
        *,
        voice: str | None = None,
        engine: Engine | None = None,
    ) -> None:
        config = config if config is not None else PipelineConfig()
        self._config = config if voice is None else replace(config, voice=voice)
        self._counter = StatsCounter()
        self._repository: ModelRepository | None = None
        if engine is None:
            self._engine, self._repository = open_engine(self._config, self._counter)
        else:
            self._engine = ResilientEngine(
                engine,
                None,
                breaker=None,
                sequences_move=True,
                retries=self._config.retries,
                retry_delay_seconds=self._config.retry_delay_seconds,
                timeout=self._config.timeout_seconds,
                stats=self._counter,
            )
        self._voice = open_voice(self._engine, self._config.voice)
        self._voice.check_settings(self._config.voice_settings)
        self._runner = Runner(self._engine, self._voice, self._config, self._counter)
        self._embeddings = EmbeddingCache(self._config.embedding_cache_size)
        self._closed = False

    @property
    def config(self) -> PipelineConfig:
        """What this pipeline was told."""
        return self._config

    @property
    def repository(self) -> ModelRepository | None:
        """The models on disk; None when they run in a server or an engine was passed in."""
        return self._repository

    @property
    def voice(self) -> Voice:
        """The voice that conversions are made with."""
        return self._voice

    @property
    def sample_rate(self) -> int:
        """Rate of the audio that the models take, Hz."""
        return self._voice.sample_rate

    @property
    def embedding_size(self) -> int:
        """Length of a voice embedding.

        Raises:
            RepositoryError: when the repository lacks the base voice.
        """
        return self._base.embedding_size

    @property
    def device(self) -> str:
        """Where the next request will run."""
        return self._engine.device

    @property
    def stats(self) -> PipelineStats:
        """Counters since the pipeline was made."""
        return self._counter.snapshot()

    def embed(self, reference_audio: npt.ArrayLike, sample_rate: int = DEFAULT_SAMPLE_RATE) -> FloatArray:
        """Embed a reference recording of the target's voice, from 10 ms to hours; a few seconds are best.

        Args:
            reference_audio: as `source_audio` of `convert`.
            sample_rate: 8000 to 192000 Hz.

        Returns:
            Unit vector [E], the same for the same input.

        Raises:
            AudioInputError: no audio, or silence.
            RepositoryError: when the repository lacks the base voice, for which embeddings are.
        """
        self._check_open()
        source = self._runner.array_source(reference_audio, sample_rate, "reference audio")
        return self._embeddings.get(
            source.audio, source.sample_rate, lambda: self._embed(source, "reference audio")
        )

    def embed_file(self, path: PathLike) -> FloatArray:
        """Embed an audio file like `embed`, in bounded memory.

        Raises:
            AudioFileError: when it cannot be read.
            AudioInputError: less than one frame, or silence.
        """
        self._check_open()
        return self._embed(AudioSource(path), str(path))

    def extract_f0(self, audio: npt.ArrayLike, sample_rate: int = DEFAULT_SAMPLE_RATE) -> FloatArray:
        """Follow the pitch of a recording.

        Returns:
            Hz per 10 ms frame [about 100 T / rate], 0 where unvoiced; frame g is centred at (g + 0.5) * 10
            ms.
        """
        self._check_open()
        return self._track_f0(self._runner.array_source(audio, sample_rate, "audio"))

    def median_f0(self, audio: npt.ArrayLike, sample_rate: int = DEFAULT_SAMPLE_RATE) -> float:
        """Median pitch of a recording's voiced frames in Hz, 0.0 when it has none."""
        return median_voiced(self.extract_f0(audio, sample_rate))

    def median_f0_file(self, path: PathLike) -> float:
        """Median pitch of an audio file's voiced frames in Hz, 0.0 when it has none."""
        self._check_open()
        return median_voiced(self._track_f0(AudioSource(path)))

    def close(self) -> None:
        """Let go of the models; conversions after this are refused."""
        self._closed = True
        self._engine.close()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _base(self) -> BaseVoice:
        """The base voice, whose models analyse recordings whatever the voice that converts."""
        return self._voice if isinstance(self._voice, BaseVoice) else read_base_voice(self._engine)

    def _embed(self, source: Source, name: str) -> FloatArray:
        return embed_source(self._engine, self._base.clock, source, name)

    def _track_f0(self, source: Source) -> FloatArray:
        block = max(1, round(self._config.block_seconds * source.sample_rate))
        return track_source_f0(self._engine, self._base.clock, source, block)

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError("this pipeline has been closed; make another")
