"""The rule against leaps in a melody."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from autovoice_export.base.stages.pitch_extractor import (
    CERTAIN_PERIODICITY,
    LARGEST_LEAP,
    MEMORY_FRAMES,
    without_leaps,
)


def corrected(f0: list[float], periodicity: list[float] | float) -> list[float]:
    heard = torch.tensor([[0.0] * MEMORY_FRAMES + f0])
    clear = torch.full((1, len(f0)), periodicity) if isinstance(periodicity, float) else None
    return without_leaps(heard, torch.tensor([periodicity]) if clear is None else clear)[0].tolist()


def test_a_voiced_stretch_ends_before_its_pitch_leaps() -> None:
    assert corrected([200.0] * 6 + [100.0, 105.0, 0.0], 0.7) == [200.0] * 6 + [0.0] * 3
    assert corrected([200.0] * 6 + [410.0, 0.0], 0.7) == [200.0] * 6 + [0.0] * 2


def test_certain_leaps_beginnings_and_glides_stay() -> None:
    yodel = [200.0] * 6 + [400.0] * 3
    assert corrected(yodel, 0.95) == yodel
    beginning = [0.0, 0.0, 100.0, 200.0, 200.0]
    assert corrected(beginning, 0.7) == beginning
    glide = [150.0 * 1.03**frame for frame in range(30)]
    np.testing.assert_allclose(corrected(glide, 0.7), glide, rtol=1e-6)


voices = st.lists(st.sampled_from([0.0, 90.0, 130.0, 150.0, 310.0]), min_size=1, max_size=30)


@given(f0=voices, seed=st.integers(0, 99))
def test_the_leap_is_one_from_the_median_of_five(f0: list[float], seed: int) -> None:
    periodicity = np.random.default_rng(seed).uniform(0.6, 1.0, len(f0)).astype(np.float32)
    padded = [0.0] * MEMORY_FRAMES + f0
    expected = []
    for frame, (value, clear) in enumerate(zip(f0, periodicity, strict=True)):
        median = float(np.median(padded[frame : frame + MEMORY_FRAMES]))
        leap = value * LARGEST_LEAP < median or value > median * LARGEST_LEAP
        lost = leap and value > 0 and median > 0 and clear < CERTAIN_PERIODICITY
        expected.append(0.0 if lost else value)
    assert corrected(f0, periodicity.tolist()) == expected
