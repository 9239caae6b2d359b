"""`VoiceConversionPipeline`: the whole of AutoVoice behind one object."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache, cached
from typing_extensions import Unpack

from autovoice.audio.channels import MIX, mix_down
from autovoice.audio.files import AudioSink, AudioSource, open_sink, rate_for, warn_about
from autovoice.audio.levels import FixedGain, FollowedGain, check_gain
from autovoice.audio.samples import as_channels, check_duration, check_sample_rate
from autovoice.audio.source import ArraySource, Source, at_usual_level
from autovoice.audio.speech import SpeechSource
from autovoice.config import PipelineConfig, as_config
from autovoice.conversion import BatchOptions, Conversion, ConversionOptions, StageTimer, convert_batch
from autovoice.engines.engine import MAX_RESTARTS, Engine, ReleasePin, on_one_release, on_release
from autovoice.engines.gpus import gpu_uses
from autovoice.engines.opening import open_engines, share_work
from autovoice.engines.operators import OperatorRecorder
from autovoice.errors import (
    AudioFileWarning,
    AudioInputError,
    ConfigurationError,
    InferenceError,
    ReleaseGoneError,
    StreamClosedError,
)
from autovoice.repository.reader import ModelRepository
from autovoice.results import (
    ConversionProfile,
    ConversionResult,
    FileResult,
    FloatArray,
    OperatorTime,
    PipelineStats,
    StatsCounter,
)
from autovoice.settings import RvcSettings, is_number
from autovoice.streaming import StreamSession
from autovoice.voices.base import BaseVoice, read_base_voice
from autovoice.voices.catalogue import open_voice
from autovoice.voices.embedding import check_embedding, embed_source, join_embeddings, similarity
from autovoice.voices.pitch import median_voiced, track_source_f0
from autovoice.voices.voice import Live, Voice, VoiceRequest

DEFAULT_SAMPLE_RATE = 22_050
COPIED_TAGS = ("title", "artist")
RESAMPLING_QUALITIES = ("HQ", "LQ")
CORE_SECONDS_RANGE = (0.01, 60.0)
WARMUP_SECONDS_RANGE = (0.01, 60.0)
PathLike: TypeAlias = "str | os.PathLike[str]"
_Self = TypeVar("_Self", bound="VoiceConversionPipeline")


class VoiceConversionPipeline:
    """Converts recordings into one voice: the base voice, of any speaker that an embedding names, or an
    imported one.

    Thread safe; models are loaded when first used and shared with every other pipeline of the process.

    Args:
        config: None for the defaults.
        voice: the voice, instead of `config.voice`.
        engine: runs the models instead of what `config.backend` names; several share work as several devices
            do, and have to give the same results and keep their sequences in one store.
        record_operators: record what every operator costs, for `operator_times`. Models are then loaded for
            this pipeline alone and are somewhat slower.

    Raises:
        ConfigurationError: TLS files that cannot be used, an API key that the server refuses, or operators to
            be recorded in a server or an engine of the caller's.
        InferenceError: when the server does not answer and there is no fallback.
        RepositoryError: when the model repository is missing or incomplete, or lacks the voice.
        DeviceError: when the device is not to be had and `fallback` is not `"cpu"`.
    """

    def __init__(
        self,
        config: PipelineConfig | None = None,
        *,
        voice: str | None = None,
        engine: Engine | Sequence[Engine] | None = None,
        record_operators: bool = False,
    ) -> None:
        config = as_config(config)
        self._config = config if voice is None else replace(config, voice=voice)
        self._counter = StatsCounter()
        self._repository: ModelRepository | None = None
        self._recorder = OperatorRecorder() if record_operators else None
        if engine is None:
            self._pool, self._repository = open_engines(self._config, self._counter, self._recorder)
        elif record_operators:
            raise ConfigurationError(
                "what operators cost is not seen in a given engine; leave one of them out"
            )
        else:
            engines = engine if isinstance(engine, Sequence) else [engine]
            self._pool = share_work(engines, None, self._config, self._counter)
        self._engine = self._pool.first
        self._voice = open_voice(self._engine, self._config.voice)
        self._voice.check_settings(self._config.voice_settings)
        self._embed_array = cached(
            LRUCache(self._config.embedding_cache_size), key=_content_key, lock=threading.Lock()
        )(self._embed)
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
        """Where the next request will run, the first of several devices."""
        return self._engine.device

    @property
    def stats(self) -> PipelineStats:
        """Counters since the pipeline was made."""
        return self._counter.snapshot()

    def convert(
        self,
        source_audio: npt.ArrayLike,
        target_embedding: npt.ArrayLike | None = None,
        source_f0: npt.ArrayLike | None = None,
        source_sample_rate: int = DEFAULT_SAMPLE_RATE,
        **options: Unpack[ConversionOptions],
    ) -> FloatArray:
        """Convert one recording.

        Args:
            source_audio: samples [T], [T, channels] or [channels, T], float in [-1, 1] or int16; channels
                are mixed as those of files are.
            target_embedding: speaker to convert to [E], from `embed`; only its direction counts. Needed by
                the base voice, refused by an imported one.
            source_f0: pitch to use instead of the source's own: Hz per 10 ms frame [ceil(100 T / rate)], 0
                where unvoiced. Only the base voice takes it.
            source_sample_rate: 4000 to 768000 Hz.
            options: see `autovoice.conversion.ConversionOptions`.

        Returns:
            Mono float32 [T], or [round(T * output rate / source rate)] with `output_sample_rate`.

        Raises:
            AudioInputError: samples that are no audio, or less than 10 ms of it.
            ConfigurationError: settings that the voice does not have.
            EmbeddingError: wrong size, zero or not finite; missing or not wanted.
            PitchError: shift beyond two octaves, or a `source_f0` that does not fit.
            InferenceError: when the engine failed and no fallback helped.

        Warns:
            AudioFileWarning: one channel was taken alone, because the mix would cancel or the others are
                silent.
            PassthroughWarning: when the engine failed and `fallback="passthrough"` returned the input,
                level-normalised.
        """
        return self.convert_detailed(
            source_audio, target_embedding, source_f0, source_sample_rate, **options
        ).audio

    def convert_detailed(
        self,
        source_audio: npt.ArrayLike,
        target_embedding: npt.ArrayLike | None = None,
        source_f0: npt.ArrayLike | None = None,
        source_sample_rate: int = DEFAULT_SAMPLE_RATE,
        **options: Unpack[ConversionOptions],
    ) -> ConversionResult:
        """Convert one recording like `convert`, and tell how it went."""
        with self._counting_failures(), self._pool.lend() as engine:
            source = self._array_source(source_audio, source_sample_rate, "source audio")
            conversion = Conversion(
                engine,
                self._voice,
                self._config,
                source,
                "source audio",
                target_embedding,
                source_f0,
                **options,
            )
            audio = np.empty(conversion.output_samples, np.float32)

            def collect(blocks: Iterator[FloatArray]) -> None:
                position = 0
                for block in blocks:
                    audio[position : position + block.size] = block
                    position += block.size

            conversion.run(collect)
        return ConversionResult(
            audio,
            conversion.output_sample_rate,
            conversion.shift_semitones,
            conversion.passthrough,
            self._count_success(conversion),
            conversion.release,
        )

    def convert_file(
        self,
        source: PathLike | BinaryIO,
        output: PathLike | BinaryIO,
        target_embedding: npt.ArrayLike | None = None,
        *,
        source_f0: npt.ArrayLike | None = None,
        channel: str | int = MIX,
        input_format: str | None = None,
        strict: bool = False,
        output_format: str | None = None,
        overwrite: bool = True,
        copy_tags: bool = False,
        subtype: str | None = None,
        tags: Mapping[str, str] | None = None,
        **options: Unpack[ConversionOptions],
    ) -> FileResult:
        """Convert one audio file into another in bounded memory; the output appears whole or not at all.

        Where the output's format does not take the rate, as Opus takes no 44.1 kHz, it has the next higher
        one that the format takes, or its highest.

        Args:
            source: an audio file of any kind, or a video with sound; or a binary file object.
            output: a path, whose suffix is the format unless `output_format` is given; or a binary file
                object.
            target_embedding: see `convert`.
            source_f0: see `convert`.
            channel: `"mix"`, `"left"`, `"right"`, `"loudest"`, or the number of a channel, from 1 on.
            input_format: how to read samples without a header, such as `"f32le:24000:1"`.
            strict: refuse a damaged source, of which otherwise all that can be decoded is converted.
            output_format: `"wav"`, `"flac"`, `"ogg"`, `"opus"`, `"mp3"` or `"m4a"`.
            overwrite: replace an output that exists.
            copy_tags: give the output the title and the artist of the source.
            subtype: a soundfile subtype such as `"PCM_24"` or `"FLOAT"`; None for the format's usual one.
            tags: metadata of the output, such as `provenance_tags()`.
            options: see `autovoice.conversion.ConversionOptions`.

        Raises:
            AudioFileError: when the source cannot be read.
            OutputError: when the output cannot be written.
            AudioInputError, ConfigurationError, EmbeddingError, PitchError, InferenceError: see `convert`.
        """
        with self._counting_failures(), self._pool.lend() as engine:
            opened = AudioSource(source, channel=channel, input_format=input_format, strict=strict)
            wanted = options.get("output_sample_rate")
            rate = opened.sample_rate if wanted is None else check_sample_rate(wanted, "output sample rate")
            fitting = rate_for(output, rate, output_format)
            if fitting != rate:
                options["output_sample_rate"] = fitting
            conversion = Conversion(
                engine,
                self._voice,
                self._config,
                opened,
                str(opened.path),
                target_embedding,
                source_f0,
                **options,
            )

            copied = {name: opened.tags[name] for name in COPIED_TAGS if copy_tags and name in opened.tags}

            def write(blocks: Iterator[FloatArray]) -> AudioSink:
                with open_sink(
                    output,
                    conversion.output_sample_rate,
                    audio_format=output_format,
                    subtype=subtype,
                    expected_samples=conversion.output_samples,
                    tags=copied | dict(tags or {}),
                    overwrite=overwrite,
                    lower_peaks=True,
                ) as sink:
                    for block in blocks:
                        sink.write(block)
                return sink

            written = conversion.run(write)
        found = opened.warnings
        if written.gain_db < 0:
            found += (f"{written.name} was lowered by {-written.gain_db:.1f} dB so that nothing clips",)
        return FileResult(
            Path(written.name),
            conversion.output_sample_rate,
            written.samples,
            conversion.shift_semitones,
            conversion.passthrough,
            self._count_success(conversion),
            found,
            conversion.release,
        )

    def batch_convert(
        self,
        source_audios: Iterable[npt.ArrayLike],
        target_embeddings: npt.ArrayLike | Iterable[npt.ArrayLike] | None = None,
        source_f0s: Iterable[npt.ArrayLike | None] | None = None,
        source_sample_rates: int | Iterable[int] = DEFAULT_SAMPLE_RATE,
        *,
        voice_settings: RvcSettings | Iterable[RvcSettings | None] | None = None,
        **options: Unpack[BatchOptions],
    ) -> list[FloatArray]:
        """Convert many recordings together: those of like length share requests, padded on the right.

        Several devices share the requests, of up to a minute of audio each, and give what one would.

        Args:
            source_audios: see `convert`; any mix of lengths.
            target_embeddings: one [E] for all, or one per source [N, E]; None for an imported voice.
            source_f0s: one track or None per source.
            source_sample_rates: one for all or one per source.
            voice_settings: one for all, or one or None per source.
            options: for all; see `autovoice.conversion.BatchOptions`. `"auto"` is resolved per source.

        Returns:
            One result per source, in order, as `convert` would return it (to 1e-4 of full scale).

        Raises:
            VoiceConversionError: as `convert`, naming the item; nothing is converted when any item is
                refused.
        """
        self._check_open()
        sources = _listed(source_audios, "source_audios")
        count = len(sources)
        if isinstance(target_embeddings, Iterator):
            target_embeddings = list(target_embeddings)
        rates = _per_item(source_sample_rates, count, "source_sample_rates")
        tracks = _per_item(source_f0s, count, "source_f0s")
        embeddings = _per_item(
            target_embeddings, count, "target_embeddings", shared=_is_one_vector(target_embeddings)
        )
        settings = _per_item(voice_settings, count, "voice_settings")
        with self._counting_failures(count):
            timer = StageTimer(self._engine.device, options.get("progress_callback"))
            pin = ReleasePin()
            conversions = []
            for index, audio in enumerate(sources):
                name = f"source audio {index}"
                conversions.append(
                    Conversion(
                        self._engine,
                        self._voice,
                        self._config,
                        self._array_source(audio, rates[index], name),
                        name,
                        embeddings[index],
                        tracks[index],
                        timer,
                        pin,
                        voice_settings=settings[index],
                        **options,
                    )
                )
            if not conversions:
                return []
            for left in reversed(range(MAX_RESTARTS + 1)):
                try:
                    results = convert_batch(self._pool, self._voice, conversions, timer, pin)
                    break
                except InferenceError as error:
                    if left and isinstance(error, ReleaseGoneError):
                        for conversion in conversions:
                            conversion.begin_again(error)
                        continue
                    for conversion in conversions:
                        conversion.allow_passthrough(error)
                    results = [np.concatenate(list(each.passthrough_blocks())) for each in conversions]
                    break
            timer.finish()
        durations = [each.source.frames / each.source.sample_rate for each in conversions]
        profile = timer.profile(sum(durations), sum(each.source.frames for each in conversions))
        for conversion, duration in zip(conversions, durations, strict=True):
            self._counter.success(
                profile.total_ms / count, duration, conversion.device, passthrough=conversion.passthrough
            )
        return results

    def profile_conversion(
        self,
        source_audio: npt.ArrayLike,
        target_embedding: npt.ArrayLike | None = None,
        source_f0: npt.ArrayLike | None = None,
        source_sample_rate: int = DEFAULT_SAMPLE_RATE,
        *,
        operators: bool = False,
        **options: Unpack[ConversionOptions],
    ) -> ConversionProfile:
        """Convert like `convert` and return where the time went; call `warmup` first to leave loading out.

        Args:
            source_audio, target_embedding, source_f0, source_sample_rate, options: see `convert`.
            operators: convert a second time, with models loaded for that, and record what every operator
                costs; the other figures are of the first time.

        Raises:
            ConfigurationError: operators that are to be recorded in a server or an engine of the caller's.
            VoiceConversionError: as `convert`.
        """
        models = self._repository
        if operators and models is None:
            raise ConfigurationError(
                "what operators cost is seen only where this process runs the models; use backend='embedded'"
            )
        profile = self.convert_detailed(
            source_audio, target_embedding, source_f0, source_sample_rate, **options
        ).profile
        found: tuple[OperatorTime, ...] = ()
        if operators and models is not None:
            recorded = replace(self._config, device=self.device, repository=models.path)
            options["progress_callback"] = None
            with VoiceConversionPipeline(recorded, record_operators=True) as recording:
                recording.convert(source_audio, target_embedding, source_f0, source_sample_rate, **options)
                found = recording.operator_times()
        return replace(profile, gpus=gpu_uses(), operators=found)

    def operator_times(self) -> tuple[OperatorTime, ...]:
        """What every operator has cost so far, the most costly first. Ends the recording.

        Raises:
            ConfigurationError: the pipeline was made without `record_operators`.
        """
        if self._recorder is None:
            raise ConfigurationError(
                "no operators were recorded; make the pipeline with record_operators=True"
            )
        return self._recorder.finish()

    def stream(
        self,
        target_embedding: npt.ArrayLike | None = None,
        *,
        sample_rate: int | None = None,
        output_sample_rate: int | None = None,
        pitch_shift_semitones: float = 0.0,
        voice_settings: RvcSettings | None = None,
        core_seconds: float | None = None,
        resampling_quality: Literal["HQ", "LQ"] = "HQ",
        input_gain_db: float | Literal["auto"] = 0.0,
    ) -> StreamSession:
        """Open a live stream.

        Args:
            target_embedding: see `convert`.
            sample_rate: of what will be pushed, Hz; None for the models' own, which needs no resampling.
            output_sample_rate: None for `sample_rate`; where that is None too, for the voice's own.
            pitch_shift_semitones: -24 to 24; `"auto"` needs the whole source, so measure it with `median_f0`
                instead.
            voice_settings: see `convert`.
            core_seconds: audio gathered before it is converted, 0.01 to 60, which adds to the delay; taken to
                the nearest multiple of 10 ms, of 20 ms for an imported voice, and no more than the config's
                `block_seconds`. None for the least of the base voice, 10 ms, and for 240 ms of an imported
                one, which with every core computes its context again: more is cheaper.
            resampling_quality: `"HQ"` gives the samples of `convert`; `"LQ"` halves the delay of resampling.
            input_gain_db: gain that brings the source to a usual level, -23 dB of full scale in its loud
                parts, and is taken back in the end; `"auto"` follows what was heard so far, slowly.

        Raises:
            ConfigurationError, EmbeddingError, PitchError, SampleRateError: see `convert`.
        """
        self._check_open()
        request = VoiceRequest(
            target_embedding,
            pitch_shift_semitones=pitch_shift_semitones,
            voice_settings=voice_settings,
        )
        target = self._voice.target(request, None, self._config)
        if not (isinstance(resampling_quality, str) and resampling_quality in RESAMPLING_QUALITIES):
            raise ConfigurationError(f"resampling_quality is {resampling_quality!r}; use 'HQ' or 'LQ'")
        if core_seconds is not None:
            _check_seconds("core_seconds", core_seconds, CORE_SECONDS_RANGE, "or None")
        gain_db = check_gain(input_gain_db)
        if sample_rate is None:
            rate, output_rate = self._voice.sample_rate, self._voice.output_sample_rate
        else:
            rate = output_rate = check_sample_rate(sample_rate, "stream sample rate")
        if output_sample_rate is not None:
            output_rate = check_sample_rate(output_sample_rate, "output sample rate")
        stream = self._voice.open_stream(
            self._engine,
            target,
            block_seconds=self._config.block_seconds,
            live=Live(core_seconds, self._config.fallback == "passthrough", self._config.replay_seconds),
        )
        share, bounded = self._voice.level_share(target), self._voice.bounded
        gain: FixedGain | FollowedGain = (
            FollowedGain(rate, output_rate, share, bounded=bounded)
            if gain_db == "auto"
            else FixedGain(gain_db, share, bounded=bounded)
        )
        return StreamSession(
            stream,
            self._voice,
            rate,
            output_rate,
            gain=gain,
            quality=resampling_quality,
            on_finish=self._count_stream,
        )

    def embed(self, reference_audio: npt.ArrayLike, sample_rate: int = DEFAULT_SAMPLE_RATE) -> FloatArray:
        """Embed a reference recording of the target's voice, from 10 ms to hours; a few seconds are best.

        Args:
            reference_audio: as `source_audio` of `convert`.
            sample_rate: 4000 to 768000 Hz.

        Returns:
            Unit vector [E], the same for the same input.

        Raises:
            AudioInputError: no audio, or silence.
            RepositoryError: when the repository lacks the base voice, for which embeddings are.
        """
        self._check_open()
        source = self._array_source(reference_audio, sample_rate, "reference audio")
        return np.array(self._embed_array(source, "reference audio"))

    def embed_file(self, path: PathLike) -> FloatArray:
        """Embed an audio file like `embed`, in bounded memory.

        Raises:
            AudioFileError: when it cannot be read.
            AudioInputError: less than one frame, or silence.

        Warns:
            AudioFileWarning: the file is damaged, or one of its channels was taken alone.
        """
        self._check_open()
        source = AudioSource(path)
        warn_about(source)
        return self._embed(source, str(source.path))

    def join_embeddings(
        self, embeddings: Sequence[npt.ArrayLike], weights: Sequence[float] | None = None
    ) -> FloatArray:
        """The embedding of a voice of which several recordings were embedded.

        Args:
            embeddings: of recordings of one voice, [E] each.
            weights: how much each counts; None for all alike.

        Returns:
            Unit vector [E]: the mean identity, and frames of all recordings in turn.

        Raises:
            EmbeddingError: none are given, one is no embedding, they cancel each other out, or the weights
                are no numbers from 0 up.
        """
        return join_embeddings(embeddings, self._base.clock, weights)

    def similarity(self, first: npt.ArrayLike, second: npt.ArrayLike) -> float:
        """Cosine of the identities of two embeddings [E]; of one voice it is about 0.8 and more."""
        clock = self._base.clock
        size = clock.embedding_size
        return similarity(check_embedding(first, size), check_embedding(second, size), clock)

    def extract_f0(self, audio: npt.ArrayLike, sample_rate: int = DEFAULT_SAMPLE_RATE) -> FloatArray:
        """Follow the pitch of a recording.

        Returns:
            Hz per 10 ms frame [about 100 T / rate], 0 where unvoiced; frame g is centred at (g + 0.5) * 10
            ms.
        """
        self._check_open()
        return self._track_f0(self._array_source(audio, sample_rate, "audio"))

    def median_f0(self, audio: npt.ArrayLike, sample_rate: int = DEFAULT_SAMPLE_RATE) -> float:
        """Median pitch of the voiced frames of a recording's speech in Hz, 0.0 when it has none."""
        self._check_open()
        source = self._array_source(audio, sample_rate, "audio")
        return median_voiced(self._track_f0(SpeechSource(source)))

    def median_f0_file(self, path: PathLike) -> float:
        """Median pitch of the voiced frames of an audio file's speech in Hz, 0.0 when it has none."""
        self._check_open()
        return median_voiced(self._track_f0(SpeechSource(AudioSource(path))))

    def warmup(self, num_iterations: int = 1, *, seconds: float = 1.0) -> float:
        """Load the models of conversions and streams and run each on quiet noise.

        Args:
            num_iterations: how often each is run, 1 to 1000.
            seconds: of audio, 0.01 to 60.

        Returns:
            Seconds it took. Not counted in `stats`.

        Raises:
            ConfigurationError: numbers out of range.
            InferenceError: when the engine failed.
        """
        self._check_open()
        if not is_number(num_iterations, Integral) or not 1 <= num_iterations <= 1000:
            raise ConfigurationError(f"num_iterations is {num_iterations!r}; give an integer from 1 to 1000")
        _check_seconds("seconds", seconds, WARMUP_SECONDS_RANGE)
        started = time.perf_counter()
        noise = np.random.default_rng(0).standard_normal(round(seconds * self._voice.sample_rate))
        quiet = (0.01 * noise).astype(np.float32)
        target = self._voice.neutral_target()
        for live in (None, Live()) * num_iterations:
            stream = self._voice.open_stream(
                self._engine, target, block_seconds=self._config.block_seconds, live=live
            )
            with on_release(ReleasePin()):
                stream.push(quiet)
                stream.flush()
        return time.perf_counter() - started

    def close(self) -> None:
        """Free the models or connections; conversions after this are refused."""
        self._closed = True
        if self._recorder is not None:
            self._recorder.finish()
        self._pool.close()

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

    def _array_source(self, audio: npt.ArrayLike, sample_rate: Any, name: str) -> ArraySource:
        rate = check_sample_rate(sample_rate, f"the sample rate of {name}")
        samples, reason = mix_down(as_channels(audio, name), rate)
        if reason is not None:
            warnings.warn(AudioFileWarning(f"{name}: {reason}"), stacklevel=3)
        check_duration(samples.size, rate, self._voice.frames_per_second, name)
        return ArraySource(samples, rate)

    def _embed(self, source: Source, name: str) -> FloatArray:
        return on_one_release(lambda: embed_source(self._engine, self._base.clock, source, name))

    def _track_f0(self, source: Source) -> FloatArray:
        block = max(1, round(self._config.block_seconds * source.sample_rate))
        usual = at_usual_level(source)
        return on_one_release(lambda: track_source_f0(self._engine, self._base.clock, usual, block))

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError("this pipeline has been closed; make another")

    @contextmanager
    def _counting_failures(self, count: int = 1) -> Iterator[None]:
        """Refuse a closed pipeline; count `count` failed conversions when the block raises."""
        self._check_open()
        try:
            yield
        except BaseException:
            self._counter.failure(count)
            raise

    def _count_success(self, conversion: Conversion) -> ConversionProfile:
        profile = conversion.profile()
        self._counter.success(
            profile.total_ms, profile.audio_duration_s, profile.device, passthrough=conversion.passthrough
        )
        return profile

    def _count_stream(self, session: StreamSession, succeeded: bool) -> None:
        if not succeeded:
            self._counter.failure()
            return
        seconds = session.samples_in / session.sample_rate
        self._counter.success(
            session.compute_seconds * 1e3, seconds, self._engine.device, passthrough=session.passthrough
        )


