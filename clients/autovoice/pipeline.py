"""`VoiceConversionPipeline`: the whole of AutoVoice behind one object."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from autovoice.analysis import DEFAULT_SAMPLE_RATE, PathLike, VoiceAnalysis
from autovoice.audio.files import AudioSource, open_sink
from autovoice.audio.samples import output_length
from autovoice.conversion import BatchItem
from autovoice.results import ConversionProfile, ConversionResult, FileResult, FloatArray, ProgressCallback
from autovoice.runner import is_one_vector, per_item
from autovoice.settings import RvcSettings
from autovoice.streaming import StreamSession
from autovoice.voices.voice import VoiceRequest

PitchShift: TypeAlias = "float | Literal['auto']"


class VoiceConversionPipeline(VoiceAnalysis):
    """Converts recordings into one voice: the base voice, of any speaker that an embedding names, or an
    imported one.

    Thread safe; models are loaded when first used and shared with every other pipeline of the process.

    Args:
        config: None for the defaults.
        voice: the voice, instead of `config.voice`.
        engine: runs the models instead of what `config.backend` names.

    Raises:
        ConfigurationError: TLS files that cannot be used, or an API key that the server refuses.
        InferenceError: when the server does not answer and there is no fallback.
        RepositoryError: when the model repository is missing or incomplete, or lacks the voice.
        DeviceError: when `device="cuda"` is not to be had and `fallback` is not `"cpu"`.
    """

    def convert(
        self,
        source_audio: npt.ArrayLike,
        target_embedding: npt.ArrayLike | None = None,
        source_f0: npt.ArrayLike | None = None,
        source_sample_rate: int = DEFAULT_SAMPLE_RATE,
        output_sample_rate: int | None = None,
        pitch_shift_semitones: PitchShift = 0.0,
        progress_callback: ProgressCallback | None = None,
        *,
        target_median_f0: float | None = None,
        voice_settings: RvcSettings | None = None,
    ) -> FloatArray:
        """Convert one recording.

        Args:
            source_audio: samples [T], [T, channels] or [channels, T], float in [-1, 1] or int16; channels
                are averaged.
            target_embedding: speaker to convert to [E], from `embed`; only its direction counts. Needed by
                the base voice, refused by an imported one.
            source_f0: pitch to use instead of the source's own: Hz per 10 ms frame [ceil(100 T / rate)], 0
                where unvoiced. Only the base voice takes it.
            source_sample_rate: 8000 to 192000 Hz.
            output_sample_rate: None for the source's.
            pitch_shift_semitones: -24 to 24, or `"auto"` to bring the source's median pitch to the target's,
                which only the base voice can tell.
            progress_callback: called after every stage of every chunk; what it raises ends the conversion.
            target_median_f0: Hz, for `"auto"`; None to judge it by the embedding.
            voice_settings: of an imported voice; None, and every None in it, for `config.voice_settings`,
                then for the voice's default.

        Returns:
            Mono float32 [T], or [round(T * output rate / source rate)] with `output_sample_rate`.

        Raises:
            AudioInputError: samples that are no audio, or less than 10 ms of it.
            ConfigurationError: settings that the voice does not have.
            EmbeddingError: wrong size, zero or not finite; missing or not wanted.
            PitchError: shift beyond two octaves, or a `source_f0` that does not fit.
            InferenceError: when the engine failed and no fallback helped.

        Warns:
            PassthroughWarning: when the engine failed and `fallback="passthrough"` returned the input,
                level-normalised.
        """
        return self.convert_detailed(
            source_audio,
            target_embedding,
            source_f0,
            source_sample_rate,
            output_sample_rate,
            pitch_shift_semitones,
            progress_callback,
            target_median_f0=target_median_f0,
            voice_settings=voice_settings,
        ).audio

    def convert_detailed(
        self,
        source_audio: npt.ArrayLike,
        target_embedding: npt.ArrayLike | None = None,
        source_f0: npt.ArrayLike | None = None,
        source_sample_rate: int = DEFAULT_SAMPLE_RATE,
        output_sample_rate: int | None = None,
        pitch_shift_semitones: PitchShift = 0.0,
        progress_callback: ProgressCallback | None = None,
        *,
        target_median_f0: float | None = None,
        voice_settings: RvcSettings | None = None,
    ) -> ConversionResult:
        """Convert one recording like `convert`, and tell how it went."""
        self._check_open()
        request = VoiceRequest(
            target_embedding, source_f0, pitch_shift_semitones, target_median_f0, voice_settings
        )
        with self._runner.counting_failures():
            source = self._runner.array_source(source_audio, source_sample_rate, "source audio")
            plan = self._runner.plan(source, request, output_sample_rate)
            audio = np.empty(
                output_length(source.frames, source.sample_rate, plan.output_sample_rate), np.float32
            )

            def collect(blocks: Iterator[FloatArray]) -> None:
                position = 0
                for block in blocks:
                    audio[position : position + block.size] = block
                    position += block.size

            _, outcome = self._runner.run(source, plan, "source audio", progress_callback, collect)
        return ConversionResult(
            audio, outcome.sample_rate, outcome.pitch_shift_semitones, outcome.passthrough, outcome.profile
        )

    def convert_file(
        self,
        source: PathLike,
        output: PathLike,
        target_embedding: npt.ArrayLike | None = None,
        *,
        source_f0: npt.ArrayLike | None = None,
        output_sample_rate: int | None = None,
        pitch_shift_semitones: PitchShift = 0.0,
        target_median_f0: float | None = None,
        voice_settings: RvcSettings | None = None,
        subtype: str | None = None,
        tags: Mapping[str, str] | None = None,
        progress_callback: ProgressCallback | None = None,
    ) -> FileResult:
        """Convert one audio file into another in bounded memory; the output appears whole or not at all.

        Args:
            source: wav, flac, ogg, mp3, aiff.
            output: the suffix chooses the format.
            target_embedding: see `convert`.
            source_f0: see `convert`.
            output_sample_rate: None for the source's.
            pitch_shift_semitones: see `convert`.
            target_median_f0: see `convert`.
            voice_settings: see `convert`.
            subtype: a soundfile subtype such as `"PCM_24"` or `"FLOAT"`; None for the format's usual one.
            tags: metadata of the output, such as `provenance_tags()`.
            progress_callback: see `convert`.

        Raises:
            AudioFileError: when the source cannot be read.
            OutputError: when the output cannot be written.
            AudioInputError, ConfigurationError, EmbeddingError, PitchError, InferenceError: see `convert`.
        """
        self._check_open()
        request = VoiceRequest(
            target_embedding, source_f0, pitch_shift_semitones, target_median_f0, voice_settings
        )
        with self._runner.counting_failures():
            opened = AudioSource(source)
            plan = self._runner.plan(opened, request, output_sample_rate)
            expected = output_length(opened.frames, opened.sample_rate, plan.output_sample_rate)

            def write(blocks: Iterator[FloatArray]) -> int:
                with open_sink(
                    output, plan.output_sample_rate, subtype=subtype, expected_samples=expected, tags=tags
                ) as sink:
                    for block in blocks:
                        sink.write(block)
                return sink.samples

            samples, outcome = self._runner.run(opened, plan, str(opened.path), progress_callback, write)
        return FileResult(
            Path(output),
            outcome.sample_rate,
            samples,
            outcome.pitch_shift_semitones,
            outcome.passthrough,
            outcome.profile,
        )

    def batch_convert(
        self,
        source_audios: Sequence[npt.ArrayLike],
        target_embeddings: npt.ArrayLike | Sequence[npt.ArrayLike] | None = None,
        source_f0s: Sequence[npt.ArrayLike | None] | None = None,
        source_sample_rates: int | Sequence[int] = DEFAULT_SAMPLE_RATE,
        output_sample_rate: int | None = None,
        pitch_shift_semitones: PitchShift = 0.0,
        progress_callback: ProgressCallback | None = None,
        *,
        target_median_f0: float | None = None,
        voice_settings: RvcSettings | Sequence[RvcSettings | None] | None = None,
    ) -> list[FloatArray]:
        """Convert many recordings together: those of like length share requests, padded on the right.

        Args:
            source_audios: see `convert`; any mix of lengths.
            target_embeddings: one [E] for all, or one per source [N, E]; None for an imported voice.
            source_f0s: one track or None per source.
            source_sample_rates: one for all or one per source.
            output_sample_rate: None for each source's own.
            pitch_shift_semitones: for all; `"auto"` is resolved per source.
            progress_callback: see `convert`.
            target_median_f0: see `convert`.
            voice_settings: one for all, or one or None per source.

        Returns:
            One result per source, in order, as `convert` would return it (to 1e-4 of full scale).

        Raises:
            VoiceConversionError: as `convert`, naming the item; nothing is converted when any item is
                refused.
        """
        self._check_open()
        count = len(source_audios)
        rates = per_item(
            source_sample_rates, count, "source_sample_rates", shared=np.ndim(source_sample_rates) == 0
        )
        tracks = per_item(source_f0s, count, "source_f0s", shared=source_f0s is None)
        one_voice = is_one_vector(target_embeddings)
        voices = per_item(target_embeddings, count, "target_embeddings", shared=one_voice)
        one_setting = voice_settings is None or isinstance(voice_settings, RvcSettings)
        settings = per_item(voice_settings, count, "voice_settings", shared=one_setting)
        with self._runner.counting_failures(count):
            items: list[BatchItem] = []
            for index, audio in enumerate(source_audios):
                name = f"source audio {index}"
                source = self._runner.array_source(audio, rates[index], name)
                request = VoiceRequest(
                    voices[index], tracks[index], pitch_shift_semitones, target_median_f0, settings[index]
                )
                plan = self._runner.plan(source, request, output_sample_rate)
                items.append(BatchItem(source, plan, name))
            return self._runner.run_batch(items, progress_callback) if items else []

    def profile_conversion(
        self,
        source_audio: npt.ArrayLike,
        target_embedding: npt.ArrayLike | None = None,
        source_f0: npt.ArrayLike | None = None,
        source_sample_rate: int = DEFAULT_SAMPLE_RATE,
        output_sample_rate: int | None = None,
        pitch_shift_semitones: PitchShift = 0.0,
        progress_callback: ProgressCallback | None = None,
        *,
        target_median_f0: float | None = None,
        voice_settings: RvcSettings | None = None,
    ) -> ConversionProfile:
        """Convert like `convert` and return where the time went; call `warmup` first to leave loading out."""
        return self.convert_detailed(
            source_audio,
            target_embedding,
            source_f0,
            source_sample_rate,
            output_sample_rate,
            pitch_shift_semitones,
            progress_callback,
            target_median_f0=target_median_f0,
            voice_settings=voice_settings,
        ).profile

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

        Raises:
            ConfigurationError, EmbeddingError, PitchError, SampleRateError: see `convert`.
        """
        self._check_open()
        request = VoiceRequest(
            target_embedding,
            pitch_shift_semitones=pitch_shift_semitones,
            voice_settings=voice_settings,
        )
        return self._runner.open_stream(
            request, sample_rate, output_sample_rate, resampling_quality, core_seconds
        )

    def warmup(self, seconds: float = 1.0) -> float:
        """Load the models of conversions and streams and run each once on quiet noise.

        Args:
            seconds: of audio, at least one frame.

        Returns:
            Seconds it took. Not counted in `stats`.
        """
        self._check_open()
        started = time.perf_counter()
        self._runner.warm_up(seconds)
        return time.perf_counter() - started
