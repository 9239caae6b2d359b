"""Losses, perturbations and discriminators measure what they should, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from autovoice_export.base.stages.mel import WINDOW, MelAnalysis
from autovoice_export.base.stages.voice_encoder import ReferenceEncoder
from autovoice_plugins.geometry import BANDS, FLOOR, HOP, SAMPLE_RATE
from autovoice_plugins.spectral_synth.reference import band_frequencies
from autovoice_training.train import perturbation
from autovoice_training.train.discriminator import Discriminators
from autovoice_training.train.losses import FilterLoss, MelLoss, PhoneLoss, SpeakerLoss
from autovoice_training.train.perturbation import TAIL_FRAMES, perturb_mel

FULL_BAND = torch.tensor([48000.0])


def buzz(pitch: float, seconds: float = 1.6, formant: float = 800.0) -> Tensor:
    """A vowel whose level wanders, [1, T]."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    weights = [np.exp(-(((pitch * k - formant) / 600.0) ** 2)) + 0.02 for k in range(1, int(8000 / pitch))]
    tone = sum(w * np.sin(2 * np.pi * pitch * k * time) for k, w in enumerate(weights, start=1))
    return torch.from_numpy(0.1 * tone * (1.2 + np.sin(20 * time))).float()[None]


def noise(seconds: float, rows: int = 1) -> Tensor:
    return 0.1 * torch.randn(rows, round(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(0))


def test_mel_loss_ignores_what_is_above_the_native_nyquist() -> None:
    loss = MelLoss()
    low = torch.nn.functional.avg_pool1d(noise(1.0, 2), 9, 1, 4)
    time = torch.arange(24000) / SAMPLE_RATE
    whistle = low + 0.05 * torch.sin(2 * torch.pi * 10000 * time)
    weight = torch.ones(2, 100)
    deaf = loss(whistle, low, torch.tensor([16000.0, 16000.0]), weight)
    hears = loss(whistle, low, torch.tensor([44100.0, 44100.0]), weight)
    for heard, unheard in zip(hears, deaf, strict=True):
        assert heard > 5 * unheard + 0.05


def test_mel_loss_follows_the_weight_of_frames() -> None:
    loss = MelLoss()
    audio = noise(1.0)
    broken = audio.clone()
    broken[:, 12000:] *= 3.0
    first = torch.cat([torch.ones(1, 44), torch.zeros(1, 56)], dim=1)
    assert max(value.item() for value in loss(broken, audio, FULL_BAND, first)) < 1e-6
    second = torch.cat([torch.zeros(1, 56), torch.ones(1, 44)], dim=1)
    logarithmic, relative = loss(broken, audio, FULL_BAND, second)
    assert logarithmic.item() == pytest.approx(np.log(3.0), abs=0.15)
    assert relative.item() == pytest.approx(2.0, abs=0.1)


class TestFilterLoss:
    """A target with the spectrum of white noise at -40 dB: both filters together let through as much."""

    LEVEL = -4.0
    SPLIT = 0.5 * np.log(0.5)

    @pytest.fixture(scope="class")
    def loss(self) -> FilterLoss:
        return FilterLoss(MelAnalysis(), 40)

    def filters(self) -> tuple[Tensor, Tensor]:
        both = torch.full((1, 30, BANDS), self.LEVEL + self.SPLIT)
        return both.clone(), both

    def target(self, loss: FilterLoss) -> Tensor:
        power = torch.exp(torch.tensor(2.0 * self.LEVEL)) / (WINDOW / 2)
        return (power * loss.analysis.width).repeat(1, 30, 1)

    def distance(self, loss: FilterLoss, harmonic: Tensor, noise: Tensor, rate: float = 48000.0) -> float:
        one = torch.ones(1)
        return loss(harmonic, noise, self.target(loss), rate * one, one).item()

    def test_the_target_s_own_envelope_costs_nothing(self, loss: FilterLoss) -> None:
        harmonic, noise = self.filters()
        assert self.distance(loss, harmonic, noise) < 1e-3
        silent = torch.full_like(noise, FLOOR)
        assert self.distance(loss, harmonic - self.SPLIT, silent) < 1e-3, "however it is split"
        assert self.distance(loss, harmonic + 0.3, noise + 0.3) == pytest.approx(0.3, abs=0.01), "nepers"

    def test_it_is_deaf_above_the_native_nyquist_and_8_khz(self, loss: FilterLoss) -> None:
        hertz = torch.from_numpy(band_frequencies())
        for rate, top in ((8000.0, 3600.0), (48000.0, 8000.0)):
            harmonic, noise = self.filters()
            harmonic[:, :, hertz >= top] += 1.0
            assert self.distance(loss, harmonic, noise, rate) < 1e-3
            harmonic[:, :, hertz < top] += 1.0
            assert self.distance(loss, harmonic, noise, rate) > 0.1

    def test_pauses_count_little_and_unpaired_items_not_at_all(self, loss: FilterLoss) -> None:
        harmonic, noise = self.filters()
        target = self.target(loss)
        target[:, 15:] *= 1e-6
        one, rate = torch.ones(1), FULL_BAND
        expected = loss(harmonic, noise, target, rate, one).item()
        # The pauses are 6.9 nepers too loud and a fifth as important.
        assert expected == pytest.approx(0.2 / 1.2 * 0.5 * np.log(1e6), rel=0.05)
        assert loss(harmonic, noise, target, rate, torch.zeros(1)).item() == 0


def test_speaker_loss_wants_the_target_and_not_the_source() -> None:
    loss = SpeakerLoss()
    voices = torch.cat([buzz(110.0), buzz(240.0, formant=1700.0)])
    with torch.no_grad():
        own = loss.encoder.embed_window(voices)
    other = own.flip(0)
    assert (own[0] @ own[1]).item() < 0.85
    right = loss(voices, own, other).item()
    assert right < loss(voices, other, own).item() - 0.5
    # Where the target is the source itself there is nothing to keep away from but the other target.
    assert loss(voices, own, own).item() <= right
    assert loss.encoder.lstm.training, "cuDNN refuses to go back through an LSTM that is in evaluation mode"


def test_phone_loss_hears_other_words_and_not_the_level() -> None:
    torch.manual_seed(0)
    loss = PhoneLoss(ReferenceEncoder().requires_grad_(False))
    analysis = MelAnalysis()
    same, other = (analysis(audio) for audio in (buzz(110.0), buzz(110.0, formant=2500.0)))
    wanted = loss.logits(same)
    assert loss(same, wanted).item() == pytest.approx(0.0, abs=1e-7)
    assert loss(same * 30.0, wanted).item() == pytest.approx(0.0, abs=1e-6)
    assert loss(same.roll(1, dims=1), wanted) > 1e-6
    other.requires_grad_()
    changed = loss(other, wanted)
    assert changed > 1e-4
    changed.backward()
    assert other.grad is not None
    assert other.grad.abs().max() > 0


class TestPerturbation:
    ITEMS, FRAMES = 60, 70

    @pytest.fixture
    def mel(self) -> Tensor:
        """A formant that sounds for ten frames."""
        mel = torch.full((self.ITEMS, self.FRAMES, 80), 1e-9)
        mel[:, 10:20, 38:43] = 1.0
        return mel

    def test_shape_is_kept_and_noise_is_below_the_mean(self, mel: Tensor) -> None:
        result = perturb_mel(mel, torch.Generator().manual_seed(2))
        assert result.shape == mel.shape
        assert torch.isfinite(result).all()
        assert (result > 0).all()
        # 55 to 5 dB below the mean of what it is added to, which an equaliser of 1.9 nepers may have raised.
        noise = result[:, :10].mean(dim=(1, 2)) / mel.mean(dim=(1, 2))
        assert (noise < 10**-0.5 * np.exp(1.9 + 0.6)).all()
        assert 10 * np.log10(noise.max() / noise.min()) > 20

    def test_without_noise_a_sound_moves_stays_in_its_frames_and_may_ring(
        self, mel: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(perturbation, "NOISE_DB", (150.0, 150.0))
        monkeypatch.setattr(perturbation, "BAND_LIMITED", 0.0)
        result = perturb_mel(mel, torch.Generator().manual_seed(2))
        loud = result.sum(dim=2)
        assert loud[:, :10].max() < 1e-5 * loud[:, 10].min()
        assert (loud[:, 10:20] > 0.1).all()
        # x0.84 to x1.19 is up to six bands at 1.7 kHz.
        peaks = (result[:, 15] * torch.arange(80)).sum(dim=1) / result[:, 15].sum(dim=1)
        assert (peaks - 40).abs().max() < 7
        assert peaks.std() > 1
        rings = loud[:, 20] > 1e-3 * loud[:, 15]
        assert 0.1 * self.ITEMS < rings.sum() < 0.5 * self.ITEMS
        assert (loud[~rings, 20:] < 1e-5).all()
        assert (loud[rings, 20 : 20 + TAIL_FRAMES - 1].diff(dim=1) <= 0).all()

    def test_some_lose_the_band_of_a_telephone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        flat = torch.ones(self.ITEMS, 20, 80)
        result = perturb_mel(flat, torch.Generator().manual_seed(2))
        share = (result[:, :, -1].mean(dim=1) < 1e-3).float().mean()
        assert 0.05 < share < 0.4
        monkeypatch.setattr(perturbation, "BAND_LIMITED", 0.0)
        assert (perturb_mel(flat, torch.Generator().manual_seed(2)) > 0.05).all()


class TestDiscriminators:
    def test_they_learn_to_tell_noise_from_tones(self) -> None:
        torch.manual_seed(0)
        discriminators = Discriminators()
        optimizer = torch.optim.AdamW(discriminators.parameters(), lr=2e-3)
        tones = torch.cat([buzz(pitch, 0.25) for pitch in (100.0, 140.0, 190.0)])
        rate, paired = torch.full((3,), 48000.0), torch.tensor([False, True, True])
        voices = torch.eye(1, 256).expand(3, -1)
        losses = []
        for _ in range(25):
            loss = discriminators.discriminator_loss(tones, noise(0.25, 3), rate, voices, paired)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert 0 < losses[-1] < 0.3 * losses[0]
        with torch.no_grad():
            adversarial, matching = discriminators.generator_loss(tones, noise(0.25, 3), rate, voices, paired)
            itself = discriminators.generator_loss(tones, tones, rate, voices, paired)
        assert adversarial > 3 * itself[0]
        assert itself[1].item() == 0
        assert matching > 0.1

    def test_they_learn_whose_voice_it_is(self) -> None:
        torch.manual_seed(0)
        discriminators = Discriminators()
        optimizer = torch.optim.AdamW(discriminators.parameters(), lr=2e-3)
        recordings = torch.cat([buzz(110.0, 0.25, 500.0), buzz(110.0, 0.25, 2500.0)])
        rate, voices, paired = torch.full((2,), 48000.0), torch.eye(2, 256), torch.tensor([True, True])
        for _ in range(40):
            loss = discriminators.discriminator_loss(recordings, noise(0.25, 2), rate, voices, paired)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right, _ = discriminators.generator_loss(recordings, recordings, rate, voices, paired)
            wrong, _ = discriminators.generator_loss(recordings, recordings, rate, voices.flip(0), paired)
        assert right < 0.5 * wrong

    @torch.no_grad()
    def test_level_and_what_is_above_the_native_nyquist_are_not_heard(self) -> None:
        torch.manual_seed(0)
        discriminators = Discriminators()
        audio = buzz(120.0, 0.25)
        whistle = audio + 0.03 * torch.sin(2 * torch.pi * 10000 * torch.arange(audio.shape[1]) / SAMPLE_RATE)

        def difference(other: Tensor, rate: float) -> float:
            native = torch.tensor([rate])
            parts = ((one(audio, native), one(other, native)) for one in discriminators)
            return max(
                (a - b).abs().max().item()
                for first, second in parts
                for a, b in zip(first, second, strict=True)
            )

        assert difference(audio * 3.0, 48000.0) < 0.01
        assert difference(whistle, 16000.0) < 0.2 * difference(whistle, 48000.0)
        assert difference(audio.roll(HOP * 10, dims=1), 48000.0) > 0.05
