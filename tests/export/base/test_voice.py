"""The embedding of a voice: statistics that add up, and what the synthesizer reads from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autovoice_export.base.stages.blocks import mel_points
from autovoice_export.base.stages.mel import HIGH_HZ, LOW_HZ, MEL_BANDS, MelAnalysis, cosine_basis
from autovoice_export.base.stages.synthesizer import (
    FORMANT_FACTORS,
    KNEE,
    Synthesizer,
    envelope_to_bands,
    formant_shifts,
    limit,
)
from autovoice_export.base.stages.voice import ENVELOPE_SIZE, PHONES, VOICE_SIZE, Voice, pack, unpack
from autovoice_export.base.stages.voice_encoder import PhoneClassifier, VoiceEncoder
from autovoice_plugins.geometry import HOP, SAMPLE_RATE
from autovoice_plugins.spectral_synth.reference import band_frequencies


def parts(seed: int) -> Voice:
    generator = torch.Generator().manual_seed(seed)
    identity = torch.nn.functional.normalize(torch.rand(1, 256, generator=generator), dim=1)
    shares = torch.softmax(torch.randn(1, PHONES, generator=generator), dim=1)
    sums = shares.unsqueeze(2) * torch.randn(1, PHONES, ENVELOPE_SIZE, generator=generator)
    return Voice(identity, shares, sums)


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_a_change_of_length_changes_nothing(seed: int, scale: float) -> None:
    voice = parts(seed)
    embedding = pack(*voice)
    assert embedding.shape == (1, VOICE_SIZE)
    assert embedding.norm().item() == pytest.approx(1.0, abs=1e-5)
    for found, expected in zip(unpack(embedding * scale), voice, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@given(weight=st.floats(0.0, 1.0))
def test_a_mean_of_embeddings_pools_their_statistics(weight: float) -> None:
    first, second = parts(1), parts(2)

    def unscaled(voice: Voice) -> Tensor:
        embedding = pack(*voice)
        return embedding / embedding[:, 256:257]

    found = unpack(weight * unscaled(first) + (1.0 - weight) * unscaled(second))
    torch.testing.assert_close(found.shares, weight * first.shares + (1.0 - weight) * second.shares)
    torch.testing.assert_close(
        found.sums, weight * first.sums + (1.0 - weight) * second.sums, atol=1e-6, rtol=1e-5
    )


def sounds(seconds: float, seed: int = 0) -> Tensor:
    """Three vowels in turn, [1, T]."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    random = np.random.default_rng(seed)
    phase = 2 * np.pi * 120 * time
    weights = [np.exp(-(((120 * k - (500 + 500 * np.floor(3 * time % 3))) / 200) ** 2)) for k in range(1, 30)]
    tone = sum(weight * np.sin(k * phase) for k, weight in enumerate(weights, start=1))
    return torch.tensor(0.1 * tone + 1e-3 * random.standard_normal(len(time)), dtype=torch.float32)[None]


@pytest.fixture(scope="module")
def encoder() -> VoiceEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VoiceEncoder(PhoneClassifier()).eval()


@torch.no_grad()
def test_level_and_pauses_do_not_change_the_envelopes(encoder: VoiceEncoder) -> None:
    audio = sounds(3.0)
    shares, sums = encoder.statistics(audio)
    louder = encoder.statistics(audio * 5.0)
    torch.testing.assert_close(louder[0], shares, atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(louder[1], sums, atol=1e-3, rtol=1e-2)
    assert shares.sum().item() == pytest.approx(1.0, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 239, 241, 24000])
def test_any_length_has_a_voice(encoder: VoiceEncoder, samples: int) -> None:
    embedding = encoder(sounds(1.0)[:, :samples])
    assert torch.isfinite(embedding).all()
    assert embedding.norm().item() == pytest.approx(1.0, abs=1e-5)


def test_envelopes_are_those_of_the_filter_that_made_them() -> None:
    """White noise through a known smooth filter: the analysis returns the filter, at any level."""
    analysis = MelAnalysis()
    time = torch.arange(400 * HOP)
    noise = torch.randn(1, len(time), generator=torch.Generator().manual_seed(0))
    spectrum = torch.fft.rfft(noise)
    frequency = torch.linspace(0, SAMPLE_RATE / 2, spectrum.shape[1])
    log_gain = torch.cos(2 * torch.pi * frequency / 8000)
    audio = 0.01 * torch.fft.irfft(spectrum * torch.exp(log_gain), n=len(time))
    log_magnitude, loudness = analysis.level_free(analysis(audio))
    # Mean of log |X|, X complex normal of power 1: minus half of Euler's constant, less where bands are wide.
    found = (log_magnitude + loudness.unsqueeze(2)).mean(dim=1)[0]
    bands = envelope_to_bands(ENVELOPE_SIZE).T @ analysis.envelope(found)
    points = torch.from_numpy(band_frequencies()).float()
    expected = torch.cos(2 * torch.pi * points / 8000) + np.log(0.01)
    heard = (points > 300) & (points < 7500)
    assert (bands - expected)[heard].abs().max().item() < 0.35
    assert (bands - expected)[heard].mean().abs().item() < 0.2
    assert found.shape == (MEL_BANDS,)


