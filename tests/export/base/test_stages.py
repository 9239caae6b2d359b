"""The PyTorch stages: causal, on time, and the same in pieces as in one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autovoice_export.base.stages.content_encoder import ContentEncoder
from autovoice_export.base.stages.pitch_extractor import PitchExtractor
from autovoice_export.base.stages.synthesizer import NOISE_BLOCKS, Synthesizer
from autovoice_export.base.stages.timing import FEATURE_DELAY_FRAMES, LOOKAHEAD
from autovoice_export.base.stages.voice import ENVELOPE_SIZE, KEY_SIZE, TOKENS, VOICE_SIZE, pack
from autovoice_plugins.geometry import HOP, SAMPLE_RATE

FRAMES = 60


@pytest.fixture(scope="module")
def stages() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    built = {"content": ContentEncoder(), "pitch": PitchExtractor(), "synthesizer": Synthesizer()}
    # Untrained output layers are nearly constant; make every path audible.
    for layer in (built["synthesizer"].share, built["synthesizer"].correction):
        nn.init.normal_(layer.weight, std=0.1)
    return {name: stage.eval() for name, stage in built.items()}


def speech_like(frames: int, batch: int = 1, seed: int = 0) -> Tensor:
    """A gliding harmonic tone with noise and pauses, [batch, 240 frames]."""
    random = np.random.default_rng(seed)
    time = np.arange(frames * HOP) / SAMPLE_RATE
    rows = []
    for item in range(batch):
        phase = 2 * np.pi * np.cumsum(120 + 40 * item + 30 * np.sin(5 * time)) / SAMPLE_RATE
        tone = sum(np.sin(k * phase) / k for k in range(1, 20)) * (np.sin(7 * time + item) > -0.6)
        rows.append(0.1 * tone + 0.01 * random.standard_normal(len(time)))
    return torch.tensor(np.stack(rows), dtype=torch.float32)


def voice() -> Tensor:
    """An embedding with frames of many sounds, [1, VOICE_SIZE]."""
    generator = torch.Generator().manual_seed(2)
    keys = nn.functional.normalize(torch.randn(1, TOKENS, KEY_SIZE, generator=generator), dim=2)
    return pack(
        torch.linspace(-1, 1, 256)[None], keys, torch.randn(1, TOKENS, ENVELOPE_SIZE, generator=generator)
    )


@torch.no_grad()
def convert(stages: dict[str, nn.Module], audio: Tensor, cuts: list[int]) -> dict[str, Tensor]:
    """Runs the three stages over the chunks that ``cuts`` (in frames) make."""
    batch = audio.shape[0]
    embedding, shift = voice().repeat(batch, 1), torch.full((batch, 1), 3.0)
    states = {name: torch.zeros(batch, stage.state_size) for name, stage in stages.items()}
    edges = [0, *cuts, audio.shape[1] // HOP]
    pieces: dict[str, list[Tensor]] = {
        name: [] for name in ("content", "loudness", "f0", "periodicity", "audio")
    }
    for start, stop in itertools.pairwise(edges):
        chunk = audio[:, start * HOP : stop * HOP]
        content, loudness, states["content"] = stages["content"](chunk, states["content"])
        f0, periodicity, states["pitch"] = stages["pitch"](chunk, states["pitch"])
        result, states["synthesizer"] = stages["synthesizer"](
            content, loudness, f0, periodicity, embedding, shift, states["synthesizer"]
        )
        for values, value in zip(pieces.values(), (content, loudness, f0, periodicity, result), strict=True):
            values.append(value)
    return {name: torch.cat(values, dim=1) for name, values in pieces.items()}


@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(1, FRAMES - 1), max_size=12))
def test_chunks_equal_whole(stages: dict[str, nn.Module], cuts: set[int]) -> None:
    audio = speech_like(FRAMES, batch=2)
    whole, chunked = convert(stages, audio, []), convert(stages, audio, sorted(cuts))
    for name, value in whole.items():
        torch.testing.assert_close(
            chunked[name], value, atol=1e-4, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


@torch.no_grad()
def test_a_batch_equals_its_items_alone(stages: dict[str, nn.Module]) -> None:
    """Each stage by itself: when F0 is rounded otherwise, pulses move a little."""
    audio = speech_like(FRAMES, batch=3)
    together = convert(stages, audio, [])
    for row in range(3):
        item = {name: value[row : row + 1] for name, value in together.items()}
        states = {name: torch.zeros(1, stage.state_size) for name, stage in stages.items()}
        alone = dict(
            zip(
                ("content", "loudness"),
                stages["content"](audio[row : row + 1], states["content"])[:2],
                strict=True,
            )
        )
        alone |= dict(
            zip(
                ("f0", "periodicity"), stages["pitch"](audio[row : row + 1], states["pitch"])[:2], strict=True
            )
        )
        features = [item[name] for name in ("content", "loudness", "f0", "periodicity")]
        alone["audio"] = stages["synthesizer"](
            *features, voice(), torch.full((1, 1), 3.0), states["synthesizer"]
        )[0]
        for name, value in alone.items():
            torch.testing.assert_close(
                item[name], value, atol=2e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
            )


def test_noise_table_wraps_without_a_seam(stages: dict[str, nn.Module]) -> None:
    audio = speech_like(NOISE_BLOCKS + 20)
    whole = convert(stages, audio, [])["audio"]
    chunked = convert(stages, audio, [NOISE_BLOCKS - 1, NOISE_BLOCKS + 1])["audio"]
    torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changed", [1, 17, 40])
def test_no_stage_hears_the_future(stages: dict[str, nn.Module], changed: int) -> None:
    audio = speech_like(FRAMES)
    other = audio.clone()
    other[:, changed * HOP :] += 0.2 * torch.randn(
        other[:, changed * HOP :].shape, generator=torch.Generator().manual_seed(1)
    )
    first, second = convert(stages, audio, []), convert(stages, other, [])
    for name, value in first.items():
        until = changed * (HOP if name == "audio" else 1)
        torch.testing.assert_close(second[name][:, :until], value[:, :until], atol=1e-6, rtol=1e-5)
        assert not torch.allclose(second[name][:, until:], value[:, until:], atol=1e-4), name


def test_loudness_belongs_to_its_frame(stages: dict[str, nn.Module]) -> None:
    audio = torch.zeros(1, FRAMES * HOP)
    frame = 30
    time = torch.arange(HOP) / SAMPLE_RATE
    audio[0, frame * HOP : (frame + 1) * HOP] = torch.sin(2 * torch.pi * 1000 * time)
    loudness = convert(stages, audio, [])["loudness"][0]
    assert loudness.argmax().item() == frame + FEATURE_DELAY_FRAMES


def test_loudness_is_the_log_of_the_rms(stages: dict[str, nn.Module]) -> None:
    time = torch.arange(FRAMES * HOP) / SAMPLE_RATE
    audio = 0.3 * torch.sin(2 * torch.pi * 1000 * time).unsqueeze(0)
    loudness = convert(stages, audio, [])["loudness"][0, 10:]
    assert loudness.exp().mean().item() == pytest.approx(0.3 / 2**0.5, rel=0.03)


def test_audio_lines_up_with_the_source(stages: dict[str, nn.Module]) -> None:
    """A burst in silence comes out 600 samples late, to within a few samples."""
    audio = torch.zeros(1, FRAMES * HOP)
    start, stop = 30 * HOP, 36 * HOP
    audio[0, start:stop] = speech_like(6)[0]
    energy = convert(stages, audio, [])["audio"][0].double().square()
    position = (energy * torch.arange(len(energy))).sum() / energy.sum()
    assert position.item() - LOOKAHEAD == pytest.approx((start + stop) / 2, abs=HOP)


def test_silence_stays_silent(stages: dict[str, nn.Module]) -> None:
    assert convert(stages, torch.zeros(1, FRAMES * HOP), [])["audio"].abs().max().item() < 1e-4


def test_level_passes_through(stages: dict[str, nn.Module]) -> None:
    """Without the network's opinion the filters follow the loudness one to one."""
    synthesizer = stages["synthesizer"]
    width = ContentEncoder().config.width
    content, flat = torch.zeros(1, FRAMES, width), torch.full((1, FRAMES), 150.0)
    state, embedding = torch.zeros(1, synthesizer.state_size), torch.zeros(1, VOICE_SIZE)
    results = []
    for level in (-6.0, -4.0):
        with torch.no_grad():
            results.append(
                synthesizer(
                    content,
                    torch.full((1, FRAMES), level),
                    flat,
                    torch.ones(1, FRAMES),
                    embedding,
                    torch.zeros(1, 1),
                    state,
                )[0]
            )
    torch.testing.assert_close(results[1], results[0] * torch.e**2, rtol=1e-3, atol=1e-5)
