"""Exported graphs against references written from the description of RVC, with the same weights and noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import reference
import torch
from imported_voices import Files

from autovoice_export.rvc.noise import prior_noise_table, rows_at, source_noise_table

LATENT, HOP = 12, 400
FIRST_FRAME = 990


def sung_f0(frames: int, generator: torch.Generator) -> torch.Tensor:
    """A gliding pitch with pauses, some of it above the coarse range, [1, frames]."""
    glide = 0.02 * torch.randn(1, frames, generator=generator)
    f0 = 220.0 * torch.exp(glide.cumsum(dim=1).clamp(-1.3, 1.8))
    f0 = torch.where(torch.arange(frames) % 90 < 15, 0.0, f0)
    return torch.round(f0 * 2**18) / 2**18


@pytest.mark.parametrize("seconds", [1, 10, 60])
def test_synthesizer_is_the_reference(files: Files, generator: torch.Generator, seconds: int) -> None:
    steps, frames = 50 * seconds, 100 * seconds
    content = torch.randn(1, steps, 768, generator=generator)
    f0 = sung_f0(frames, generator)
    first = torch.tensor([[FIRST_FRAME]])
    feeds = {
        "CONTENT": content,
        "RETRIEVED": content,
        "PROTECT": np.float32([[0.5]]),
        "F0": f0,
        "PITCH_SHIFT": np.float32([[0.0]]),
        "ANCHOR_FRAME": np.int64([[0]]),
        "ANCHOR_PHASE": np.float32([[0.25]]),
        "SPEAKER_ID": np.int64([[2]]),
        "FIRST_FRAME": first,
    }
    found = files.run("sung_synthesizer", feeds)
    with torch.no_grad():
        expected = reference.synthesise(
            torch.load(files.sung, weights_only=True),
            content,
            f0,
            2,
            rows_at(prior_noise_table(LATENT), first, frames),
            rows_at(source_noise_table(HOP), first, frames).reshape(1, -1),
            start=0.25,
        ).numpy()
    np.testing.assert_array_equal(found["SOURCE_F0"], f0.numpy())
    assert expected.std() > 0.02
    assert np.abs(found["AUDIO"] - expected).max() < 1e-3 * np.abs(expected).max()


def test_voice_without_pitch_is_the_reference(files: Files, generator: torch.Generator) -> None:
    content = torch.randn(2, 50, 256, generator=generator)
    first = torch.tensor([[-30], [5]])
    feeds = {"CONTENT": content, "SPEAKER_ID": np.zeros((2, 1), np.int64), "FIRST_FRAME": first}
    found = files.run("plain_synthesizer", feeds)
    noise = rows_at(prior_noise_table(LATENT), first, 100)
    with torch.no_grad():
        voice = torch.load(files.plain, weights_only=True)
        expected = reference.synthesise(voice, content, None, 0, noise, None).numpy()
    assert expected.std() > 0.02
    assert np.abs(found["AUDIO"] - expected).max() < 1e-3 * np.abs(expected).max()
    assert not found["SOURCE_F0"].any()


@pytest.mark.parametrize(("version", "heads", "layers"), [("v2", 12, 2), ("v1", 4, 9)])
@pytest.mark.parametrize("steps", [1, 50, 501])
def test_content_encoder_is_the_reference(
    files: Files, generator: torch.Generator, version: str, heads: int, layers: int, steps: int
) -> None:
    from safetensors.torch import load_file

    audio = 0.1 * torch.randn(1, 320 * steps, generator=generator)
    model, folder = {
        "v2": ("contentvec", files.contentvec),
        "v1": ("contentvec_v1", files.contentvec_v1),
    }[version]
    found = files.run(model, {"AUDIO": audio})["CONTENT"]
    weights = load_file(folder / "model.safetensors")
    padded = torch.nn.functional.pad(audio, (40, 40))
    expected = reference.encode(weights, heads, padded, layers, projected=version == "v1").numpy()
    assert found.shape == expected.shape == (1, steps, 768 if version == "v2" else 256)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_a_batch_is_its_rows(files: Files, generator: torch.Generator) -> None:
    steps, frames = 30, 60
    feeds: dict[str, Any] = {
        "CONTENT": torch.randn(3, steps, 768, generator=generator),
        "RETRIEVED": torch.randn(3, steps, 768, generator=generator),
        "PROTECT": np.float32([[0.1], [0.3], [0.5]]),
        "F0": torch.cat([sung_f0(frames, generator) for _ in range(3)]),
        "PITCH_SHIFT": np.float32([[-12.0], [0.5], [7.0]]),
        "ANCHOR_FRAME": np.int64([[0], [20], [59]]),
        "ANCHOR_PHASE": np.float32([[0.0], [0.5], [0.75]]),
        "SPEAKER_ID": np.int64([[0], [1], [2]]),
        "FIRST_FRAME": np.int64([[0], [-500], [123456]]),
    }
    together = files.run("sung_synthesizer", feeds)["AUDIO"]
    for row in range(3):
        alone = files.run("sung_synthesizer", {name: value[row : row + 1] for name, value in feeds.items()})
        np.testing.assert_allclose(together[row], alone["AUDIO"][0], atol=2e-5)
    assert np.abs(together[0] - together[1]).max() > 0.05


def test_unvoiced_frames_are_protected(files: Files, generator: torch.Generator) -> None:
    steps = 40
    content, retrieved = (torch.randn(1, steps, 768, generator=generator) for _ in range(2))
    feeds: dict[str, Any] = {
        "PITCH_SHIFT": np.float32([[0.0]]),
        "ANCHOR_FRAME": np.int64([[0]]),
        "ANCHOR_PHASE": np.float32([[0.0]]),
        "SPEAKER_ID": np.int64([[0]]),
        "FIRST_FRAME": np.int64([[0]]),
    }

    def audio(content: Any, retrieved: Any, protect: float, f0: float) -> Any:
        made = {"CONTENT": content, "RETRIEVED": retrieved, "PROTECT": np.float32([[protect]])}
        track = {"F0": np.full((1, 2 * steps), f0, np.float32)}
        return files.run("sung_synthesizer", {**feeds, **made, **track})["AUDIO"]

    blended = 0.2 * retrieved + 0.8 * content
    np.testing.assert_allclose(
        audio(content, retrieved, 0.2, 0.0), audio(blended, blended, 0.5, 0.0), atol=1e-5
    )
    np.testing.assert_array_equal(
        audio(content, retrieved, 0.2, 200.0), audio(retrieved, retrieved, 0.5, 200.0)
    )
    np.testing.assert_array_equal(audio(content, retrieved, 0.5, 0.0), audio(retrieved, retrieved, 0.5, 0.0))


def test_retrieval_is_faiss(files: Files, generator: torch.Generator) -> None:
    import faiss

    index = faiss.read_index(str(files.index))
    vectors = index.reconstruct_n(0, index.ntotal)
    content = torch.from_numpy(vectors[:60]) + 0.4 * torch.randn(60, 768, generator=generator)
    score, ids = index.search(content.numpy(), k=8)
    assert (ids >= 0).all()
    weight = np.square(1 / score)
    weight /= weight.sum(axis=1, keepdims=True)
    expected = 0.75 * (vectors[ids] * weight[..., None]).sum(axis=1) + 0.25 * content.numpy()
    feeds = {"CONTENT": content.reshape(2, 30, 768), "INDEX_RATE": np.float32([[0.75], [0.75]])}
    found = files.run("sung_retrieval", feeds)["RETRIEVED"].reshape(60, 768)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_vectors_met_exactly_and_short_lists_do_no_harm() -> None:
    from autovoice_export.rvc.faiss_index import FeatureIndex
    from autovoice_export.rvc.retrieval import Retrieval

    vectors = torch.eye(12, 16)
    lists = torch.tensor([0] * 3 + [1] * 9)
    centroids = torch.stack([vectors[:3].mean(0), vectors[3:].mean(0), torch.full((16,), -1.0)])
    retrieval = Retrieval(FeatureIndex(centroids, vectors, lists, 1))
    empty = torch.full((16,), -1.0)
    content = torch.stack([vectors[1], vectors[5], empty]).unsqueeze(0)
    found = retrieval(content, torch.tensor([[1.0]]))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[0, 0], vectors[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0, 1], vectors[5], atol=1e-5, rtol=0)
    # The nearest list is empty: nothing is retrieved.
    torch.testing.assert_close(found[0, 2], empty)


def test_coarse_pitch_rounds_half_to_even() -> None:
    from autovoice_export.rvc.pitch import coarse

    low, high = (1127 * math.log(1 + hz / 700) for hz in (50, 1100))
    halves = [700 * (math.exp((low + (n + 0.5 - 1) * (high - low) / 254) / 1127) - 1) for n in range(1, 254)]
    near = torch.tensor([[hz * (1 + sign * 1e-5) for hz in halves for sign in (-1, 1)]])
    everything = torch.cat([near, torch.tensor([[0.0, 1.0, 49.0, 50.0, 1100.0, 5000.0]])], dim=1)
    assert torch.equal(coarse(everything), reference.coarse(everything))
