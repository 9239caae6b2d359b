"""The embeddings that a pipeline remembers are those of the same recording, at the same rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autovoice import PipelineConfig, VoiceConversionPipeline


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    time = np.arange(24_000) / 24_000
    buzz = sum(np.sin(2 * np.pi * 130 * harmonic * time) / harmonic for harmonic in range(1, 20))
    return (0.1 * buzz * (1.2 + np.sin(2 * np.pi * 3 * time))).astype(np.float32)


def test_the_same_samples_at_another_rate_are_another_voice(repository: Path, reference: np.ndarray) -> None:
    rates = (24_000, 16_000, 24_000, 48_000)
    config = PipelineConfig(repository=repository, threads=1)
    with VoiceConversionPipeline(config) as pipeline:
        remembered = [pipeline.embed(reference, rate) for rate in rates]
    config = PipelineConfig(repository=repository, threads=1, embedding_cache_size=0)
    with VoiceConversionPipeline(config) as pipeline:
        fresh = [pipeline.embed(reference, rate) for rate in rates]
    for cached, computed in zip(remembered, fresh, strict=True):
        np.testing.assert_allclose(cached, computed, atol=1e-6)
    assert remembered[0] @ remembered[1] < 0.99
