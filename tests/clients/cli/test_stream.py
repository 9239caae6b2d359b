"""The arithmetic of a simulated stream: how it is cut, and what its player would have met."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autovoice.cli.stream import Delivery, chunk_bounds, count_underruns, percentiles


@given(
    samples=st.integers(1, 200_000),
    rate=st.sampled_from([8000, 11025, 24000, 44100, 192000]),
    chunk_ms=st.floats(1.0, 1000.0),
)
def test_chunks_cover_the_source_without_drift(samples: int, rate: int, chunk_ms: float) -> None:
    chunks = list(chunk_bounds(samples, rate, chunk_ms))
    assert chunks[0][0] == 0
    assert chunks[-1][1] == samples
    assert all(before[1] == after[0] for before, after in itertools.pairwise(chunks))
    for number, (first, last) in enumerate(chunks):
        assert first < last
        assert abs(first - number * rate * chunk_ms / 1e3) <= 0.5


def deliveries(latencies: list[float], chunk: float = 0.02, lookahead: float = 0.025) -> list[Delivery]:
    """A stream whose first chunks bring nothing, as one with a look-ahead does."""
    made = []
    for number, latency in enumerate(latencies, start=2):
        captured = number * chunk
        made.append(Delivery(captured, captured + latency, captured - chunk - lookahead))
    return made


def test_computation_within_a_chunk_never_underruns() -> None:
    assert count_underruns(deliveries([0.019] * 50), 0.02) == 0
    assert count_underruns(deliveries([0.001, 0.019, 0.001, 0.015] * 10), 0.02) == 0


def test_one_hiccup_counts_once() -> None:
    # The player waits out the hiccup and then lags enough for the chunks queued behind it.
    assert (
        count_underruns(deliveries([0.001] * 5 + [0.08, 0.062, 0.044, 0.026, 0.008] + [0.001] * 20), 0.02)
        == 1
    )


def test_two_growing_hiccups_count_twice() -> None:
    assert count_underruns(deliveries([0.001] * 5 + [0.05] + [0.001] * 5 + [0.09] + [0.001] * 5), 0.02) == 2


def test_a_computer_slower_than_real_time_underruns_at_every_chunk_beyond_the_slack() -> None:
    falling_behind = [0.03 + 0.01 * number for number in range(20)]
    assert count_underruns(deliveries(falling_behind), 0.02) == 20


def test_no_output_is_no_underrun() -> None:
    assert count_underruns([], 0.02) == 0


def testpercentiles_are_milliseconds_and_always_json() -> None:
    assert percentiles([0.001 * n for n in range(101)]) == pytest.approx(
        {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    )
    assert json.loads(json.dumps(percentiles([]), allow_nan=False))["max"] == 0
