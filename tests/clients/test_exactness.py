"""The shipped voice: one graph, four uses (whole, live, in blocks, in batches), the same samples."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.engines.local import check_repository
from autovoice.repository.reader import ModelRepository

RATE = 24_000
TOLERANCE = 1e-4  # of full scale
MINUTE_SECONDS = 62
GAIN_DB = -4.5


def voice_like(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Glides of a buzz, breath, pauses and a click: voiced, unvoiced and silent stretches in turn."""
    rng = np.random.default_rng(seed)
    count = round(seconds * rate)
    time = np.arange(count) / rate
    f0 = 160 * 2 ** (0.7 * np.sin(2 * np.pi * 0.31 * time) + 0.1 * np.sin(2 * np.pi * 5 * time))
    phase = 2 * np.pi * np.cumsum(f0) / rate
    buzz = sum(np.cos(harmonic * phase) / harmonic for harmonic in range(1, 16))
    envelope = np.clip(np.sin(2 * np.pi * 0.9 * time + 0.5), 0, None)
    breath = rng.standard_normal(count) * (0.02 + 0.1 * (np.sin(2 * np.pi * 1.7 * time) > 0.8))
    audio = 0.1 * buzz * envelope + 0.3 * breath * (np.sin(2 * np.pi * 0.13 * time) > -0.9)
    audio[count // 2] = 0.9
    return np.clip(audio, -1, 1).astype(np.float32)


@pytest.fixture(scope="module")
def pipeline(repository: Path) -> VoiceConversionPipeline:
    return VoiceConversionPipeline(PipelineConfig(repository=repository, threads=1))


@pytest.fixture(scope="module")
def speaker(pipeline: VoiceConversionPipeline) -> np.ndarray:
    return pipeline.embed(voice_like(4, 16_000, seed=9), 16_000)


@pytest.fixture(scope="module")
def minute() -> np.ndarray:
    return voice_like(MINUTE_SECONDS)


@pytest.fixture(scope="module")
def whole(repository: Path, minute: np.ndarray, speaker: np.ndarray) -> np.ndarray:
    """The minute in one request to the offline ensemble."""
    config = PipelineConfig(repository=repository, block_seconds=MINUTE_SECONDS + 1, threads=1)
    seen: list[str] = []
    with VoiceConversionPipeline(config) as pipeline:
        made = pipeline.convert(
            minute,
            speaker,
            None,
            RATE,
            output_sample_rate=None,
            pitch_shift_semitones=3.0,
            input_gain_db=GAIN_DB,
            progress_callback=lambda progress: seen.append(progress.stage),
        )
    assert "content_encoder" in seen
    assert "content_encoder_stream" not in seen
    return made


def test_the_repository_holds_together(repository: Path) -> None:
    check_repository(ModelRepository(repository))


def test_a_minute_in_blocks_equals_the_whole(
    pipeline: VoiceConversionPipeline, minute: np.ndarray, speaker: np.ndarray, whole: np.ndarray
) -> None:
    assert np.sqrt(np.mean(whole**2)) > 1e-3  # something was said
    made = pipeline.convert(minute, speaker, None, RATE, pitch_shift_semitones=3.0, input_gain_db=GAIN_DB)
    np.testing.assert_allclose(made, whole, atol=TOLERANCE)


def test_a_minute_of_uneven_chunks_equals_the_whole(
    pipeline: VoiceConversionPipeline, minute: np.ndarray, speaker: np.ndarray, whole: np.ndarray
) -> None:
    rng = np.random.default_rng(4)
    with pipeline.stream(speaker, pitch_shift_semitones=3.0, input_gain_db=GAIN_DB) as stream:
        parts, position = [], 0
        while position < minute.size:
            size = int(rng.integers(RATE // 1000, RATE * 400 // 1000 + 1))
            parts.append(stream.push(minute[position : position + size]))
            position += size
        parts.append(stream.flush())
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=TOLERANCE)


@given(
    chunk_ms=st.lists(st.integers(1, 400), min_size=1, max_size=20),
    start=st.integers(0, 50 * RATE),
    size=st.integers(1, 3 * RATE),
    shift=st.sampled_from([-24.0, -3.3, 0.0, 12.0, 24.0]),
    gain_db=st.sampled_from([-20.0, 0.0, 7.5]),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_chunking_equals_offline(
    pipeline: VoiceConversionPipeline,
    minute: np.ndarray,
    speaker: np.ndarray,
    chunk_ms: list[int],
    start: int,
    size: int,
    shift: float,
    gain_db: float,
) -> None:
    source = minute[start : start + max(size, 240)]
    with pipeline.stream(speaker, pitch_shift_semitones=shift, input_gain_db=gain_db) as stream:
        parts, position, turn = [], 0, 0
        while position < source.size:
            step = chunk_ms[turn % len(chunk_ms)] * RATE // 1000
            parts.append(stream.push(source[position : position + step]))
            position += step
            turn += 1
        parts.append(stream.flush())
    offline = pipeline.convert(
        source, speaker, None, RATE, pitch_shift_semitones=shift, input_gain_db=gain_db
    )
    np.testing.assert_allclose(np.concatenate(parts), offline, atol=TOLERANCE)


def test_a_padded_batch_equals_its_single_conversions(
    pipeline: VoiceConversionPipeline, minute: np.ndarray
) -> None:
    rates = [RATE, 16_000, RATE, 44_100, RATE, RATE]
    sources = [
        voice_like(s, r, seed=i)
        for i, (s, r) in enumerate(zip([2, 1.9, 1.7, 2.1, 0.4, 0.31], rates, strict=True))
    ]
    voices = np.stack([pipeline.embed(voice_like(2, RATE, seed=10 + i), RATE) for i in range(len(sources))])
    f0s = [None, None, None, None, None, np.full(31, 150.0)]
    made = pipeline.batch_convert(sources, voices, f0s, rates, pitch_shift_semitones=-2.0)
    for index, source in enumerate(sources):
        alone = pipeline.convert(source, voices[index], f0s[index], rates[index], pitch_shift_semitones=-2.0)
        np.testing.assert_allclose(made[index], alone, atol=TOLERANCE)


def test_the_model_s_own_f0_given_back_changes_nothing(
    pipeline: VoiceConversionPipeline, minute: np.ndarray, speaker: np.ndarray
) -> None:
    """Holds only when both ensembles, whole and streamed, put frame g of F0 where the extractor does."""
    for size in (5 * RATE + 77, 23 * RATE + 5):
        # Silence at both ends: a given track says nothing of the frames before and after its source.
        source = np.pad(minute[:size], RATE // 10)
        f0 = pipeline.extract_f0(source, RATE)
        assert f0.size == math.ceil(source.size / 240)
        assert (f0 > 0).mean() > 0.2
        own = pipeline.convert(source, speaker, f0, RATE)
        np.testing.assert_allclose(own, pipeline.convert(source, speaker, None, RATE), atol=TOLERANCE)
        late = np.concatenate(([0], f0[:-1]))
        assert np.abs(pipeline.convert(source, speaker, late, RATE) - own).max() > 0.01


@pytest.mark.parametrize(
    "rate", [8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000]
)
def test_as_long_as_the_source_at_every_rate(
    pipeline: VoiceConversionPipeline, speaker: np.ndarray, rate: int
) -> None:
    for size in (math.ceil(rate / 100), rate // 3 + 1):
        assert pipeline.convert(voice_like(1, rate)[:size], speaker, None, rate).size == size


def test_embed_then_convert_gives_identical_bytes(repository: Path) -> None:
    reference, source = voice_like(3, 44_100, seed=2), voice_like(2, 44_100, seed=3)
    outputs = []
    for _ in range(2):
        with VoiceConversionPipeline(PipelineConfig(repository=repository)) as pipeline:
            embedding = pipeline.embed(reference, 44_100)
            made = pipeline.convert(source, embedding, None, 44_100, pitch_shift_semitones="auto")
            outputs.append((embedding.tobytes(), made.tobytes()))
    assert outputs[0] == outputs[1]


def test_silence_converts_to_silence(pipeline: VoiceConversionPipeline, speaker: np.ndarray) -> None:
    made = pipeline.convert(np.zeros(2 * RATE, np.float32), speaker, None, RATE, pitch_shift_semitones="auto")
    assert np.abs(made).max() < 1e-4  # -80 dB of full scale


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.3, 1.0])
def test_short_references_name_a_voice(pipeline: VoiceConversionPipeline, seconds: float) -> None:
    reference = voice_like(4, seed=9)[RATE:]
    embedding = pipeline.embed(reference[: round(seconds * RATE)], RATE)
    assert embedding.shape == (pipeline.embedding_size,)
    assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-5)
    if seconds >= 0.3:
        assert pipeline.similarity(embedding, pipeline.embed(reference, RATE)) > 0.6
