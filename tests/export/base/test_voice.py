"""The embedding of a voice: frames of its reference, and what the synthesizer reads from them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autovoice_export.base.stages.blocks import StateReader
from autovoice_export.base.stages.content_encoder import ContentEncoder, ContentEncoderConfig
from autovoice_export.base.stages.mel import MEL_BANDS, MelAnalysis
from autovoice_export.base.stages.synthesizer import (
    KNEE,
    LARGEST_WARP,
    MEMORY_FRAMES,
    PRIOR_FRAMES,
    SOFTNESS,
    UNVOICED_ATTENUATION,
    WARPED_COSINES,
    WARPS,
    Synthesizer,
    SynthesizerConfig,
    envelope_to_bands,
    limit,
    noise_attenuation,
)
from autovoice_export.base.stages.voice import (
    ENVELOPE_SIZE,
    KEY_SIZE,
    TOKENS,
    VOICE_SIZE,
    Voice,
    pack,
    unpack,
)
from autovoice_export.base.stages.voice_encoder import (
    SPEECH_RANGE_DB,
    ReferenceEncoder,
    ReferenceEncoderConfig,
    VoiceEncoder,
    gather_frames,
    speech_frames,
)
from autovoice_plugins.geometry import FLOOR, HOP, SAMPLE_RATE
from autovoice_plugins.spectral_synth.reference import band_frequencies


def parts(seed: int) -> Voice:
    generator = torch.Generator().manual_seed(seed)
    identity = torch.nn.functional.normalize(torch.rand(1, 256, generator=generator), dim=1)
    keys = torch.nn.functional.normalize(torch.randn(1, TOKENS, KEY_SIZE, generator=generator), dim=2)
    return Voice(identity, keys, torch.randn(1, TOKENS, ENVELOPE_SIZE, generator=generator))


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_a_change_of_length_changes_nothing(seed: int, scale: float) -> None:
    voice = parts(seed)
    embedding = pack(*voice)
    assert embedding.shape == (1, VOICE_SIZE)
    assert embedding.norm().item() == pytest.approx(1.0, abs=1e-5)
    for found, expected in zip(unpack(embedding * scale), voice, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


class TestSpeechFrames:
    @given(runs=st.lists(st.tuples(st.booleans(), st.integers(1, 200)), min_size=1, max_size=8))
    def test_they_lie_evenly_over_the_speech_alone(self, runs: list[tuple[bool, int]]) -> None:
        quiet = 0.3 * 10.0 ** (-0.1 * SPEECH_RANGE_DB)
        heard = np.concatenate([[True], *(np.full(frames, loud) for loud, frames in runs)])
        chosen = speech_frames(torch.from_numpy(np.where(heard, 0.04, 0.04 * quiet)).float()[None])[0].numpy()
        rank = np.searchsorted(np.flatnonzero(heard), chosen)
        assert heard[chosen].all()
        expected = np.floor((np.arange(TOKENS) + 0.5) / TOKENS * heard.sum())
        np.testing.assert_array_equal(rank, expected)

    @given(gain=st.floats(1e-6, 1e4), before=st.integers(0, 300), after=st.integers(0, 3000))
    def test_silence_and_gain_change_nothing(self, gain: float, before: int, after: int) -> None:
        energy = torch.rand(1, 250, generator=torch.Generator().manual_seed(0)) ** 8
        plain = speech_frames(energy)
        padded = torch.cat([torch.zeros(1, before), gain * energy, torch.zeros(1, after)], dim=1)
        torch.testing.assert_close(speech_frames(padded), plain + before)

    def test_every_row_of_a_batch_has_its_own(self) -> None:
        generator = torch.Generator().manual_seed(0)
        energy, values = (
            torch.rand(3, 100, generator=generator) ** 8,
            torch.randn(3, 100, 5, generator=generator),
        )
        together = gather_frames(values, speech_frames(energy))
        for row in range(3):
            alone = values[row, speech_frames(energy[row : row + 1])[0]]
            torch.testing.assert_close(together[row], alone, rtol=0, atol=0)


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
        return VoiceEncoder(ReferenceEncoder(ReferenceEncoderConfig(channels=16, dilations=(1, 4)))).eval()


@torch.no_grad()
def test_an_embedding_holds_frames_of_the_recording(encoder: VoiceEncoder) -> None:
    """With the key of the reference encoder and the envelope that the same frame has in a stream."""
    audio = sounds(1.5)
    content_encoder = ContentEncoder(ContentEncoderConfig(channels=16, dilations=(1,)))
    content, _, _ = content_encoder(
        torch.nn.functional.pad(audio, (0, 2 * HOP)), torch.zeros(1, content_encoder.state_size)
    )
    mel, _ = content_encoder.mel(torch.nn.functional.pad(audio, (0, HOP)), torch.zeros(1, 2 * HOP))
    key, _ = encoder.reference(mel[:, 1:])
    frames = torch.cat([key[0], content[0, 2:, -ENVELOPE_SIZE:]], dim=1)
    voice = unpack(encoder(audio))
    found = torch.cat([voice.keys[0], voice.envelopes[0]], dim=1)
    distance = torch.cdist(found, frames, compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.min(dim=1).values.max() < 1e-3
    assert (distance.argmin(dim=1).diff() >= 0).all()
    assert distance.argmin(dim=1).unique().numel() > 100


@torch.no_grad()
def test_level_and_pauses_do_not_change_the_frames(encoder: VoiceEncoder) -> None:
    audio = sounds(3.0)
    keys, envelopes, energy = encoder.frames(audio)
    louder_keys, louder_envelopes, louder_energy = encoder.frames(audio * 5.0)
    torch.testing.assert_close(louder_envelopes, envelopes, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(louder_keys, keys, atol=1e-3, rtol=0)
    chosen = speech_frames(energy)
    torch.testing.assert_close(speech_frames(louder_energy), chosen)
    # The window of the frame behind the end still hears the end.
    longer_keys, _, longer = encoder.frames(torch.nn.functional.pad(audio, (0, 2 * SAMPLE_RATE)))
    assert (speech_frames(longer) - chosen).abs().max() <= 1
    torch.testing.assert_close(longer_keys[:, : keys.shape[1]], keys, atol=0.1, rtol=0)


@torch.no_grad()
def test_a_key_depends_on_what_comes_before_and_after_and_no_further(encoder: VoiceEncoder) -> None:
    config = encoder.reference.config
    mel = torch.rand(1, 40, MEL_BANDS, generator=torch.Generator().manual_seed(0))
    changed = mel.clone()
    # The level stays, so that nothing else changes.
    changed[:, 20] = mel[:, 20].flip(1)
    difference = (encoder.reference(changed)[0] - encoder.reference(mel)[0]).abs().amax(dim=2)[0]
    near = (torch.arange(40) - 20).abs() <= config.context
    assert difference[~near].max() < 1e-6
    assert difference[20 - config.context] > 1e-5
    assert difference[20 + config.context] > 1e-5


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


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Synthesizer(
            SynthesizerConfig(content_size=8, channels=16, dilations=(1, 4), condition_size=16)
        ).eval()


@torch.no_grad()
def test_the_frame_with_the_nearest_key_is_read(synthesizer: Synthesizer) -> None:
    voice = parts(3)
    wanted = torch.tensor([[0, 7, 191, 100, 7]])
    noise = 0.05 * torch.randn(1, 5, KEY_SIZE, generator=torch.Generator().manual_seed(1))
    key = torch.nn.functional.normalize(gather_frames(voice.keys, wanted) + noise, dim=2)
    found, alike = synthesizer.look_up(key, voice)
    torch.testing.assert_close(found, gather_frames(voice.envelopes, wanted), atol=0.05, rtol=0)
    similarity = torch.matmul(key, voice.keys.transpose(1, 2))
    expected = torch.matmul(torch.softmax(SOFTNESS * similarity, dim=2), voice.envelopes)
    torch.testing.assert_close(alike, expected)


class TestMove:
    FRAMES = 300

    def envelopes(self, rows: int = 1, frames: int = FRAMES, seed: int = 0) -> Tensor:
        """Smooth envelopes, [rows, frames, 40]."""
        generator = torch.Generator().manual_seed(seed)
        size = torch.exp(-0.15 * torch.arange(ENVELOPE_SIZE))
        return 4.0 * size * torch.randn(rows, frames, ENVELOPE_SIZE, generator=generator)

    @settings(max_examples=25)
    @given(cuts=st.sets(st.integers(1, FRAMES - 1), max_size=20))
    def test_it_is_the_same_in_chunks(self, synthesizer: Synthesizer, cuts: set[int]) -> None:
        own, target = self.envelopes(2), self.envelopes(2, seed=1)
        weight = torch.rand(2, self.FRAMES, 1, generator=torch.Generator().manual_seed(0))
        past = torch.zeros(2, synthesizer.memory_size)
        whole, last = synthesizer.move(own, target, weight, past)
        pieces = []
        for start, stop in itertools.pairwise([0, *sorted(cuts), self.FRAMES]):
            part = slice(start, stop)
            piece, past = synthesizer.move(own[:, part], target[:, part], weight[:, part], past)
            pieces.append(piece)
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(past, last, atol=1e-2, rtol=1e-4)

    @pytest.mark.parametrize("warp", [2, 6, 9])
    def test_the_warp_and_the_mean_between_two_voices_are_found(
        self, synthesizer: Synthesizer, warp: int
    ) -> None:
        own = self.envelopes(frames=1500)
        offset = self.envelopes(frames=1, seed=2)
        target = own @ synthesizer.warps[warp] + offset
        moved, _ = synthesizer.move(own, target, torch.ones(1, 1500, 1), self.nothing(synthesizer))
        late = slice(500, None)
        # A prior draws the mean to no difference by some hundredths.
        assert (moved - target)[:, late].abs().max() < 0.1 * offset.abs().max() + 0.05
        assert (own - target)[:, late, WARPED_COSINES].abs().max() > 1.0

    def nothing(self, synthesizer: Synthesizer) -> Tensor:
        return torch.zeros(1, synthesizer.memory_size)

    def test_the_warps_between_which_it_chooses_are_those_of_vocal_tracts(
        self, synthesizer: Synthesizer
    ) -> None:
        middle = synthesizer.warps[WARPS // 2]
        torch.testing.assert_close(middle, torch.eye(ENVELOPE_SIZE), atol=1e-5, rtol=0)
        # A peak at 1500 Hz moves by as much as the warp says.
        hz = torch.from_numpy(band_frequencies()).float()
        peak = torch.exp(-(((hz - 1500) / 250) ** 2)) * 3.0
        cosines = torch.linalg.lstsq(envelope_to_bands(ENVELOPE_SIZE).T, peak.unsqueeze(1)).solution[:, 0]
        for warp in range(WARPS):
            moved = cosines @ synthesizer.warps[warp] @ envelope_to_bands(ENVELOPE_SIZE)
            inside = hz < 5000
            found = (moved.clamp(min=0.5) - 0.5)[inside]
            centre = (found * hz[inside]).sum() / found.sum()
            factor = np.exp(np.linspace(-LARGEST_WARP, LARGEST_WARP, WARPS)[warp])
            assert centre.item() == pytest.approx(1500 / factor, rel=0.03)

    def test_three_minutes_at_once_follow_the_last_ten_seconds(self, synthesizer: Synthesizer) -> None:
        """A minute before the end the difference becomes another; a mean of all would hardly notice."""
        own = self.envelopes(frames=18_000)
        difference = torch.full((1, 18_000, 1), 40.0)
        difference[:, -6000:] = -2.0
        target = own + difference
        moved, past = synthesizer.move(own, target, torch.ones(1, 18_000, 1), self.nothing(synthesizer))
        assert torch.isfinite(past).all()
        heard = MEMORY_FRAMES / (MEMORY_FRAMES + PRIOR_FRAMES)
        mean = (moved - own).mean(dim=2)
        assert mean[0, -6001].item() == pytest.approx(40.0 * heard, rel=0.02)
        left = -2.0 + 42.0 * np.exp(-6000 / MEMORY_FRAMES)
        assert mean[0, -1].item() == pytest.approx(left * heard, rel=0.02)

    def test_pauses_do_not_count_and_little_is_drawn_to_nothing(self, synthesizer: Synthesizer) -> None:
        own = self.envelopes(frames=40)
        weight = torch.zeros(1, 40, 1)
        weight[:, 20:] = 1.0
        moved, _ = synthesizer.move(own, own + 1.0, weight, self.nothing(synthesizer))
        torch.testing.assert_close(moved[:, :20], own[:, :20], atol=1e-3, rtol=1e-3)
        mean = (moved - own)[0, -1].mean().item()
        assert mean == pytest.approx(20 / (20 + PRIOR_FRAMES), rel=0.05)


@torch.no_grad()
def test_a_voice_into_itself_keeps_its_envelopes() -> None:
    """Where nothing is corrected, frames that are in the reference come out as they went in."""
    torch.manual_seed(0)
    synthesizer = Synthesizer(
        SynthesizerConfig(content_size=8, channels=16, dilations=(1,), condition_size=16)
    ).eval()
    synthesizer.correction.weight.zero_()
    synthesizer.share.bias.copy_(torch.linspace(-3, 3, ENVELOPE_SIZE))
    # Every sound has a key at right angles to all others.
    sound = torch.arange(TOKENS) % KEY_SIZE
    keys = torch.eye(KEY_SIZE)[sound].unsqueeze(0)
    # Smooth, as envelopes are: warps are told from each other by the low cosines.
    smooth = torch.exp(-0.15 * torch.arange(ENVELOPE_SIZE))
    envelopes = (4.0 * smooth * torch.randn(KEY_SIZE, ENVELOPE_SIZE))[sound].unsqueeze(0)
    embedding = pack(torch.nn.functional.normalize(torch.rand(1, 256), dim=1), keys, envelopes)
    frames = torch.randint(TOKENS, (1, 50))
    own = gather_frames(envelopes, frames)
    content = torch.cat(
        [torch.ones(1, 50, 1), gather_frames(keys, frames), torch.randn(1, 50, 8), own], dim=2
    )
    loudness, voiced = torch.randn(1, 50) - 3.0, torch.arange(50) % 3 > 0
    f0 = torch.where(voiced, 150.0, 0.0).unsqueeze(0)
    state = StateReader(torch.zeros(1, synthesizer.state_size))
    harmonic, noise, states = synthesizer.filters(content, loudness, f0, f0 / 150.0, embedding, state)
    envelope = own @ synthesizer.to_bands + loudness.unsqueeze(2)
    on, off = envelope[:, voiced].unsqueeze(2) + noise_attenuation(), envelope[:, ~voiced]
    tolerance = {"atol": 5e-2, "rtol": 0.0}
    torch.testing.assert_close(harmonic[:, voiced], on[:, :, 0].clamp(min=FLOOR), **tolerance)
    torch.testing.assert_close(noise[:, voiced], on[:, :, 1].clamp(min=FLOOR), **tolerance)
    torch.testing.assert_close(noise[:, ~voiced], off.clamp(min=FLOOR), **tolerance)
    torch.testing.assert_close(
        harmonic[:, ~voiced], (off - UNVOICED_ATTENUATION).clamp(min=FLOOR), **tolerance
    )
    same = WARPS // 2 * ENVELOPE_SIZE
    assert states[0][:, same : same + ENVELOPE_SIZE].abs().max() < 1e-2, "the mean difference"


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
