"""Measures of the committed voice: no clicks, no DC, no clipping, no NaN."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from autovoice_training.evaluate.artifacts import find_artifacts
from autovoice_training.evaluate.audio import Audio, at_judge_rate, read_audio
from autovoice_training.evaluate.floor import MAX_CLICK_RATIO, MAX_OFFSET_DBFS, MAX_PEAK_DBFS
from autovoice_training.evaluate.pitch import compare_f0, f0_track
from autovoice_training.evaluate.runtime import RepositoryConverter

ROOT = Path(__file__).resolve().parents[2]
VOICES = ("source_liam", "target_river", "target_fable")


def read(name: str) -> Audio:
    return read_audio(ROOT / "demo" / f"{name}.flac")


@pytest.fixture(scope="module")
def converter() -> Iterator[RepositoryConverter]:
    opened = RepositoryConverter(ROOT / "model_repository")
    yield opened
    opened.close()


QUICK = {
    ("source_liam", "target_river", 0.0),
    ("target_river", "target_fable", 7.0),
    ("target_fable", "source_liam", -7.0),
}
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in product(VOICES, VOICES, [-7.0, 0.0, 7.0])
]


@pytest.mark.parametrize(("source", "target", "shift"), CASES)
def test_a_conversion_has_no_clicks_no_dc_and_does_not_clip(
    converter: RepositoryConverter, source: str, target: str, shift: float
) -> None:
    audio = read(source)
    result = converter.convert(audio, converter.embed(read(target)), shift)
    assert np.isfinite(result).all()
    found = find_artifacts(result)
    assert found.click <= MAX_CLICK_RATIO * find_artifacts(audio).click
    assert found.offset < MAX_OFFSET_DBFS
    assert found.peak < MAX_PEAK_DBFS
    melody = f0_track(at_judge_rate(audio))
    agreement = compare_f0(f0_track(at_judge_rate(result)), melody, shift)
    assert agreement.f0_corr > 0.8, "the melody of the source, neither frozen nor buzzing"
