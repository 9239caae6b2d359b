"""Pitch of recordings with mains hum, as the shipped voice measures it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray
from scipy.signal import lfilter

from autovoice import PipelineConfig, VoiceConversionPipeline

DEMO = Path(__file__).parents[2] / "demo"
RATE = 24000
FRAME = 240

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def pipeline() -> Iterator[VoiceConversionPipeline]:
    with VoiceConversionPipeline(PipelineConfig(device="cpu")) as made:
        yield made


def with_hum(audio: Array, hz: float, below_db: float) -> Array:
    """Adds a tone so many dB below the recording's RMS."""
    time = np.arange(audio.size) / RATE
    amplitude = np.sqrt(2 * np.mean(audio**2)) * 10 ** (-below_db / 20)
    return audio + amplitude * np.sin(2 * np.pi * hz * time + 1.0)


def errors(truth: Array, found: Array) -> tuple[float, float]:
    """Share of the frames voiced in both whose F0 differs by more than 7 %, and of silence called voiced."""
    frames = min(truth.size, found.size)
    truth, found = truth[:frames], found[:frames]
    both = (truth > 0) & (found > 0)
    gross = np.abs(np.log2(found[both] / truth[both])) > 0.1
    return float(gross.mean()), float((found[truth == 0] > 0).mean())


@pytest.mark.parametrize("name", ["source_rms.flac", "source_liam.flac"])
@pytest.mark.parametrize("hz", [50.0, 60.0, 49.95, 60.05])
def test_hum_changes_little(pipeline: VoiceConversionPipeline, name: str, hz: float) -> None:
    samples, rate = soundfile.read(DEMO / name)
    audio = soxr.resample(samples, rate, RATE)
    truth = pipeline.extract_f0(audio.astype(np.float32), RATE)
    gross, voiced = errors(truth, pipeline.extract_f0(with_hum(audio, hz, 19.0).astype(np.float32), RATE))
    assert gross <= 0.03
    assert voiced <= 0.03
    gross, _ = errors(truth, pipeline.extract_f0(with_hum(audio, hz, 0.0).astype(np.float32), RATE))
    assert gross <= 0.1


@pytest.mark.parametrize("first", [60.0, 65.0, 75.0])
@pytest.mark.parametrize("below_db", [None, 19.0])
def test_low_voices_are_kept(pipeline: VoiceConversionPipeline, first: float, below_db: float | None) -> None:
    """A pulse train through formants, whose pitch rises by three semitones and wavers a little."""
    time = np.arange(3 * RATE) / RATE
    f0 = first * 1.2 ** (time / 3) * (1 + 0.01 * np.sin(2 * np.pi * 4 * time))
    phase = np.cumsum(f0) / RATE
    audio = np.diff(np.floor(phase), prepend=0.0)
    for hz, width in ((600, 80), (1100, 100), (2500, 150)):
        radius = np.exp(-np.pi * width / RATE)
        audio = lfilter([1.0], [1.0, -2 * radius * np.cos(2 * np.pi * hz / RATE), radius**2], audio)
    audio *= 0.09 / np.sqrt(np.mean(audio**2))
    audio += 1e-3 * np.random.default_rng(0).standard_normal(audio.size)
    if below_db is not None:
        audio = with_hum(audio, 50.0, below_db)
    found = pipeline.extract_f0(audio.astype(np.float32), RATE)
    truth = f0[FRAME // 2 :: FRAME][: found.size]
    voiced = found > 0
    assert voiced.mean() > 0.97
    assert (np.abs(np.log2(found[voiced] / truth[voiced])) > 0.1).mean() < 0.02
