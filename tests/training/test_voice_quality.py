"""Measures of the committed voice: no clicks, no DC, no clipping, no NaN."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile

from autovoice_training.evaluate.cepstrum import mel_cepstrum
from autovoice_training.evaluate.dataset import Audio, at_judge_rate
from autovoice_training.evaluate.floor import MAX_CLICK_RATIO, MAX_OFFSET_DBFS, MAX_PEAK_DBFS
from autovoice_training.evaluate.naturalness import Naturalness, measure
from autovoice_training.evaluate.pitch import f0_track
from autovoice_training.evaluate.runtime import RepositoryConverter

ROOT = Path(__file__).resolve().parents[2]
VOICES = ("source_rms", "target_slt", "target_awb")


def read(name: str) -> tuple[Audio, int]:
    audio, rate = soundfile.read(ROOT / "demo" / f"{name}.flac", dtype="float32")
    return audio, rate


def measured(audio: Audio, rate: int) -> Naturalness:
    assert np.isfinite(audio).all()
    judged = at_judge_rate(audio, rate)
    return measure(judged, f0_track(judged), mel_cepstrum(judged))


@pytest.fixture(scope="module")
def converter() -> Iterator[RepositoryConverter]:
    opened = RepositoryConverter(ROOT / "model_repository")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def copies(converter: RepositoryConverter) -> dict[str, Naturalness]:
    """Every voice through the synthesizer, converted into itself."""
    return {
        name: measured(converter.convert(*read(name), converter.embed(*read(name)), 0.0), read(name)[1])
        for name in VOICES
    }


QUICK = {
    ("source_rms", "target_slt", 0.0),
    ("target_slt", "target_awb", 12.0),
    ("target_awb", "source_rms", -12.0),
}
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in product(VOICES, VOICES, [-12.0, 0.0, 12.0])
]


@pytest.mark.parametrize(("source", "target", "shift"), CASES)
def test_a_conversion_has_no_clicks_no_dc_and_does_not_clip(
    converter: RepositoryConverter, copies: dict[str, Naturalness], source: str, target: str, shift: float
) -> None:
    audio, rate = read(source)
    found = measured(converter.convert(audio, rate, converter.embed(*read(target)), shift), rate)
    assert found.click <= MAX_CLICK_RATIO * copies[target].click
    assert found.offset < MAX_OFFSET_DBFS
    assert found.peak < MAX_PEAK_DBFS
    # People's own recordings have up to 84 cents (training/results/recorded).
    assert 1.0 < found.f0_roughness < 84.0, "the melody of speech, neither frozen nor buzzing"