def _content_key(source: ArraySource, name: str) -> tuple[int, bytes]:
    return source.sample_rate, hashlib.sha256(source.audio.tobytes()).digest()


def _check_seconds(name: str, value: Any, bounds: tuple[float, float], otherwise: str = "") -> None:
    low, high = bounds
    if not (is_number(value) and math.isfinite(value) and low <= value <= high):
        remedy = f"give seconds from {low:g} to {high:g}{', ' if otherwise else ''}{otherwise}"
        raise ConfigurationError(f"{name} is {value!r}; {remedy}")


def _per_item(values: Any, count: int, name: str, *, shared: bool = False) -> list[Any]:
    """One entry per source; a value that is no iterable, or that is `shared`, is that of every source.

    Raises:
        AudioInputError: when there is not one entry per source.
    """
    if shared or not isinstance(values, Iterable):
        return [values] * count
    entries = _listed(values, name)
    if len(entries) != count:
        raise AudioInputError(
            f"{name} has {len(entries)} entries for {count} sources; give one for all or one per source"
        )
    return entries


def _listed(values: Any, name: str) -> list[Any]:
    try:
        return list(values)
    except TypeError:  # no iterable, or an array without axes
        raise AudioInputError(f"{name} is {values!r}; give a list with one entry per source") from None


def _is_one_vector(values: Any) -> bool:
    """Whether `values` is a single flat vector, or none, rather than one vector per source."""
    try:
        return np.ndim(values[0]) == 0
    except (TypeError, LookupError, ValueError):
        return True  # no vector at all, which the voice asks for or says better
