"""Parts of the synthesizer that are switched off say nothing any more, and the others what they said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autovoice_export.base.checkpoint import Checkpoint
from autovoice_export.base.stages.blocks import StateReader
from autovoice_export.base.stages.content_encoder import split_content
from autovoice_export.base.stages.synthesizer import Synthesizer
from autovoice_export.base.stages.voice import TOKENS, pack, unpack
from autovoice_training.evaluate.parts import variants

FRAMES = 50


@pytest.fixture(scope="module")
def voices() -> dict[str, Checkpoint]:
    return dict(variants(Checkpoint.untrained(0)))


@torch.no_grad()
def envelopes(synthesizer: Synthesizer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What an unvoiced source lets through, [1, F, 80], and its three ingredients."""
    generator = torch.Generator().manual_seed(0)
    embedding = pack(
        torch.nn.functional.normalize(torch.rand(1, 256, generator=generator), dim=1),
        torch.nn.functional.normalize(torch.randn(1, TOKENS, 24, generator=generator), dim=2),
        torch.randn(1, TOKENS, 40, generator=generator),
    )
    content = torch.randn(1, FRAMES, 161, generator=generator)
    content[:, :, 0] = 1.0
    nothing, f0 = torch.zeros(1, synthesizer.state_size), torch.zeros(1, FRAMES)
    _, noise, _ = synthesizer.filters(content, f0, f0, f0, embedding, StateReader(nothing))
    heard = split_content(content, 96, 40)
    target, _ = synthesizer.look_up(heard.key, unpack(embedding))
    moved, _ = synthesizer.move(heard.envelope, target, heard.speech, torch.zeros(1, synthesizer.memory_size))
    return (
        noise,
        heard.envelope @ synthesizer.to_bands,
        moved @ synthesizer.to_bands,
        target @ synthesizer.to_bands,
    )


def test_without_the_network_the_shares_are_what_the_names_say(voices: dict[str, Checkpoint]) -> None:
    for name, voice in voices.items():
        if not name.startswith("no network"):
            continue
        noise, _, moved, target = envelopes(voice.synthesizer)
        share = {"none": 0.0, "third": 1 / 3, "thirds": 2 / 3, "all": 1.0}[name.split()[-1]]
        torch.testing.assert_close(noise, moved + share * (target - moved), atol=0.02, rtol=0.01, msg=name)


def test_without_warp_the_source_keeps_its_shape(voices: dict[str, Checkpoint]) -> None:
    plain, warped = (
        envelopes(voices[f"no network, source's envelopes {kind}, of the target's none"].synthesizer)
        for kind in ("moved", "warped and moved")
    )
    # Only the mean moves, slowly: from frame to frame it is the source's.
    steps = [(one[0] - one[1]).diff(dim=1).abs().mean().item() for one in (plain, warped)]
    assert steps[0] < 0.2 * steps[1]


def test_the_whole_voice_is_among_them_and_shares_can_be_shifted(voices: dict[str, Checkpoint]) -> None:
    whole, less = (
        envelopes(voices[name].synthesizer) for name in ("all", "all, log odds of the target's share -1.0")
    )
    assert not torch.equal(whole[0], less[0])
    torch.testing.assert_close(whole[2], less[2])
    untouched = envelopes(Checkpoint.untrained(0).synthesizer)
    torch.testing.assert_close(whole[0], untouched[0], rtol=0, atol=0)
