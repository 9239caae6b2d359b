"""The pipeline against the toy's closed form: lengths, blocks, files, batches, pitch, bad input."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_repository import expected_conversion

import autovoice
from autovoice import PipelineConfig, Progress, VoiceConversionError, VoiceConversionPipeline
from autovoice.audio.levels import level_of, usual_gain_db
from autovoice.conversion import make_buckets
from autovoice.errors import (
    AudioFileError,
    AudioFileWarning,
    AudioInputError,
    EmbeddingError,
    OutputError,
    PitchError,
    SampleRateError,
    StreamClosedError,
)
from autovoice.voices.base import BaseVoice

RATE = 24_000


@pytest.fixture
def pipeline(toy: Path) -> VoiceConversionPipeline:
    """Blocks of half a second, so that a few seconds cross many block edges."""
    return VoiceConversionPipeline(PipelineConfig(repository=toy, block_seconds=0.5, threads=1))


def speech_like(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Band-limited noise whose level wanders, so that resampling it loses nothing."""
    rng = np.random.default_rng(seed)
    count = round(seconds * rate)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum[np.fft.rfftfreq(count, 1 / rate) > 3000] = 0
    tone = np.fft.irfft(spectrum, count) * (1.1 + np.sin(np.arange(count) * 7 / rate))
    return (0.3 * tone / np.abs(tone).max()).astype(np.float32)


@pytest.mark.parametrize("size", [240, 241, 11_999, 12_000, 12_001, 50_123])
@pytest.mark.parametrize("shift", [0.0, -7.5])
def test_whole_and_in_blocks(
    pipeline: VoiceConversionPipeline, voice: np.ndarray, size: int, shift: float
) -> None:
    source = speech_like(3)[:size]
    made = pipeline.convert(source, voice, None, RATE, pitch_shift_semitones=shift)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected_conversion(source, 0.5, shift), atol=1e-5)


@pytest.mark.parametrize("size", [1000, 12_000, 50_123])
def test_given_f0_lies_over_its_frames(
    pipeline: VoiceConversionPipeline, voice: np.ndarray, size: int
) -> None:
    source = speech_like(3)[:size]
    f0 = np.random.default_rng(1).uniform(60, 1000, math.ceil(size / 240)).astype(np.float32)
    f0[::3] = 0
    made = pipeline.convert(source, voice, f0, RATE, pitch_shift_semitones=5.0, input_gain_db=0.0)
    np.testing.assert_allclose(made, expected_conversion(source, 0.5, 5.0, f0), atol=1e-5)


