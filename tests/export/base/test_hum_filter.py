"""The hum filter: what it takes away, what it leaves, and that chunks are a whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from autovoice_export.base.stages.hum_filter import HumFilter

RATES = (16000, 24000)
SETTLED_S = 0.6


def sines(rate: int, seconds: float, *parts: tuple[float, float]) -> NDArray[np.float64]:
    """A sum of sines of some (Hz, amplitude), each with a phase of its own."""
    time = np.arange(round(seconds * rate)) / rate
    return sum(amplitude * np.sin(2 * np.pi * hz * time + hz) for hz, amplitude in parts)  # type: ignore[return-value]


def filtered(rate: int, audio: NDArray[np.float64]) -> NDArray[np.float64]:
    hum_filter = HumFilter(rate)
    batch = torch.from_numpy(audio[None].astype(np.float32))
    return hum_filter(batch, torch.zeros(1, hum_filter.state_size))[0][0].double().numpy()


def level_db(audio: NDArray[np.float64]) -> float:
    return float(10 * np.log10(np.mean(audio**2) + 1e-20))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("hz", [50.0, 60.0, 49.98, 60.02])
@pytest.mark.parametrize("amplitude", [1e-3, 0.1, 1.0])
def test_hum_goes(rate: int, hz: float, amplitude: float) -> None:
    audio = sines(rate, 2.0, (hz, amplitude))
    rest = filtered(rate, audio)[round(SETTLED_S * rate) :]
    assert level_db(rest) < level_db(audio) - (60 if hz in (50.0, 60.0) else 25)


@pytest.mark.parametrize("rate", RATES)
def test_both_mains_at_once_and_an_offset(rate: int) -> None:
    audio = sines(rate, 2.0, (50.0, 0.3), (60.0, 0.2)) + 0.25
    rest = filtered(rate, audio)[round(SETTLED_S * rate) :]
    np.testing.assert_allclose(rest, 0.25, atol=1e-3)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("hz", [30.0, 44.0, 55.0, 67.0, 80.0, 100.0, 120.0, 440.0])
def test_other_tones_stay(rate: int, hz: float) -> None:
    audio = sines(rate, 2.0, (hz, 0.3))
    rest = filtered(rate, audio)
    assert level_db(rest - audio) < level_db(audio) - 20


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("seed", range(3))
def test_a_moving_voice_at_the_same_pitch_stays(rate: int, seed: int) -> None:
    """F0 moves by a few percent around 50 or 60 Hz, as voices do."""
    rng = np.random.default_rng(seed)
    time = np.arange(3 * rate) / rate
    f0 = (50.0, 60.0, 55.0)[seed] * 1.06 ** np.sin(2 * np.pi * 1.3 * time + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(f0) / rate
    audio = sum(np.cos(k * phase + k) / k for k in range(1, 20)) * 0.1
    rest = filtered(rate, audio)
    assert level_db(rest - audio) < level_db(audio) - 12


def test_noise_stays() -> None:
    audio = np.random.default_rng(1).standard_normal(5 * 24000) * 0.1
    rest = filtered(24000, audio)
    assert level_db(rest - audio) < level_db(audio) - 30


def test_nothing_is_subtracted_before_two_groups_agree() -> None:
    audio = sines(24000, 1.0, (50.0, 0.5))
    rest = filtered(24000, audio)
    np.testing.assert_array_equal(rest[: 19 * 240], audio[: 19 * 240].astype(np.float32))
    assert level_db(rest[20 * 240 :]) < level_db(audio) - 40


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, 119)), seed=st.integers(0, 2**16))
def test_chunks_are_a_whole(cuts: set[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    audio = sines(24000, 1.2, (50.0, rng.uniform(0, 0.5))) + 0.1 * rng.standard_normal(28800)
    batch = torch.from_numpy(np.stack([audio, audio[::-1]]).astype(np.float32))
    hum_filter = HumFilter(24000)
    whole, last = hum_filter(batch, torch.zeros(2, hum_filter.state_size))
    state, parts = torch.zeros(2, hum_filter.state_size), []
    for a, b in pairwise([0, *sorted(cuts), 120]):
        part, state = hum_filter(batch[:, a * 240 : b * 240], state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-6)


def test_future_does_not_matter() -> None:
    audio = torch.from_numpy(sines(24000, 1.0, (50.0, 0.3), (170.0, 0.2))[None].astype(np.float32))
    hum_filter = HumFilter(24000)

    def run(samples: Tensor) -> Tensor:
        return hum_filter(samples, torch.zeros(1, hum_filter.state_size))[0]  # type: ignore[no-any-return]

    changed = audio.clone()
    changed[:, 12000:] = 0.9
    torch.testing.assert_close(run(changed)[:, :12000], run(audio)[:, :12000], rtol=0, atol=0)
