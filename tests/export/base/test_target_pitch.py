"""The pitch regression: what it learns and what it refuses."""

from __future__ import annotations

import pytest
import torch

from autovoice_export.base.stages.target_pitch import HIGHEST_HZ, LOWEST_HZ, TargetPitch, fit
from autovoice_export.base.stages.voice import ENVELOPE_SIZE, KEY_SIZE, TOKENS, pack


def embedding_of(identities: torch.Tensor) -> torch.Tensor:
    """Embeddings with these identities and frames that say nothing."""
    frames = (torch.zeros(len(identities), TOKENS, size) for size in (KEY_SIZE, ENVELOPE_SIZE))
    return pack(identities, *frames)


def voices(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit embeddings of which one direction carries the pitch."""
    generator = torch.Generator().manual_seed(seed)
    octave = torch.rand(count, generator=generator)
    direction = torch.linspace(0, 1, 256)
    noise = 0.3 * torch.rand(count, 256, generator=generator)
    embeddings = torch.nn.functional.normalize(octave.unsqueeze(1) * direction + 0.5 + noise, dim=1)
    return embeddings, 100.0 * 2.0**octave


def test_fit_predicts_voices_it_has_not_seen() -> None:
    embeddings, median_f0 = voices(300)
    unseen, expected = voices(100, seed=1)
    with torch.no_grad():
        found = fit(embeddings, median_f0)(embedding_of(unseen)).squeeze(1)
    error = 12.0 * torch.log2(found / expected)
    spread = 12.0 * torch.log2(expected / expected.log().mean().exp())
    assert error.std() < 0.2 * spread.std()
    assert error.mean().abs() < 0.3


def test_fit_is_the_ridge_solution() -> None:
    embeddings, median_f0 = voices(80)
    x, y = embeddings.double(), median_f0.double().log()
    regression = fit(embeddings, median_f0, ridge=1e-3)
    weight = regression.linear.weight.detach().double()[0].requires_grad_()
    bias = regression.linear.bias.detach().double().requires_grad_()
    loss = ((x @ weight + bias - y) ** 2).mean() + 1e-3 * (weight**2).sum()
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() < 1e-6
    assert bias.grad is not None
    assert bias.grad.abs() < 1e-6


def test_answers_stay_within_human_pitch() -> None:
    regression = TargetPitch()
    torch.nn.init.constant_(regression.linear.weight, 5.0)
    with torch.no_grad():
        low, high = regression(embedding_of(torch.stack([-torch.ones(256), torch.ones(256)]) / 16.0))
    assert low.item() == pytest.approx(LOWEST_HZ)
    assert high.item() == pytest.approx(HIGHEST_HZ)


def test_bad_data_is_named() -> None:
    embeddings, median_f0 = voices(10)
    with pytest.raises(ValueError, match=r"got \[10, 256\] and \[9\]"):
        fit(embeddings, median_f0[:9])
    with pytest.raises(ValueError, match="at least 2 recordings, got 1"):
        fit(embeddings[:1], median_f0[:1])
    with pytest.raises(ValueError, match="above 0 Hz, got 0"):
        fit(embeddings, median_f0 * (torch.arange(10) > 0))
