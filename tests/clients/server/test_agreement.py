"""Whoever runs the repository, the same inputs give the same samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from triton_calls import Client, cut, hum, joined, voice

from autovoice.engines.local import LocalEngine
from autovoice.repository.reader import ModelRepository

pytestmark = pytest.mark.server

TOLERANCE = 1e-4
SAMPLES = 24_137  # no whole number of frames


@pytest.fixture(scope="module")
def embedded(repository: Path) -> LocalEngine:
    return LocalEngine(ModelRepository(repository))


def audible(audio: np.ndarray) -> bool:  # type: ignore[type-arg]
    return float(np.abs(audio).max()) > 20 * TOLERANCE


def test_offline(client: Client, embedded: LocalEngine) -> None:
    feeds = {"SOURCE_AUDIO": hum(SAMPLES), **voice(1, 3.0)}
    (expected,) = embedded.infer("voice_conversion", feeds).values()
    assert expected.shape == (1, SAMPLES)
    assert audible(expected)
    np.testing.assert_allclose(
        client.infer("voice_conversion", feeds)["CONVERTED_AUDIO"], expected, atol=TOLERANCE, rtol=0
    )


def test_offline_with_f0(client: Client, embedded: LocalEngine) -> None:
    f0 = np.full((1, -(-SAMPLES // 240)), 187.0, np.float32)
    feeds = {"SOURCE_AUDIO": hum(SAMPLES), "SOURCE_F0": f0, **voice(2)}
    (expected,) = embedded.infer("voice_conversion_with_f0", feeds).values()
    assert audible(expected)
    made = client.infer("voice_conversion_with_f0", feeds)["CONVERTED_AUDIO"]
    np.testing.assert_allclose(made, expected, atol=TOLERANCE, rtol=0)
    (unsteered,) = embedded.infer("voice_conversion", {"SOURCE_AUDIO": hum(SAMPLES), **voice(2)}).values()
    assert np.abs(made - unsteered).max() > 20 * TOLERANCE  # the F0 does reach the synthesizer


@pytest.mark.parametrize("sizes", [[480], [240, 960, 480, 2400]], ids=["20ms", "mixed"])
def test_stream_is_the_offline_conversion(client: Client, embedded: LocalEngine, sizes: list[int]) -> None:
    audio = hum(SAMPLES)
    (expected,) = embedded.infer("voice_conversion", {"SOURCE_AUDIO": audio, **voice(3, -2.0)}).values()
    made = joined(client.stream(voice(3, -2.0), cut(audio, sizes), sequence=41), SAMPLES)
    np.testing.assert_allclose(made, expected, atol=TOLERANCE, rtol=0)


def test_batch_is_its_items(client: Client, embedded: LocalEngine) -> None:
    voices = [voice(seed) for seed in range(3)]
    audio = [hum(4800, 100.0 + 50 * seed) for seed in range(3)]
    feeds = {"SOURCE_AUDIO": np.concatenate(audio)}
    feeds |= {name: np.concatenate([item[name] for item in voices]) for name in voices[0]}
    made = client.infer("voice_conversion", feeds)["CONVERTED_AUDIO"]
    for row, source, target in zip(made, audio, voices, strict=True):
        (expected,) = embedded.infer("voice_conversion", {"SOURCE_AUDIO": source, **target}).values()
        np.testing.assert_allclose(row[None], expected, atol=TOLERANCE, rtol=0)


def test_speaker_encoder(client: Client, embedded: LocalEngine) -> None:
    feeds = {"REFERENCE_AUDIO": hum(48_000)}
    (expected,) = embedded.infer("speaker_encoder", feeds).values()
    made = client.infer("speaker_encoder", feeds)["EMBEDDING"]
    np.testing.assert_allclose(made, expected, atol=TOLERANCE, rtol=0)
    assert float(np.linalg.norm(made)) == pytest.approx(1.0, abs=1e-3)
