"""The pitch extractor: what the network decides about the answers of the op."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from autovoice_export.base.stages.blocks import mel_points
from autovoice_export.base.stages.pitch_extractor import (
    PITCH_BINS,
    PitchExtractor,
    bin_to_pitch,
    pitch_to_bin,
    reconciled,
)
from autovoice_plugins.geometry import F0_MAX, HOP, SAMPLE_RATE
from autovoice_plugins.pitch_yin.torch_op import pitch_yin

FRAMES = 50


def voice(hz: float, hiss: float = 1e-3) -> Tensor:
    """A harmonic tone between two pauses in noise of some RMS, [1, 240 * 50]."""
    time = np.arange(FRAMES * HOP) / SAMPLE_RATE
    sound = sum(np.sin(2 * np.pi * k * hz * time) / k for k in range(1, 10)) * (np.abs(time - 0.25) < 0.15)
    noise = hiss * np.random.default_rng(0).standard_normal(len(time))
    return torch.tensor(0.1 * sound + noise, dtype=torch.float32).unsqueeze(0)


@torch.no_grad()
def measured(extractor: PitchExtractor, audio: Tensor) -> Tensor:
    f0: Tensor = extractor(audio, torch.zeros(len(audio), extractor.state_size))[0]
    return f0


@pytest.mark.parametrize("hz", [70.0, 200.0, 1000.0])
def test_before_training_the_answers_are_those_of_the_op(hz: float) -> None:
    extractor, audio = PitchExtractor(), voice(hz)
    f0, _, _ = pitch_yin(audio, torch.zeros(1, 6 * HOP))
    assert (f0 > 0).sum() > 25
    torch.testing.assert_close(measured(extractor, audio), f0)


def test_the_network_decides_on_voicing_and_octave() -> None:
    audio, extractor = voice(400.0, hiss=0.06), PitchExtractor()
    alone = measured(extractor, audio)
    voiced = slice(15, 40)  # away from the ends, where the op leaps
    with torch.no_grad():
        extractor.output.bias[1:] = -2.0 * torch.abs(extractor.bins - pitch_to_bin(torch.tensor(200.0)))
    torch.testing.assert_close(measured(extractor, audio)[:, voiced], 0.5 * alone[:, voiced])
    with torch.no_grad():
        extractor.output.bias[0] = -10.0
    assert not measured(extractor, audio).any()


@pytest.mark.parametrize(
    ("heard", "expected", "answer"),
    [
        (200.0, 204.0, 200.0),
        (100.0, 204.0, 200.0),
        (67.0, 204.0, 201.0),
        (401.0, 204.0, 200.5),
        (150.0, 204.0, 204.0),  # no multiple
        (400.0, 51.0, 51.0),  # eight times too high
    ],
)
def test_the_op_is_finer_and_the_network_knows_the_octave(
    heard: float, expected: float, answer: float
) -> None:
    f0 = reconciled(torch.tensor([[heard]]), torch.tensor([[expected]]))
    assert f0.item() == pytest.approx(answer, rel=1e-5)


def test_bins_are_quarter_tones_over_the_range_of_the_op() -> None:
    places = torch.arange(PITCH_BINS, dtype=torch.float32)
    torch.testing.assert_close(pitch_to_bin(bin_to_pitch(places)), places, atol=1e-4, rtol=0)
    assert F0_MAX * 0.97 < bin_to_pitch(places)[-1].item() <= F0_MAX


def test_a_distribution_is_refined_around_its_maximum() -> None:
    """The mean of both sides, and nothing of a second maximum an octave below."""
    extractor = PitchExtractor()
    logits = torch.full((1, 1, PITCH_BINS), -20.0)
    logits[0, 0, 60], logits[0, 0, 61], logits[0, 0, 36] = 1.0, 1.0, 0.9
    torch.testing.assert_close(extractor.likeliest(logits), bin_to_pitch(torch.tensor([[60.5]])))


@pytest.mark.parametrize("hz", [60.0, 331.0, 3000.0])
def test_the_spectrum_shows_a_tone_in_the_middle_of_its_window(hz: float) -> None:
    """Two frames late, at the band of its frequency."""
    extractor = PitchExtractor()
    time = torch.arange(FRAMES * HOP) / SAMPLE_RATE
    middle, size = (20 + 0.5) * HOP / SAMPLE_RATE, HOP / SAMPLE_RATE
    tone = torch.sin(2 * torch.pi * hz * time) * (torch.abs(time - middle) < 0.5 * size)
    spectrum = extractor.spectrum(tone.unsqueeze(0), torch.zeros(1, 6 * HOP))[0]
    assert int(spectrum.amax(dim=1).argmax()) == 22
    other = extractor.spectrum(torch.sin(2 * torch.pi * hz * time).unsqueeze(0), torch.zeros(1, 6 * HOP))
    band = int(other[0, 30].argmax())
    points = mel_points(97, 50.0, 8000.0)
    assert points[band - 1] < hz < points[band + 1]


def test_a_certain_period_keeps_its_octave() -> None:
    """A tone without its fundamental, which the network may take for a higher one."""
    time = torch.arange(FRAMES * HOP) / SAMPLE_RATE
    audio = 0.1 * sum(torch.sin(2 * torch.pi * k * 150.0 * time) for k in range(3, 9)).unsqueeze(0)
    extractor = PitchExtractor()
    with torch.no_grad():
        extractor.output.bias[1:] = -2.0 * torch.abs(extractor.bins - pitch_to_bin(torch.tensor(300.0)))
    torch.testing.assert_close(
        measured(extractor, audio)[:, 10:], torch.full((1, FRAMES - 10), 150.0), rtol=1e-3, atol=0
    )
