"""Exported graphs against references written from the description of RVC, with the same weights and noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from imported_voices import Files

from autovoice_export.build_errors import ParityError
from autovoice_export.onnx.export import export_stage
from autovoice_export.parity import session_run
from autovoice_export.rvc.faiss_index import FeatureIndex
from autovoice_export.rvc.hubert_weights import load_hubert
from autovoice_export.rvc.noise import prior_noise_table, rows_at, source_noise_table
from autovoice_export.rvc.retrieval import Retrieval
from autovoice_export.stage import Axis, Stage, StageTensor

LATENT, HOP = 12, 400
FIRST_FRAME = 990


def sung_f0(frames: int, generator: torch.Generator) -> torch.Tensor:
    """A gliding pitch with pauses, some of it above the coarse range, [1, frames]."""
    glide = 0.02 * torch.randn(1, frames, generator=generator)
    f0 = 220.0 * torch.exp(glide.cumsum(dim=1).clamp(-1.3, 1.8))
    f0 = torch.where(torch.arange(frames) % 90 < 15, 0.0, f0)
    return torch.round(f0 * 2**18) / 2**18


@pytest.mark.parametrize("seconds", [1, 10, pytest.param(60, marks=pytest.mark.slow)])
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
    padded = torch.nn.functional.pad(audio, (0, 80))
    expected = reference.encode(weights, heads, padded, layers, projected=version == "v1").numpy()
    assert found.shape == expected.shape == (1, steps, 768 if version == "v2" else 256)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_content_frames_see_what_the_original_s_see(files: Files, tmp_path: Path) -> None:
    """Frame g of the original sees samples 320 g to 320 g + 400 of what it is given, and so does ours."""
    from safetensors.torch import load_file

    steps, hubert = 12, load_hubert(files.contentvec, "v2")
    original = load_file(files.contentvec / "model.safetensors")
    # What follows mixes frames.
    hubert.feature_projection = hubert.encoder = torch.nn.Identity()
    channels = hubert.config.channels
    audio = StageTensor("AUDIO", (Axis("G", 320),))
    stage = Stage("content", hubert, (audio,), (StageTensor("CONTENT", (Axis("G"), channels)),))
    export_stage(stage, tmp_path / "content.onnx", {})
    run = session_run(tmp_path / "content.onnx")

    def heard(content: np.ndarray[Any, Any]) -> list[int]:
        """Frames that differ from the one in which there is nothing."""
        silent = content[-1] if np.allclose(content[-1], content[-2], atol=1e-6) else content[0]
        return np.flatnonzero(np.abs(content - silent).max(axis=1) > 1e-4).tolist()

    for place in (0, 79, 80, 319, 320, 399, 400, 640, 1000, 1919, 1920, 2559, 3519, 3839):
        impulse = np.zeros((1, 320 * steps), np.float32)
        impulse[0, place] = 1.0
        expected = [g for g in range(steps) if 320 * g <= place < 320 * g + 400]
        assert heard(run({"AUDIO": impulse})["CONTENT"][0]) == expected
        # The original makes one frame less of as many samples.
        whole = np.pad(impulse, ((0, 0), (0, 80)))
        x = torch.from_numpy(whole)[:, None]
        for layer in range(7):
            name = f"feature_extractor.conv_layers.{layer}"
            x = torch.nn.functional.conv1d(x, original[f"{name}.conv.weight"], stride=5 if layer == 0 else 2)
            if layer == 0:
                norm = (original[f"{name}.layer_norm.{kind}"] for kind in ("weight", "bias"))
                x = torch.nn.functional.group_norm(x, channels, *norm)
            x = torch.nn.functional.gelu(x)
        np.testing.assert_allclose(run({"AUDIO": impulse})["CONTENT"][0], x[0].T, atol=1e-4)


@pytest.mark.parametrize("speaker", [-1, -3, -(2**62), 3, 2**62])
def test_speakers_that_there_are_not_are_refused_by_the_graph(
    files: Files, generator: torch.Generator, speaker: int
) -> None:
    content = torch.randn(1, 10, 768, generator=generator)
    feeds: dict[str, Any] = {
        "CONTENT": content,
        "RETRIEVED": content,
        "PROTECT": np.float32([[0.5]]),
        "F0": np.full((1, 20), 200, np.float32),
        "PITCH_SHIFT": np.float32([[0.0]]),
        "ANCHOR_FRAME": np.int64([[0]]),
        "ANCHOR_PHASE": np.float32([[0.0]]),
        "FIRST_FRAME": np.int64([[0]]),
    }
    for known in range(3):
        files.run("sung_synthesizer", {**feeds, "SPEAKER_ID": np.int64([[known]])})
    with pytest.raises(ParityError, match="out of data bounds"):
        files.run("sung_synthesizer", {**feeds, "SPEAKER_ID": np.int64([[speaker]])})


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


@pytest.mark.parametrize("probes", [1, 3, 12])
@pytest.mark.parametrize("offset", [0.0, 5.0, 300.0])
@pytest.mark.parametrize("groups", [1, 6])
def test_neighbours_are_those_of_float64(offset: float, groups: int, probes: int) -> None:
    """Norms are large beside distances: all vectors far from 0, or groups of them far from one another."""
    rng, lists, channels = np.random.default_rng(5), 12, 768
    middles = offset * rng.normal(size=channels) + (
        20.0 * rng.normal(size=(groups, channels)) if groups > 1 else 0
    )
    middles = np.broadcast_to(middles, (groups, channels))
    vectors = (middles[rng.integers(0, groups, 700)] + rng.normal(size=(700, channels))).astype(np.float32)
    near = vectors[rng.integers(0, 700, 150)]
    content = (near + 0.4 * rng.normal(size=near.shape)).astype(np.float32)
    centroids = vectors[rng.choice(700, lists, replace=False)]

    def squares(points: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array(
            [np.square(points.astype(np.float64) - other).sum(axis=1) for other in others.astype(np.float64)]
        )

    of = squares(centroids, vectors).argmin(axis=1)
    vectors, of = vectors[np.argsort(of, kind="stable")], np.sort(of)
    searched = np.argsort(squares(centroids, content), axis=1)[:, :probes]
    score = squares(vectors, content)
    score[~(of[None, :, None] == searched[:, None]).any(axis=2)] = np.inf
    order = np.argsort(score, axis=1)[:, :9]
    best = np.take_along_axis(score, order, axis=1)
    weight = (best[:, :1] / best[:, :8]) ** 2
    weight /= weight.sum(axis=1, keepdims=True)
    expected = np.einsum("fk,fkc->fc", weight, vectors[order[:, :8]].astype(np.float64))
    index = FeatureIndex(*(torch.from_numpy(item) for item in (centroids, vectors, of)), probes)
    with torch.no_grad():
        found = Retrieval(index)(torch.from_numpy(content)[None], torch.ones(1, 1))[0].numpy()
    # Not where float32 cannot tell the eighth from the ninth; some lists have less than eight.
    told = ~(best[:, 8] <= (1 + 1e-6) * np.minimum(best[:, 7], 1e30))
    assert told.mean() > 0.99
    np.testing.assert_allclose(found[told], expected[told], atol=1e-4 + 1e-6 * np.abs(vectors).max())


def test_vectors_met_exactly_and_short_lists_do_no_harm() -> None:
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
