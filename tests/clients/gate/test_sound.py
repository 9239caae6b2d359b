"""The measures of the gate on sounds of which the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autovoice.gate import sound
from autovoice.gate.suite import Suite, conditions

RATE = 24000
TONE = (0.3 * np.sin(2 * np.pi * 200 * np.arange(2 * RATE) / RATE)).astype(np.float32)


@pytest.mark.parametrize(
    ("audio", "share"),
    [
        (TONE, 0.0),
        (3 * TONE, 0.0),  # peaks at 0.9
        (np.clip(3 * TONE, -0.6, 0.6), 0.54),  # of a sine of 0.9, beyond 0.6
        (5 * TONE, 0.54),  # of a sine of 1.5, beyond 1
        (np.zeros(100, np.float32), 0.0),
    ],
    ids=["quiet", "loud", "flat", "beyond", "silent"],
)
def test_clipping_is_what_lies_beyond_full_scale_or_is_held(audio: np.ndarray, share: float) -> None:
    assert sound.clipped_share(audio) == pytest.approx(share, abs=0.02)


def test_lost_speech_is_that_which_came_out_silent() -> None:
    made = TONE.copy()
    made[: made.size // 4] *= 0.01
    assert sound.lost_speech(TONE, RATE, made, RATE) == pytest.approx(0.25, abs=0.02)
    assert sound.lost_speech(TONE, RATE, made[::2], RATE // 2) == pytest.approx(0.25, abs=0.02)
    assert sound.lost_speech(TONE, RATE, 0.1 * TONE, RATE) == 0.0
    pauses = np.concatenate((TONE, np.zeros(RATE, np.float32)))
    assert sound.lost_speech(pauses, RATE, pauses, RATE) == 0.0


def test_pitch_has_to_follow_its_source_and_the_shift() -> None:
    source = np.full(100, 120.0, np.float32)
    source[::5] = 0.0
    octave = 2 * source
    assert sound.pitch_errors(source, octave, 12.0) == (0.0, 0.0)
    assert sound.pitch_errors(source, octave, 0.0) == (pytest.approx(12.0), 1.0)
    jumps = np.where(np.arange(100) % 4 == 0, octave, source)
    deviation, gross = sound.pitch_errors(source, jumps, 0.0)
    assert (deviation, gross) == (0.0, pytest.approx(0.25, abs=0.05))
    deviation, gross = sound.pitch_errors(source, 0 * source, 0.0)
    assert math.isnan(deviation)
    assert gross == 1.0


def test_conditions_are_five_of_real_speech(suite: Suite) -> None:
    made = {one.name: one for one in conditions(suite, RATE, 20.0)}
    assert list(made) == ["quiet", "loud", "silent", "noisy", "long"]
    assert np.abs(made["quiet"].audio).max() < 0.02
    assert np.abs(made["loud"].audio).max() == pytest.approx(0.9)
    assert not made["silent"].audio.any()
    assert made["long"].audio.size == 20 * RATE
    assert all((one.speech is None) == (name == "silent") for name, one in made.items())