class TestPhoneEnvelopes:
    @pytest.fixture(scope="class")
    def synthesizer(self) -> Synthesizer:
        synthesizer = Synthesizer()
        synthesizer.average_voice.copy_(torch.randn(PHONES, ENVELOPE_SIZE))
        return synthesizer.eval()

    def test_a_long_reference_speaks_for_itself(self, synthesizer: Synthesizer) -> None:
        own = torch.randn(1, PHONES, ENVELOPE_SIZE)
        shares = torch.full((1, PHONES), 1.0 / PHONES)
        voice = Voice(torch.zeros(1, 256), shares, shares.unsqueeze(2) * own)
        found, _ = synthesizer.phone_envelopes(voice)
        error, before = (found - own).abs().mean(), (synthesizer.average_voice - own).abs().mean()
        assert error < 0.25 * before

    def test_what_a_reference_lacks_is_the_average_moved_as_the_rest(self, synthesizer: Synthesizer) -> None:
        shift = torch.full((ENVELOPE_SIZE,), 0.5)
        shares = torch.zeros(1, PHONES)
        shares[0, 1:21] = 0.05
        sums = shares.unsqueeze(2) * (synthesizer.average_voice + shift)
        found, deviation = synthesizer.phone_envelopes(Voice(torch.zeros(1, 256), shares, sums))
        expected = synthesizer.average_voice + shift
        torch.testing.assert_close(deviation[0], shift, atol=0.02, rtol=0)
        torch.testing.assert_close(found[0, 25:], expected[25:], atol=0.02, rtol=0)

    def test_the_room_in_pauses_is_not_the_voice(self, synthesizer: Synthesizer) -> None:
        shares = torch.full((1, PHONES), 1.0 / PHONES)
        sums = shares.unsqueeze(2) * synthesizer.average_voice.unsqueeze(0)
        sums[:, 0] += 3.0
        _, deviation = synthesizer.phone_envelopes(Voice(torch.zeros(1, 256), shares, sums))
        assert deviation.abs().max().item() < 1e-5


class TestFormantShifts:
    @given(
        formant=st.floats(900.0, 3000.0),
        chosen=st.integers(0, len(FORMANT_FACTORS) - 1),
    )
    def test_a_peak_moves_by_the_factor(self, formant: float, chosen: int) -> None:
        centres = mel_points(MEL_BANDS + 2, LOW_HZ, HIGH_HZ)[1:-1]
        width = 4.0 * (centres[1:] - centres[:-1]).mean()
        basis = cosine_basis(MEL_BANDS, ENVELOPE_SIZE)
        peak = torch.exp(-(((centres - formant) / width) ** 2)).float() @ basis
        shift = formant_shifts(ENVELOPE_SIZE, FORMANT_FACTORS).split(ENVELOPE_SIZE, dim=1)[chosen]
        found = centres[(peak @ shift @ basis.T).argmax()].item()
        assert found == pytest.approx(formant * FORMANT_FACTORS[chosen], rel=0.06)

    def test_the_factor_one_changes_nothing(self) -> None:
        shift = formant_shifts(ENVELOPE_SIZE, FORMANT_FACTORS).split(ENVELOPE_SIZE, dim=1)[
            FORMANT_FACTORS.index(1.0)
        ]
        torch.testing.assert_close(shift, torch.eye(ENVELOPE_SIZE), atol=1e-5, rtol=0)

    def test_shares_decide_between_moved_source_and_target(self) -> None:
        synthesizer = Synthesizer().eval()
        envelopes = torch.randn(1, 3, 2 * ENVELOPE_SIZE)
        source, target = envelopes.split(ENVELOPE_SIZE, dim=2)
        with torch.no_grad():
            for layer in (synthesizer.shift, synthesizer.share):
                layer.weight.zero_()
            synthesizer.shift.bias.copy_(40.0 * torch.eye(len(FORMANT_FACTORS))[2])
            moved = source @ formant_shifts(ENVELOPE_SIZE, FORMANT_FACTORS).split(ENVELOPE_SIZE, dim=1)[2]
            for bias, expected in ((40.0, [2 * moved, 0 * target]), (-40.0, [0 * moved, 2 * target])):
                synthesizer.share.bias.fill_(bias)
                found = synthesizer.mixture(torch.randn(1, 3, synthesizer.config.channels), envelopes)
                torch.testing.assert_close(found, torch.cat(expected, dim=2), atol=1e-5, rtol=1e-5)


def test_loud_peaks_bend_and_the_rest_stays() -> None:
    audio = torch.linspace(-3.0, 3.0, 6001)
    limited = limit(audio)
    quiet = audio.abs() <= KNEE
    assert torch.equal(limited[quiet], audio[quiet])
    assert limited.abs().max() <= 1.0
    steps = limited.diff()
    assert (steps >= 0).all()
    # No corner where the bend begins.
    assert (steps.diff().abs() < 0.02 * 0.001).all()
