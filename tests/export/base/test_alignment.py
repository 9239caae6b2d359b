"""Padding and trimming: every length, and nothing lost between them."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from autovoice_export.base.stages.alignment import PadSource, PadSourceWithF0, TrimOutput
from autovoice_export.base.stages.timing import FEATURE_DELAY_FRAMES, LOOKAHEAD
from autovoice_plugins.geometry import HOP

LENGTHS = st.one_of(st.integers(1, 2000), st.integers(0, 40).map(lambda k: 240 * k + 120))


@given(LENGTHS.filter(bool))
def test_padding_adds_the_look_ahead_and_completes_the_frame(length: int) -> None:
    audio = torch.arange(1, length + 1, dtype=torch.float32).repeat(2, 1)
    padded, *states = PadSource(3, 5, 7)(audio)
    assert padded.shape[1] == HOP * math.ceil((length + LOOKAHEAD) / HOP)
    assert torch.equal(padded[:, :length], audio)
    assert not padded[:, length:].any()
    assert [tuple(state.shape) for state in states] == [(2, 3), (2, 5), (2, 7)]
    assert not any(state.any() for state in states)


@given(LENGTHS.filter(bool))
def test_given_pitch_arrives_two_frames_late_and_fits_the_audio(length: int) -> None:
    frames = math.ceil(length / HOP)
    f0 = torch.arange(1, frames + 1, dtype=torch.float32).unsqueeze(0)
    padded, _, _, _, late = PadSourceWithF0(1, 1, 1)(torch.ones(1, length), f0)
    assert late.shape[1] * HOP == padded.shape[1]
    assert torch.equal(late[:, FEATURE_DELAY_FRAMES : FEATURE_DELAY_FRAMES + frames], f0)
    assert late.sum() == f0.sum()


@given(LENGTHS.filter(bool))
def test_what_is_late_by_the_look_ahead_comes_out_on_time(length: int) -> None:
    audio = torch.rand(2, length)
    padded = PadSource(1, 1, 1)(audio)[0]
    late = torch.cat([torch.full((2, LOOKAHEAD), 9.0), padded], dim=1)[:, : padded.shape[1]]
    assert torch.equal(TrimOutput()(late, audio), audio)
