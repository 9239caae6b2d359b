"""Pitch errors against cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pitch_metrics import GROSS_RATIO, compare, total


def test_a_case_counted_by_hand() -> None:
    #         right, missed, octave up, semitone sharp, silence, invented, octave down, silence
    truth = np.array([100.0, 100.0, 100.0, 200.0, 0.0, 0.0, 400.0, 0.0])
    found = np.array([100.0, 0.0, 200.0, 200.0 * 2 ** (1 / 12), 0.0, 150.0, 200.0, 0.0])
    errors = compare(truth, found)
    assert (errors.voiced, errors.unvoiced, errors.missed, errors.invented, errors.gross) == (5, 3, 1, 1, 2)
    assert errors.gross_percent() == pytest.approx(100 * 2 / 4)
    assert errors.voicing_percent() == pytest.approx(100 * 2 / 8)
    assert errors.frame_percent() == pytest.approx(100 * 4 / 8)
    assert errors.fine_cents() == pytest.approx(100 / 2)


def test_a_flat_estimate_counts_as_much_as_a_sharp_one() -> None:
    truth = np.array([220.0, 220.0])
    assert compare(truth, truth * [2 ** (-30 / 1200), 2 ** (30 / 1200)]).fine_cents() == pytest.approx(30)


@pytest.mark.parametrize("side", [-1, 1])
def test_gross_begins_at_a_fifth(side: int) -> None:
    truth = np.array([300.0])
    assert compare(truth, truth * (1 + side * (GROSS_RATIO - 1e-6))).gross == 0
    assert compare(truth, truth * (1 + side * (GROSS_RATIO + 1e-6))).gross == 1


def test_rates_of_nothing_are_none() -> None:
    silence = compare(np.zeros(4), np.zeros(4))
    assert silence.gross_percent() is None
    assert silence.fine_cents() is None
    assert silence.voicing_percent() == 0
    assert compare(np.zeros(0), np.zeros(0)).frame_percent() is None


def test_tracks_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        compare(np.zeros(3), np.zeros(2))


pitches = st.sampled_from([0.0, 60.0, 100.0, 110.0, 200.0, 900.0])


@given(st.lists(st.tuples(pitches, pitches), min_size=2, max_size=30), st.data())
def test_errors_of_parts_add_up_to_those_of_the_whole(
    frames: list[tuple[float, float]], data: st.DataObject
) -> None:
    truth, found = (np.array(track) for track in zip(*frames, strict=True))
    cut = data.draw(st.integers(0, len(frames)))
    whole, parts = (
        compare(truth, found),
        total([compare(truth[:cut], found[:cut]), compare(truth[cut:], found[cut:])]),
    )
    assert parts.cents == pytest.approx(whole.cents)
    for name in ("voiced", "unvoiced", "missed", "invented", "gross"):
        assert getattr(parts, name) == getattr(whole, name)
