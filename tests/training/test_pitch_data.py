"""What the pitch extractor learns from: the answers belong to the audio, frame by frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from autovoice_plugins.geometry import HOP, PITCH_YIN_STATE_SIZE, SAMPLE_RATE
from autovoice_plugins.pitch_yin.torch_op import pitch_yin
from autovoice_training.corpus.reader import Corpus
from autovoice_training.train.pitch_data import (
    Float,
    PitchBank,
    PitchItems,
    label,
    sung,
    swift_track,
    transposed,
    whispered,
)

QUIET = Console(quiet=True)


def heard(audio: Float) -> Float:
    """F0 of every frame by the op, [F] in Hz."""
    padded = torch.from_numpy(np.pad(audio, (0, 2 * HOP)).astype(np.float32))
    f0, _, _ = pitch_yin(padded.unsqueeze(0), torch.zeros(1, PITCH_YIN_STATE_SIZE))
    return f0[0, 2:].numpy()


def cents(f0: Float, expected: Float) -> float:
    """Median distance where both are voiced, which most frames must be."""
    both = (f0 > 0) & (expected > 0)
    assert both.mean() > 0.3
    return float(np.median(np.abs(1200 * np.log2(f0[both] / expected[both]))))


def glide(seconds: float) -> tuple[Float, Float]:
    """A voice that rises by an octave a second, and its F0 at the middle of every frame."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(120 * 2.0**time) / SAMPLE_RATE
    audio = 0.2 * sum(np.sin(k * phase) / k for k in range(1, 9))
    return audio.astype(np.float32), 120 * 2.0 ** ((np.arange(len(audio) // HOP) + 0.5) * HOP / SAMPLE_RATE)


def test_answers_of_swift_f0_belong_to_the_middle_of_the_frame() -> None:
    audio, expected = glide(1.0)
    f0, voiced = swift_track(audio)
    inside = slice(10, -10)
    assert (voiced[inside] > 0.5).all()
    # One frame of 10 ms is 12 cents.
    assert abs(np.median(1200 * np.log2(f0[inside] / expected[inside]))) < 6


@pytest.mark.parametrize("seed", range(4))
def test_notes_have_the_pitch_they_say(seed: int) -> None:
    audio, f0, voiced = sung(np.random.default_rng(seed), 300)
    assert cents(heard(audio), f0 * voiced) < 12


def test_transposed_speech_has_the_pitch_it_says() -> None:
    audio, f0 = glide(1.0)
    for seed in range(3):
        made, moved, voiced = transposed(
            np.random.default_rng(seed), audio, f0.astype(np.float32), np.ones(len(f0), np.float32)
        )
        assert made.shape == audio.shape
        assert abs(np.log(moved[50] / f0[50])) > 0.1
        inside = np.where(np.abs(np.arange(len(f0)) - 50) < 40, voiced, 0)
        assert cents(heard(made), moved * inside) < 8


def test_a_whisper_has_the_spectrum_and_no_pitch() -> None:
    audio, _ = glide(1.0)
    made = whispered(np.random.default_rng(0), audio)
    assert (heard(made) > 0).mean() < 0.1
    assert np.std(made) == pytest.approx(np.std(audio), rel=0.3)


@pytest.fixture(scope="module")
def items(people_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PitchItems:
    labels = tmp_path_factory.mktemp("labels")
    label(Corpus(people_folder), labels, 1, QUIET)
    return PitchItems(Corpus(people_folder), labels, seed=1, crop_frames=100)


@pytest.mark.parametrize("number", range(4))
def test_speech_played_faster_has_a_higher_pitch(items: PitchItems, number: int) -> None:
    audio, f0, voiced = items._spoken(np.random.default_rng(number))
    assert cents(heard(audio), f0 * (voiced > 0.5)) < 12


def test_items_are_made_once_whoever_makes_them(items: PitchItems, tmp_path: Path) -> None:
    bank = PitchBank(items, tmp_path, 3)
    bank.make(1, QUIET)
    first = bank.read()
    assert first.spectrum.shape == (3, 100, 96)
    _, f0, voiced = items.draw(2)
    np.testing.assert_array_equal(first.f0[2], f0)
    np.testing.assert_array_equal(first.voiced[2], voiced)
    (shard,) = tmp_path.iterdir()
    made = shard.stat().st_mtime_ns
    bank.make(1, QUIET)
    assert shard.stat().st_mtime_ns == made
