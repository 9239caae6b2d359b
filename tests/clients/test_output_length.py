"""How much the voice converts for an output at another rate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.audio.samples import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, Resampler
from autovoice.streaming import samples_needed
from autovoice.voices.voice import Voice


@pytest.fixture(scope="module")
def base(toy: Path) -> Voice:
    with VoiceConversionPipeline(PipelineConfig(repository=toy)) as pipeline:
        return pipeline.voice


@given(
    voice_rates=st.sampled_from([(24_000, 24_000), (16_000, 32_000), (16_000, 40_000), (16_000, 48_000)]),
    output_rate=st.integers(MIN_SAMPLE_RATE, MAX_SAMPLE_RATE)
    | st.sampled_from([8000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000]),
    output_samples=st.integers(1, 20_000),
    chunks=st.integers(1, 5),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_output_sample_lies_between_two_converted_ones(
    base: Voice, voice_rates: tuple[int, int], output_rate: int, output_samples: int, chunks: int
) -> None:
    """The resampler interpolates: a last sample behind all converted ones would lean on silence instead."""
    voice = replace(base, sample_rate=voice_rates[0], output_sample_rate=voice_rates[1])
    needed = samples_needed(output_samples, voice, output_rate)
    converted = needed * voice.output_sample_rate // voice.sample_rate
    if output_rate == voice.output_sample_rate:
        assert converted >= output_samples
        return
    last_position = (output_samples - 1) * voice.output_sample_rate / output_rate
    assert converted - 1 >= np.floor(last_position) + 1
    resampler = Resampler(voice.output_sample_rate, output_rate)
    made = sum(resampler.push(part).size for part in np.array_split(np.zeros(converted, np.float32), chunks))
    assert made + resampler.push(np.zeros(0, np.float32), last=True).size >= output_samples


def test_no_more_is_converted_than_the_output_needs(base: Voice) -> None:
    for rate in (8000, 22_050, 44_100, 96_000):
        surplus = samples_needed(rate, base, rate) - base.output_sample_rate
        assert 0 < surplus <= 2, f"one second at {rate} Hz"
