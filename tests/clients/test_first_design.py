"""The Python API as the first design printed it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from autovoice import PipelineConfig, VoiceConversionPipeline


def test_the_api_of_the_first_design(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOVOICE_REPOSITORY", str(repository))
    time = np.arange(22_050) / 22_050
    audio = (0.2 * np.sin(2 * np.pi * (140 + 20 * np.sin(3 * time)) * time)).astype(np.float32)
    audio_list = [audio, audio[:11_025]]

    config = PipelineConfig(use_cuda=True)
    with VoiceConversionPipeline(config) as pipeline:
        embedding = pipeline.embed(audio)
        pipeline.warmup(num_iterations=3)

        metrics = pipeline.profile_conversion(audio, embedding)
        assert 0 < metrics["rtf"] == metrics["total_ms"] / 1e3 / metrics["audio_duration_s"]
        assert {"content_encoder", "synthesizer"} <= set(metrics["stages"])
        assert sum(metrics["stages"].values()) <= metrics["total_ms"]
        assert metrics["device"] == pipeline.device == metrics.device
        assert isinstance(metrics, Mapping)
        assert dict(metrics) == metrics.to_dict()
        with pytest.raises(KeyError, match="speed"):
            metrics["speed"]

        results = pipeline.batch_convert(audio_list, [embedding, embedding])
        assert [result.size for result in results] == [each.size for each in audio_list]
        same = pipeline.batch_convert(audio_list, embedding)
        for one, other in zip(results, same, strict=True):
            np.testing.assert_array_equal(one, other)

        with pytest.raises(Exception, match="NaN"):
            pipeline.convert(np.full(22_050, np.nan, np.float32), embedding)
        stats = pipeline.stats
        assert (stats["total"], stats["succeeded"], stats["failed"]) == (6, 5, 1)
        assert stats["average_ms"] > 0
        assert stats["device_use"] == {pipeline.device: 5}
