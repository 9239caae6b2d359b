"""Faults of converted audio that can be told without knowing how it should sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from autovoice.server.answers import CLIPPED, SILENT, audio_faults

ROOT = Path(__file__).resolve().parents[3]
TIME = np.arange(2400, dtype=np.float32) / 24000
TONE = (0.3 * np.sin(2 * np.pi * 200 * TIME)).astype(np.float32)
NOISE = (0.1 * np.random.default_rng(0).standard_normal(2400)).astype(np.float32)
ZEROS = np.zeros_like(TONE)
GOOD = {"tone": TONE, "noise": NOISE, "quiet": TONE * 1e-3, "square of few samples": np.sign(TONE) * 0.05}
FAULTY = {
    "zeros": (ZEROS, SILENT),
    "next to nothing": (TONE * 1e-5, SILENT),
    "an offset": (ZEROS + 0.09, SILENT),
    "beyond full scale": (TONE * 4, CLIPPED),
    "beyond full scale below": (np.where(TONE < -0.29, -1.5, TONE), CLIPPED),
    "cut off": (np.clip(TONE, -0.2, 0.2), CLIPPED),
    "cut off above": (np.minimum(TONE, 0.2), CLIPPED),
    "cut off below": (np.maximum(TONE, -0.2), CLIPPED),
    "saturated": (np.tanh(TONE * 100), CLIPPED),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("source", [TONE, NOISE], ids=["tone", "noise"])
def test_good_answers_have_no_fault(source: np.ndarray, name: str) -> None:
    assert audio_faults(source[None], GOOD[name][None]) == []


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_answers_are_found_in_any_row(name: str) -> None:
    made, fault = FAULTY[name]
    made = made.astype(np.float32)
    assert audio_faults(TONE[None], made[None]) == [fault]
    assert audio_faults(np.stack([NOISE, TONE]), np.stack([NOISE, made])) == [fault]


@pytest.mark.parametrize("source", [ZEROS, TONE * 1e-2, ZEROS + 0.3], ids=["zeros", "quiet", "offset"])
def test_silence_of_silence_is_no_fault(source: np.ndarray) -> None:
    assert audio_faults(source[None], ZEROS[None]) == []
    assert audio_faults(np.stack([source, TONE]), np.stack([ZEROS, TONE])) == []


def test_recordings_of_speech_have_no_fault() -> None:
    for path in sorted((ROOT / "demo").glob("*.flac")):
        audio = soundfile.read(path, dtype="float32")[0][None]
        assert audio_faults(audio, audio) == []
        for start in range(0, audio.shape[1] - 480, 480):
            chunk = audio[:, start : start + 480]
            assert audio_faults(chunk, chunk) == []
