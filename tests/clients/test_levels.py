"""The result does not depend on how loud a recording is, nor a voice on the silence in its reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.audio.levels import FollowedGain, level_of, usual_gain_db
from autovoice.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
SOURCE, RATE = soundfile.read(ROOT / "demo" / "source_rms.flac", dtype="float32", stop=3 * 16_000)
TARGET, _ = soundfile.read(ROOT / "demo" / "target_slt.flac", dtype="float32")


@pytest.fixture(scope="module")
def pipeline(repository: Path) -> VoiceConversionPipeline:
    return VoiceConversionPipeline(PipelineConfig(repository=repository, threads=1))


@pytest.fixture(scope="module")
def voice(pipeline: VoiceConversionPipeline) -> np.ndarray:
    return pipeline.embed(TARGET, RATE)


@pytest.fixture(scope="module")
def usual(pipeline: VoiceConversionPipeline, voice: np.ndarray) -> np.ndarray:
    return pipeline.convert(SOURCE, voice, None, RATE)


def error_db(made: np.ndarray, expected: np.ndarray) -> float:
    return float(10 * np.log10(np.square(made - expected).mean() / np.square(expected).mean()))


@pytest.mark.parametrize("gain_db", [-50, -20, 20])
def test_a_conversion_is_the_same_at_any_level(
    gain_db: float, pipeline: VoiceConversionPipeline, voice: np.ndarray, usual: np.ndarray
) -> None:
    gain = 10 ** (gain_db / 20)
    made = pipeline.convert(gain * SOURCE, voice, None, RATE)
    assert error_db(made / gain, usual) < -60
    (batched,) = pipeline.batch_convert([gain * SOURCE], voice, None, RATE)
    assert error_db(batched, made) < -60
    f0 = pipeline.extract_f0(SOURCE, RATE)
    assert (f0 > 0).mean() > 0.2
    np.testing.assert_allclose(pipeline.extract_f0(gain * SOURCE, RATE), f0, atol=0.01)


def test_files_beyond_full_scale_and_in_few_bits(
    pipeline: VoiceConversionPipeline, voice: np.ndarray, usual: np.ndarray, tmp_path: Path
) -> None:
    source = 9 / np.abs(SOURCE).max() * SOURCE
    soundfile.write(tmp_path / "loud.wav", source, RATE, subtype="FLOAT")
    result = pipeline.convert_file(tmp_path / "loud.wav", tmp_path / "out.wav", voice)
    assert len(result.warnings) == 1
    made, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert 0.98 < np.abs(made).max() < 1.0
    assert error_db(made / np.abs(made).max() * np.abs(usual).max(), usual) < -50
    soundfile.write(tmp_path / "quiet.wav", 0.01 * SOURCE, RATE, subtype="PCM_16")
    pipeline.convert_file(tmp_path / "quiet.wav", tmp_path / "quiet_out.wav", voice, subtype="FLOAT")
    made, _ = soundfile.read(tmp_path / "quiet_out.wav", dtype="float32")
    identity = pipeline.similarity(pipeline.embed(made, RATE), pipeline.embed(usual, RATE))
    assert identity > 0.97
    assert abs(20 * np.log10(level_of(made, RATE) / (0.01 * level_of(usual, RATE)))) < 1


def test_a_stream_with_the_same_gain_equals_the_whole(
    pipeline: VoiceConversionPipeline, voice: np.ndarray, usual: np.ndarray
) -> None:
    gain_db = usual_gain_db(level_of(SOURCE, RATE))
    assert abs(gain_db) > 1
    for options, expected in (({"input_gain_db": gain_db}, usual), ({}, None)):
        with pipeline.stream(voice, sample_rate=RATE, **options) as stream:
            parts = [stream.push(chunk) for chunk in np.split(SOURCE, range(333, SOURCE.size, 333))]
            made = np.concatenate([*parts, stream.flush()])
        if expected is None:
            expected = pipeline.convert(SOURCE, voice, None, RATE, input_gain_db=0.0)
        np.testing.assert_allclose(made, expected, atol=1e-4)


def test_an_automatic_gain_brings_a_quiet_stream_to_the_voice(
    pipeline: VoiceConversionPipeline, voice: np.ndarray, usual: np.ndarray
) -> None:
    quiet = np.float32(0.003) * SOURCE
    reference = pipeline.embed(usual, RATE)
    similarities = []
    for gain in ("auto", 0.0):
        with pipeline.stream(voice, sample_rate=RATE, input_gain_db=gain) as stream:
            made = np.concatenate([stream.push(quiet), stream.flush()])
        assert made.size == quiet.size
        similarities.append(pipeline.similarity(pipeline.embed(made, RATE), reference))
    assert similarities[0] > 0.95
    assert similarities[0] > similarities[1] + 0.05
    assert abs(20 * np.log10(level_of(made, RATE) / (0.003 * level_of(usual, RATE)))) < 6


@pytest.mark.parametrize("output_rate", [16_000, 24_000, 11_025])
def test_a_followed_gain_is_causal_the_same_in_any_chunks_and_taken_back(output_rate: int) -> None:
    def follow(audio: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        gain = FollowedGain(RATE, output_rate)
        made, back = [], []
        for start in range(0, audio.size, size):
            made.append(gain.apply(audio[start : start + size]))
            first, last = start * output_rate // RATE, min(start + size, audio.size) * output_rate // RATE
            back.append(gain.restore(np.ones(last - first, np.float32)))
        return np.concatenate(made), np.concatenate(back)

    quiet = np.float32(0.003) * SOURCE
    made, back = follow(quiet, quiet.size)
    for size in (1600, 77):
        again, restored = follow(quiet, size)
        np.testing.assert_allclose(again, made, rtol=1e-5)
        np.testing.assert_allclose(restored, back, rtol=1e-5)
    changed = quiet.copy()
    changed[RATE:] *= 100
    np.testing.assert_array_equal(follow(changed, 500)[0][:RATE], follow(quiet, 500)[0][:RATE])
    if output_rate == RATE:
        np.testing.assert_allclose(made * back, quiet, rtol=1e-4, atol=1e-9)
    loud = level_of(made[RATE:], RATE)
    assert abs(usual_gain_db(loud)) < 4


def test_gains_that_there_are_not(pipeline: VoiceConversionPipeline, voice: np.ndarray) -> None:
    for gain in ("loud", None, True, 81.0, float("nan")):
        with pytest.raises(ConfigurationError, match="input gain is"):
            pipeline.convert(SOURCE, voice, None, RATE, input_gain_db=gain)
        with pytest.raises(ConfigurationError, match="input gain is"):
            pipeline.stream(voice, input_gain_db=gain)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def hum(seconds: float, frequency: float) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return (level_of(TARGET, RATE) * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


REFERENCES = {
    "silence around": lambda: [silence(30), TARGET, silence(30)],
    "silence of any length before": lambda: [silence(29.0037), TARGET],
    "noise behind": lambda: [TARGET, np.random.default_rng(0).normal(0, 1e-4, 30 * RATE)],
    "hum before": lambda: [hum(3, 50), TARGET],
    "higher hum before": lambda: [hum(3, 60), TARGET],
    "quiet": lambda: [0.003 * TARGET],
    "loud": lambda: [10 * TARGET],
}


@pytest.mark.parametrize("name", REFERENCES)
def test_what_is_no_speech_in_a_reference_changes_nothing(
    name: str, pipeline: VoiceConversionPipeline, voice: np.ndarray
) -> None:
    reference = np.concatenate(REFERENCES[name]()).astype(np.float32)
    assert float(pipeline.embed(reference, RATE) @ voice) > 0.98
    interval = 12 * np.log2(pipeline.median_f0(reference, RATE) / pipeline.median_f0(TARGET, RATE))
    assert abs(interval) < 0.1


def test_pauses_in_a_reference_change_little(pipeline: VoiceConversionPipeline, voice: np.ndarray) -> None:
    parts = [part for piece in np.array_split(TARGET, 6) for part in (piece, silence(1.237))]
    reference = np.concatenate(parts)
    assert pipeline.similarity(pipeline.embed(reference, RATE), voice) > 0.98
    interval = 12 * np.log2(pipeline.median_f0(reference, RATE) / pipeline.median_f0(TARGET, RATE))
    assert abs(interval) < 0.1
