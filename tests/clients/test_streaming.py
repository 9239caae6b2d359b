"""Live streams: any chunking gives the samples of the whole at any rates; ended streams leave no state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_repository import expected_conversion

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.errors import (
    AudioInputError,
    ConfigurationError,
    EmbeddingError,
    PitchError,
    SampleRateError,
    StreamClosedError,
)

RATE = 24_000
FIXTURES = [HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def pipeline(toy: Path) -> VoiceConversionPipeline:
    return VoiceConversionPipeline(PipelineConfig(repository=toy, block_seconds=1.0))


@pytest.fixture(scope="module")
def at_once(toy: Path) -> VoiceConversionPipeline:
    """Takes the offline ensemble where `pipeline` goes through blocks."""
    return VoiceConversionPipeline(PipelineConfig(repository=toy, block_seconds=10.0))


def stream_through(
    pipeline: VoiceConversionPipeline, source: np.ndarray, chunks: list[int], voice: np.ndarray, **how: Any
) -> np.ndarray:
    with pipeline.stream(voice, **how) as stream:
        parts, position, turn = [], 0, 0
        while position < source.size:
            size = chunks[turn % len(chunks)]
            parts.append(stream.push(source[position : position + size]))
            position += size
            turn += 1
        parts.append(stream.flush())
        assert stream.samples_out == sum(part.size for part in parts)
        return np.concatenate(parts)


@given(chunks=st.lists(st.integers(24, 9600), min_size=1, max_size=30), size=st.integers(0, 40_000))
@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURES)
def test_any_chunking_is_the_whole(
    pipeline: VoiceConversionPipeline, voice: np.ndarray, chunks: list[int], size: int
) -> None:
    source = np.random.default_rng(size).uniform(-0.5, 0.5, size).astype(np.float32)
    made = stream_through(pipeline, source, chunks, voice, pitch_shift_semitones=4.0)
    assert made.size == size
    if size:
        np.testing.assert_allclose(made, expected_conversion(source, 0.5, 4.0), atol=1e-5)


@given(
    rate=st.sampled_from([8000, 16_000, 44_100, 48_000, 192_000]),
    output=st.sampled_from([None, 8000, 24_000, 44_100]),
    chunk_ms=st.lists(st.integers(1, 400), min_size=1, max_size=10),
)
@settings(max_examples=25, deadline=None, suppress_health_check=FIXTURES)
def test_any_rates_are_those_of_convert(
    pipeline: VoiceConversionPipeline,
    at_once: VoiceConversionPipeline,
    voice: np.ndarray,
    rate: int,
    output: int | None,
    chunk_ms: list[int],
) -> None:
    source = np.random.default_rng(rate).uniform(-0.5, 0.5, int(1.373 * rate)).astype(np.float32)
    chunks = [milliseconds * rate // 1000 for milliseconds in chunk_ms]
    how: dict[str, Any] = {"sample_rate": rate, "output_sample_rate": output, "pitch_shift_semitones": 4.0}
    made = stream_through(pipeline, source, chunks, voice, **how)
    # What lies beyond the end of the source must not ring back into the last samples through the resampler.
    for offline in (pipeline, at_once):
        expected = offline.convert(
            source, voice, None, rate, output_sample_rate=output, pitch_shift_semitones=4.0
        )
        np.testing.assert_allclose(made, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("rate", "quality"), [(24_000, "HQ"), (48_000, "HQ"), (48_000, "LQ"), (16_000, "HQ")]
)
def test_output_never_trails_by_more_than_the_stated_latency(
    pipeline: VoiceConversionPipeline, voice: np.ndarray, rate: int, quality: Any
) -> None:
    with pipeline.stream(voice, sample_rate=rate, resampling_quality=quality) as stream:
        worst = 0.0
        for _ in range(1000):
            stream.push(np.zeros(rate // 1000, np.float32))
            worst = max(worst, (stream.samples_in - stream.samples_out) / rate)
        assert worst <= stream.latency_seconds
        assert worst >= 0.034
    if rate == RATE:
        assert stream.latency_seconds == pytest.approx(0.035)


def test_streams_side_by_side_do_not_mix(pipeline: VoiceConversionPipeline, voice: np.ndarray) -> None:
    sources = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 12_000)).astype(np.float32)
    streams = [pipeline.stream(voice, pitch_shift_semitones=float(number)) for number in range(3)]
    parts: list[list[np.ndarray]] = [[], [], []]
    for start in range(0, 12_000, 700):
        for number, stream in enumerate(streams):
            parts[number].append(stream.push(sources[number, start : start + 700]))
    for number, stream in enumerate(streams):
        made = np.concatenate([*parts[number], stream.flush()])
        np.testing.assert_allclose(made, expected_conversion(sources[number], 0.5, number), atol=1e-5)


def test_states_are_let_go_at_flush_and_at_close(toy: Path, voice: np.ndarray) -> None:
    from autovoice.engines.local import LocalEngine
    from autovoice.repository.reader import ModelRepository

    engine = LocalEngine(ModelRepository(toy))
    pipeline = VoiceConversionPipeline(engine=engine)
    flushed, closed = pipeline.stream(voice), pipeline.stream(voice)
    for stream in (flushed, closed):
        stream.push(np.ones(2400, np.float32))
    assert len(engine.sequences) == 2
    flushed.flush()
    assert len(engine.sequences) == 1
    closed.close()
    closed.close()
    assert len(engine.sequences) == 0
    pipeline.stream(voice).close()  # never started


def test_use_after_the_end(pipeline: VoiceConversionPipeline, voice: np.ndarray) -> None:
    stream = pipeline.stream(voice)
    assert stream.push([]).size == 0
    assert stream.flush().size == 0
    with pytest.raises(StreamClosedError, match="flushed or closed"):
        stream.push(np.zeros(240, np.float32))
    with pytest.raises(StreamClosedError):
        stream.flush()


def test_a_bad_chunk_is_refused_and_the_stream_goes_on(
    pipeline: VoiceConversionPipeline, voice: np.ndarray
) -> None:
    source = np.random.default_rng(0).uniform(-0.5, 0.5, 4800).astype(np.float32)
    stream = pipeline.stream(voice)
    parts = [stream.push(source[:1000])]
    with pytest.raises(AudioInputError, match="stream chunk holds nan"):
        stream.push(np.full(100, np.nan))
    parts += [stream.push((source[1000:] * 32768).astype(np.int16)), stream.flush()]
    np.testing.assert_allclose(np.concatenate(parts), 0.5 * source, atol=1e-4)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"sample_rate": 100}, SampleRateError),
        ({"output_sample_rate": 10**6}, SampleRateError),
        ({"pitch_shift_semitones": 30.0}, PitchError),
        ({"pitch_shift_semitones": "auto"}, PitchError),
        ({"resampling_quality": "VHQ"}, ConfigurationError),
        ({"target_embedding": np.zeros(4)}, EmbeddingError),
    ],
)
def test_refusals(
    pipeline: VoiceConversionPipeline, voice: np.ndarray, how: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        pipeline.stream(**{"target_embedding": voice, **how})


@pytest.mark.parametrize("channels", [2, 6])
@settings(max_examples=40, suppress_health_check=FIXTURES)
@given(data=st.data())
def test_chunks_of_any_layout_and_length_are_the_same_source(
    toy: Path, channels: int, data: st.DataObject
) -> None:
    """A chunk of one frame of several channels is one sample, not several: nothing before it says so."""
    layout = data.draw(st.sampled_from(["frames first", "channels first"]))
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 7, 240, 481]), min_size=1, max_size=12))
    if layout == "channels first":  # a few samples that come first are taken for [frames, channels]
        sizes = [480, *sizes]
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (sum(sizes), channels)).astype(np.float32)
    voice = np.full(4, 0.5, np.float32)
    with VoiceConversionPipeline(PipelineConfig(repository=toy)) as pipeline:
        plain, layered = pipeline.stream(voice), pipeline.stream(voice)
        expected = np.concatenate([plain.push(samples.mean(axis=1, dtype=np.float64)), plain.flush()])
        made, start = [], 0
        for size in sizes:
            chunk = samples[start : start + size]
            made.append(layered.push(chunk if layout == "frames first" else chunk.T))
            start += size
        made.append(layered.flush())
    assert layered.samples_in == sum(sizes)
    np.testing.assert_allclose(np.concatenate(made), expected, atol=1e-6)
