"""Mel filters and frequencies against their definition, at the sizes that are in use."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autovoice_export.base.stages.blocks import mel_filterbank, mel_points
from autovoice_export.base.stages.mel import HIGH_HZ, LOW_HZ, MEL_BANDS, WINDOW
from autovoice_plugins.geometry import SAMPLE_RATE


def htk_frequencies(count: int, low: float, high: float) -> np.ndarray:
    ends = [2595.0 * math.log10(1.0 + hz / 700.0) for hz in (low, high)]
    return 700.0 * (10.0 ** (np.linspace(*ends, count) / 2595.0) - 1.0)


def slaney_frequencies(count: int, low: float, high: float) -> np.ndarray:
    def mel(hz: float) -> float:
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)

    mels = np.linspace(mel(low), mel(high), count)
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * math.log(6.4) / 27))


def triangles(edges: np.ndarray, fft_size: int, rate: int) -> np.ndarray:
    bins = np.arange(fft_size // 2 + 1)[:, None] * rate / fft_size
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0.0)


@pytest.mark.parametrize(
    ("bands", "low", "high", "fft_size", "rate", "htk", "unit_area"),
    [
        (MEL_BANDS, LOW_HZ, HIGH_HZ, WINDOW, SAMPLE_RATE, True, False),
        (128, 30.0, 8000.0, 1024, 16000, True, True),  # RMVPE
        (40, 0.0, 8000.0, 400, 16000, False, True),  # speaker encoder
        (64, 0.0, 12000.0, 512, SAMPLE_RATE, True, False),
    ],
)
def test_filters_are_the_triangles(
    bands: int, low: float, high: float, fft_size: int, rate: int, htk: bool, unit_area: bool
) -> None:
    edges = (htk_frequencies if htk else slaney_frequencies)(bands + 2, low, high)
    expected = triangles(edges, fft_size, rate)
    if unit_area:
        expected *= 2.0 / (edges[2:] - edges[:-2])
    found = mel_filterbank(bands, low, high, fft_size, rate, htk=htk, unit_area=unit_area).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * expected.max())


def test_points_are_those_of_the_scale() -> None:
    np.testing.assert_allclose(mel_points(82, 50.0, 8000.0), htk_frequencies(82, 50.0, 8000.0), rtol=1e-12)