@given(
    rate=st.integers(8000, 192_000), output=st.none() | st.integers(8000, 192_000), share=st.floats(0.0, 1.0)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exactly_as_long_as_the_source(
    pipeline: VoiceConversionPipeline, voice: np.ndarray, rate: int, output: int | None, share: float
) -> None:
    size = math.ceil(rate / 100) + round(share * rate)
    source = np.full(size, 0.1, np.float32)
    made = pipeline.convert(source, voice, None, rate, output_sample_rate=output)
    expected = size if output is None else math.floor(size * output / rate + 0.5)
    assert made.size == expected
    middle = made[made.size // 3 : -made.size // 3]
    np.testing.assert_allclose(middle, 0.05, atol=0.03)  # no silence was put where audio was due


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_resampled_output_lies_over_its_input(
    pipeline: VoiceConversionPipeline, voice: np.ndarray, rate: int
) -> None:
    source = speech_like(2.2, rate)
    made = pipeline.convert(source, voice, None, rate)
    inner = slice(rate // 20, -rate // 20)
    np.testing.assert_allclose(made[inner], 0.5 * source[inner], atol=1e-4)
    doubled = pipeline.convert(source, voice, None, rate, output_sample_rate=RATE)
    at_model_rate = speech_like(2.2, RATE)
    assert doubled.size == at_model_rate.size


@pytest.mark.parametrize("rate", [8000, 24_000, 44_100])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_file_gives_the_samples_of_the_array(
    pipeline: VoiceConversionPipeline, voice: np.ndarray, tmp_path: Path, rate: int, suffix: str
) -> None:
    source = speech_like(3.3, rate)
    soundfile.write(tmp_path / f"in.{suffix}", source, rate, subtype="PCM_24")
    stored, _ = soundfile.read(tmp_path / f"in.{suffix}", dtype="float32")
    out = tmp_path / "out.wav"
    result = pipeline.convert_file(
        tmp_path / f"in.{suffix}",
        out,
        voice,
        pitch_shift_semitones="auto",
        output_sample_rate=16_000,
        subtype="FLOAT",
    )
    made, made_rate = soundfile.read(out, dtype="float32")
    expected = pipeline.convert(
        stored, voice, None, rate, output_sample_rate=16_000, pitch_shift_semitones="auto"
    )
    np.testing.assert_array_equal(made, expected)
    assert (made_rate, result.samples, result.sample_rate) == (16_000, expected.size, 16_000)
    assert result.profile.audio_duration_s == pytest.approx(3.3)


def test_the_same_input_twice_gives_identical_bytes(toy: Path, tmp_path: Path, voice: np.ndarray) -> None:
    source = speech_like(2, 44_100)
    outputs = []
    for number in range(2):
        with VoiceConversionPipeline(PipelineConfig(repository=toy)) as pipeline:
            embedding = pipeline.embed(source, 44_100)
            made = pipeline.convert(source, embedding, None, 44_100)
            path = tmp_path / f"{number}.wav"
            autovoice.write_audio(path, made, 44_100)
            outputs.append((embedding.tobytes(), made.tobytes(), path.read_bytes()))
    assert outputs[0] == outputs[1]


def test_stereo_and_int16_equal_their_mono_float(
    pipeline: VoiceConversionPipeline, voice: np.ndarray
) -> None:
    samples = (speech_like(1) * 32768).astype(np.int16)
    mono = pipeline.convert(samples.astype(np.float32) / 32768, voice, None, RATE)
    np.testing.assert_array_equal(pipeline.convert(samples, voice, None, RATE), mono)
    stereo = np.stack([samples, samples], axis=1)
    np.testing.assert_array_equal(pipeline.convert(stereo, voice, None, RATE), mono)


def test_channels_that_cancel_or_are_silent_leave_the_loudest(
    pipeline: VoiceConversionPipeline, voice: np.ndarray
) -> None:
    audio = speech_like(1.0)
    expected = pipeline.convert(audio, voice, None, RATE)
    for other, says in ((-0.9 * audio, "cancel each other"), (np.zeros_like(audio), "only channel 1 of 2")):
        stereo = np.stack([audio, other], axis=1)
        with pytest.warns(AudioFileWarning, match=f"source audio: .*{says}"):
            np.testing.assert_array_equal(pipeline.convert(stereo, voice, None, RATE), expected)
        with pytest.warns(AudioFileWarning, match=f"source audio 0: .*{says}"):
            (batched,) = pipeline.batch_convert([stereo], voice, None, RATE)
        np.testing.assert_allclose(batched, expected, atol=1e-4)
        with pytest.warns(AudioFileWarning, match=says):
            np.testing.assert_array_equal(pipeline.extract_f0(stereo, RATE), pipeline.extract_f0(audio, RATE))


def test_silence_converts_to_silence(pipeline: VoiceConversionPipeline, voice: np.ndarray) -> None:
    assert not pipeline.convert(
        np.zeros(30_000, np.float32), voice, None, RATE, pitch_shift_semitones="auto"
    ).any()


def test_auto_pitch_matches_the_medians(pipeline: VoiceConversionPipeline, voice: np.ndarray) -> None:
    source = speech_like(2)
    source *= np.float32(10 ** (usual_gain_db(level_of(source, RATE)) / 20))  # at which pitch is measured
    frames = 1000 * np.abs(source).reshape(-1, 240).mean(axis=1)
    assert pipeline.median_f0(source, RATE) == pytest.approx(np.median(frames), rel=1e-5)
    np.testing.assert_allclose(pipeline.extract_f0(source, RATE), frames, rtol=1e-4)
    to_given = pipeline.convert_detailed(
        source, voice, None, RATE, pitch_shift_semitones="auto", target_median_f0=60.0
    )
    assert to_given.pitch_shift_semitones == pytest.approx(12 * math.log2(60 / np.median(frames)), abs=1e-4)
    by_embedding = pipeline.convert_detailed(source, voice, None, RATE, pitch_shift_semitones="auto")
    expected = min(12 * math.log2(500 / np.median(frames)), 24.0)  # the toy's target_pitch is 1000 * 0.5 Hz
    assert by_embedding.pitch_shift_semitones == pytest.approx(expected, abs=1e-4)
    own = np.full(200, 120.0, np.float32)
    with_f0 = pipeline.convert_detailed(
        source, voice, own, RATE, pitch_shift_semitones="auto", target_median_f0=240.0
    )
    assert with_f0.pitch_shift_semitones == pytest.approx(12.0)


LENGTHS = [12_000, 11_000, 9_500, 240, 300, 8_000, 40_000, 11_999, 5_000]


@pytest.mark.parametrize("shift", [3.0, "auto"])
def test_a_batch_equals_its_single_conversions(
    toy: Path, voice: np.ndarray, shift: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = VoiceConversionPipeline(PipelineConfig(repository=toy, block_seconds=1.0))
    rates = [24_000, 16_000, 44_100, 8000, 24_000, 24_000, 24_000, 48_000, 22_050]
    sources = [speech_like(2, seed=seed)[:size] for seed, size in enumerate(LENGTHS)]
    voices = np.random.default_rng(2).uniform(0.1, 1, (len(LENGTHS), 4)).astype(np.float32)
    f0s: list[np.ndarray | None] = [None] * len(LENGTHS)
    f0s[1] = np.full(math.ceil(11_000 / 160), 200, np.float32)
    f0s[4] = np.full(2, 300, np.float32)
    sizes: list[int] = []
    infer = pipeline._engine.infer

    def count(model: str, inputs: Any, **rest: Any) -> Any:
        if model.startswith("voice_conversion"):
            sizes.append(len(inputs["SOURCE_AUDIO"]))
        return infer(model, inputs, **rest)

    monkeypatch.setattr(pipeline._engine, "infer", count)
    made = pipeline.batch_convert(
        sources, voices, f0s, rates, output_sample_rate=24_000, pitch_shift_semitones=shift
    )
    assert max(sizes) > 1  # really together
    for index, source in enumerate(sources):
        alone = pipeline.convert(
            source,
            voices[index],
            f0s[index],
            rates[index],
            output_sample_rate=24_000,
            pitch_shift_semitones=shift,
        )
        assert made[index].size == alone.size
        np.testing.assert_allclose(made[index], alone, atol=1e-4)
    one_voice = pipeline.batch_convert(sources[:2], voice, source_sample_rates=RATE)
    np.testing.assert_allclose(one_voice[1], pipeline.convert(sources[1], voice, None, RATE), atol=1e-4)
    assert pipeline.batch_convert([], voice) == []


@given(lengths=st.lists(st.integers(240, 240_000), max_size=40), seed=st.integers(0, 9))
def test_buckets_hold_everything_once_within_their_bounds(lengths: list[int], seed: int) -> None:
    voice = BaseVoice("toy", "voice_conversion", 24_000, 24_000, 240, 16, 600, 4, 2, 1)
    models = np.random.default_rng(seed).choice(["plain", "with_f0"], len(lengths)).tolist()
    buckets = make_buckets(lengths, voice, models)
    assert sorted(position for bucket in buckets for position in bucket) == list(range(len(lengths)))
    for bucket in buckets:
        longest = max(lengths[position] for position in bucket)
        assert len(bucket) <= 16
        assert len(bucket) == 1 or longest * len(bucket) <= 60 * 24_000
        assert all(lengths[position] >= 0.75 * longest for position in bucket)
        assert len({models[position] for position in bucket}) == 1


def test_batch_refusals_name_the_item_and_convert_nothing(
    pipeline: VoiceConversionPipeline, voice: np.ndarray
) -> None:
    good = speech_like(0.1)
    with pytest.raises(AudioInputError, match="source audio 1 holds nan"):
        pipeline.batch_convert([good, np.full(300, np.nan)], voice)
    with pytest.raises(AudioInputError, match="source_sample_rates has 1 entries for 2 sources"):
        pipeline.batch_convert([good, good], voice, source_sample_rates=[RATE])
    with pytest.raises(AudioInputError, match="target_embeddings has 3 entries for 2 sources"):
        pipeline.batch_convert([good, good], [voice] * 3)
    with pytest.raises(EmbeddingError):
        pipeline.batch_convert([good])
    assert pipeline.stats.succeeded == 0


BAD_CALLS: list[tuple[dict[str, Any], type[VoiceConversionError], str]] = [
    ({"source_audio": np.zeros(0)}, AudioInputError, "is empty"),
    ({"source_audio": np.full(500, np.inf)}, AudioInputError, "inf at sample 0"),
    ({"source_audio": np.zeros((3, 4, 5))}, AudioInputError, "rank 3"),
    ({"source_audio": np.full(500, 70_000)}, AudioInputError, "16-bit range"),
    ({"source_audio": np.zeros(239)}, AudioInputError, "239 samples .9.96 ms at 24000 Hz.*at least 240"),
    ({"source_sample_rate": 7}, SampleRateError, "is 7 Hz"),
    ({"source_sample_rate": 10**7}, SampleRateError, "is 10000000 Hz"),
    ({"output_sample_rate": 900_000}, SampleRateError, "output sample rate is 900000"),
    ({"target_embedding": np.ones(5)}, EmbeddingError, r"shape \(5,\); this repository takes \(4,\)"),
    ({"target_embedding": np.zeros(4)}, EmbeddingError, "names no voice"),
    ({"target_embedding": [1, 2, np.nan, 4]}, EmbeddingError, "nan at index 2"),
    ({"target_embedding": "slt"}, EmbeddingError, "not an array of numbers"),
    ({"target_embedding": None}, EmbeddingError, "is missing"),
    ({"pitch_shift_semitones": 24.5}, PitchError, "is 24.5 semitones"),
    ({"pitch_shift_semitones": -25}, PitchError, "is -25 semitones"),
    ({"pitch_shift_semitones": float("nan")}, PitchError, "is nan"),
    ({"pitch_shift_semitones": "up"}, PitchError, "'up'"),
    ({"source_f0": np.zeros(9)}, PitchError, r"shape \(9,\), but 2400 samples at 24000 Hz have 10 frames"),
    ({"source_f0": np.full(10, 49.0)}, PitchError, "49.0 Hz at frame 0"),
    ({"source_f0": np.full(10, -1.0)}, PitchError, "-1.0 Hz at frame 0"),
    ({"source_f0": np.full(10, np.nan)}, PitchError, "nan Hz at frame 0"),
    ({"source_f0": ["a"] * 10}, PitchError, "not an array of numbers"),
    ({"target_median_f0": -3.0}, PitchError, "target_median_f0 is -3.0"),
]


@pytest.mark.parametrize(("change", "error", "says"), BAD_CALLS)
def test_bad_calls(
    pipeline: VoiceConversionPipeline,
    voice: np.ndarray,
    change: dict[str, Any],
    error: type[VoiceConversionError],
    says: str,
) -> None:
    call = {"source_audio": np.zeros(2400), "target_embedding": voice, "source_sample_rate": RATE, **change}
    with pytest.raises(error, match=says) as refusal:
        pipeline.convert(**call)
    assert refusal.value.exit_code == 2
    assert "\n" not in str(refusal.value)
    assert (pipeline.stats.total, pipeline.stats.failed) == (1, 1)


def test_bad_files_leave_no_output(
    pipeline: VoiceConversionPipeline, voice: np.ndarray, tmp_path: Path
) -> None:
    source, short, late = tmp_path / "in.wav", tmp_path / "short.wav", tmp_path / "late.wav"
    soundfile.write(source, speech_like(2), RATE)
    soundfile.write(short, np.zeros(100), RATE)
    samples = speech_like(2)
    samples[-10] = np.nan
    soundfile.write(late, samples, RATE, subtype="FLOAT")
    before = sorted(tmp_path.iterdir())
    cases: list[tuple[Path, Path, type[VoiceConversionError]]] = [
        (tmp_path / "none.wav", tmp_path / "out.wav", AudioFileError),
        (tmp_path, tmp_path / "out.wav", AudioFileError),
        (short, tmp_path / "out.wav", AudioInputError),
        (late, tmp_path / "out.wav", AudioInputError),  # noticed after most of the output was written
        (source, tmp_path / "none" / "out.wav", OutputError),
        (source, tmp_path / "out.doc", OutputError),
    ]
    for given_path, out, error in cases:
        with pytest.raises(error):
            pipeline.convert_file(given_path, out, voice)
        assert sorted(tmp_path.iterdir()) == before
    pipeline.convert_file(source, source, voice)  # in place is fine: the source is read before it is replaced
    np.testing.assert_allclose(soundfile.read(source)[0], 0.5 * speech_like(2), atol=1e-4)


def test_progress_names_stages_and_grows_to_one(pipeline: VoiceConversionPipeline, voice: np.ndarray) -> None:
    seen: list[Progress] = []
    pipeline.convert(speech_like(2.1, 48_000), voice, None, 48_000, progress_callback=seen.append)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {"resample", "pitch_extractor_stream", "delay_stream", "synthesizer_stream", "finish"} == {
        p.stage for p in seen
    }
    assert {progress.chunks for progress in seen} == {5}
    assert {progress.chunk for progress in seen} == {1, 2, 3, 4, 5}
    seen.clear()
    pipeline.batch_convert(
        [speech_like(0.2), speech_like(0.4)], voice, source_sample_rates=RATE, progress_callback=seen.append
    )
    assert seen[-1] == Progress("finish", 2, 2, 1.0)


def test_profile_adds_up(pipeline: VoiceConversionPipeline, voice: np.ndarray) -> None:
    profile = pipeline.profile_conversion(speech_like(2, 48_000), voice, None, 48_000)
    assert profile.audio_duration_s == 2.0
    assert profile.rtf == pytest.approx(profile.total_ms / 2000)
    assert profile.throughput_samples_per_sec == pytest.approx(96_000 / (profile.total_ms / 1e3))
    assert 0 < sum(profile.stages.values()) <= profile.total_ms
    assert profile.device == "cpu"
    assert json.loads(json.dumps(profile.to_dict()))["stages"].keys() == profile.stages.keys()


def test_stats_count_conversions(
    pipeline: VoiceConversionPipeline, voice: np.ndarray, tmp_path: Path
) -> None:
    source = speech_like(1)
    pipeline.convert(source, voice, None, RATE)
    pipeline.batch_convert([source, source], voice, source_sample_rates=RATE)
    autovoice.write_audio(tmp_path / "in.wav", source, RATE)
    pipeline.convert_file(tmp_path / "in.wav", tmp_path / "out.wav", voice)
    with pipeline.stream(voice) as stream:
        stream.push(source)
        stream.flush()
    with pytest.raises(EmbeddingError):
        pipeline.convert(source, voice[:2], None, RATE)
    pipeline.warmup()
    stats = pipeline.stats
    assert (stats.total, stats.succeeded, stats.failed) == (6, 5, 1)
    assert stats.audio_seconds == pytest.approx(5.0)
    assert stats.device_use == {"cpu": 5}
    assert stats.average_ms > 0
    json.dumps(stats.to_dict())


def test_embed_looks_at_content_and_is_cached_by_it(
    pipeline: VoiceConversionPipeline, tmp_path: Path
) -> None:
    loud, quiet, other = speech_like(1), 0.5 * speech_like(1), speech_like(1, seed=1) ** 3
    first = pipeline.embed(loud, RATE)
    assert np.linalg.norm(first) == pytest.approx(1.0, abs=1e-6)
    assert first[0] != pipeline.embed(other, RATE)[0]
    np.testing.assert_allclose(pipeline.embed(quiet, RATE), first, atol=1e-5)
    assert pipeline.embed(loud, 16_000) is not first
    again = pipeline.embed(loud, RATE)
    again[:] = 0  # a caller may scribble on what it got
    np.testing.assert_array_equal(pipeline.embed(loud, RATE), first)
    soundfile.write(tmp_path / "reference.wav", loud, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(pipeline.embed_file(tmp_path / "reference.wav"), first)


def test_embed_joins_long_references_and_skips_silence(pipeline: VoiceConversionPipeline) -> None:
    speech = speech_like(45)
    found = pipeline.embed(speech, RATE)
    segments = [pipeline.embed(speech[: 30 * RATE], RATE), pipeline.embed(speech[30 * RATE :], RATE)]
    np.testing.assert_allclose(found, pipeline.join_embeddings(segments, [30, 15]), atol=1e-2)
    silence = np.zeros(30 * RATE, np.float32)
    with_silence = np.concatenate([silence, speech, silence])
    np.testing.assert_allclose(pipeline.embed(with_silence, RATE), found, atol=1e-4)


def test_embed_refusals(pipeline: VoiceConversionPipeline, tmp_path: Path) -> None:
    with pytest.raises(AudioInputError, match="reference audio is silent"):
        pipeline.embed(np.zeros(RATE), RATE)
    with pytest.raises(AudioInputError, match="less than one frame"):
        pipeline.embed(np.ones(10), RATE)
    with pytest.raises(AudioFileError, match="does not exist"):
        pipeline.embed_file(tmp_path / "none.wav")


def test_only_the_direction_of_an_embedding_counts(
    pipeline: VoiceConversionPipeline, voice: np.ndarray
) -> None:
    source = speech_like(0.5)
    made = pipeline.convert(source, voice, None, RATE)
    np.testing.assert_array_equal(pipeline.convert(source, (7 * voice)[np.newaxis], None, RATE), made)


def test_threads_share_a_pipeline(pipeline: VoiceConversionPipeline) -> None:
    def convert(seed: int) -> None:
        source = speech_like(1.7, seed=seed)
        embedding = np.random.default_rng(seed).uniform(0.1, 1, 4)
        made = pipeline.convert(source, embedding, None, RATE, pitch_shift_semitones=seed - 8.0)
        gain = embedding[0] / np.linalg.norm(embedding)
        np.testing.assert_allclose(made, expected_conversion(source, gain, seed - 8.0), atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(convert, range(16)))
    assert pipeline.stats.succeeded == 16


def test_a_closed_pipeline_says_so(toy: Path, voice: np.ndarray) -> None:
    with VoiceConversionPipeline(PipelineConfig(repository=toy)) as pipeline:
        pass
    for call in (
        lambda: pipeline.convert(speech_like(1), voice),
        lambda: pipeline.stream(voice),
        pipeline.warmup,
    ):
        with pytest.raises(StreamClosedError, match="closed"):
            call()


def test_an_engine_can_be_passed_in(toy: Path, voice: np.ndarray) -> None:
    from autovoice.engines.local import LocalEngine
    from autovoice.repository.reader import ModelRepository

    with VoiceConversionPipeline(engine=LocalEngine(ModelRepository(toy))) as pipeline:
        assert pipeline.repository is None
        np.testing.assert_allclose(pipeline.convert(np.ones(480), voice, None, RATE), 0.5, atol=1e-6)


def test_public_names_exist_and_the_version_is_the_package_s() -> None:
    assert all(hasattr(autovoice, name) for name in autovoice.__all__)
    assert autovoice.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="nonsense"):
        _ = autovoice.nonsense  # type: ignore[attr-defined]
