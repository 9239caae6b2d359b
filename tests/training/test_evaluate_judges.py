"""The judges of an evaluation on cases whose answer is known: arrays and the demo's recordings."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import signal

from autovoice_training.evaluate import pitch
from autovoice_training.evaluate.artifacts import find_artifacts
from autovoice_training.evaluate.audio import JUDGE_RATE, RATE, Audio, at_judge_rate, read_audio
from autovoice_training.evaluate.judges import (
    CampPlus,
    DistillMos,
    DnsMos,
    Ge2e,
    Judges,
    Words,
    unit,
    word_errors,
)

DEMO = Path(__file__).resolve().parents[2] / "demo"
# The first example pays for the imports.
relaxed = settings(deadline=None, max_examples=50)


def recording(name: str) -> Audio:
    return at_judge_rate(read_audio(DEMO / f"{name}.flac"))


def harmonic_tone(f0: NDArray[np.float64]) -> Audio:
    """A buzz of ten harmonics with F0 [T] in Hz at JUDGE_RATE."""
    phase = 2 * np.pi * np.cumsum(f0) / JUDGE_RATE
    return (0.2 * sum(np.sin(k * phase) / k for k in range(1, 11))).astype(np.float32)


# Words

word_lists = st.lists(st.sampled_from("abc"), max_size=8)


@pytest.mark.parametrize(
    ("heard", "said", "errors"),
    [
        ("", "", 0),
        ("", "one two", 2),
        ("one two", "", 2),
        ("the cat sat", "the cat sat", 0),
        ("the bat sat", "the cat sat", 1),
        ("the sat", "the cat sat", 1),
        ("the big cat sat", "the cat sat", 1),
        ("cat the sat", "the cat sat", 2),
        ("a b c d", "b c d e", 2),
    ],
)
def test_word_errors_by_hand(heard: str, said: str, errors: int) -> None:
    assert word_errors(heard.split(), said.split()) == errors


@relaxed
@given(word_lists, word_lists, word_lists)
def test_word_errors_are_a_distance(first: list[str], second: list[str], third: list[str]) -> None:
    between = word_errors(first, second)
    assert between == word_errors(second, first)
    assert (between == 0) == (first == second)
    assert abs(len(first) - len(second)) <= between <= max(len(first), len(second))
    assert word_errors(first, third) <= between + word_errors(second, third)


@pytest.mark.slow
def test_whisper_understands_speech_and_repeats_itself() -> None:
    words = Words()
    audio = recording("target_slt")[: 4 * JUDGE_RATE]
    heard = words.transcribe(audio)
    assert words.words(heard)[:5] == ["my", "grandmother", "kept", "her", "recipes"]
    words.transcribe(np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32))
    assert words.transcribe(0.1 * audio) == heard


def test_words_are_compared_without_spelling_numbers_case_and_punctuation() -> None:
    assert Words().errors("Colour: fifty-two, HE'S!", "color 52 he is") == (0, 4)
    assert Words().errors("", "um, big cats") == (2, 2)


# Melody

tracks = st.lists(st.one_of(st.just(0.0), st.floats(60.0, 500.0)), min_size=8, max_size=60)


@relaxed
@given(tracks, st.floats(-24.0, 24.0))
def test_melody_agreement_is_blind_to_transposition(track: list[float], shift: float) -> None:
    source = np.array(track)
    result = source * 2.0 ** (shift / 12.0)
    agreement = pitch.compare_f0(result, source, shift)
    if np.ptp(np.log(source[source > 0])) > 0.01 if np.any(source > 0) else False:
        assert agreement.f0_corr == pytest.approx(1.0)
        assert agreement.gross_error == 0.0
    assert agreement.voicing_error == 0.0
    other = pitch.compare_f0(result, source, 0.0)
    assert other.f0_corr == pytest.approx(agreement.f0_corr, abs=1e-6)


def test_melody_errors_are_counted_by_frame() -> None:
    source = np.array([100.0, 110.0, 120.0, 130.0, 140.0, 0.0, 0.0, 0.0, 150.0, 160.0])
    octave = source.copy()
    octave[1] *= 2.0
    assert pitch.compare_f0(octave, source, 0.0).gross_error == pytest.approx(1 / 7)
    assert pitch.compare_f0(octave, source, 0.0).f0_corr < 0.5
    unvoiced = source.copy()
    unvoiced[[0, 5]] = 0.0, 90.0
    assert pitch.compare_f0(unvoiced, source, 0.0).voicing_error == pytest.approx(2 / 10)
    assert pitch.compare_f0(unvoiced, source, 0.0).f0_corr == pytest.approx(1.0)
    nothing = pitch.compare_f0(np.zeros(10), source, 0.0)
    assert (nothing.f0_corr, nothing.gross_error) == (0.0, 1.0)
    falling = pitch.compare_f0(200.0**2 / np.maximum(source, 1.0) * (source > 0), source, 0.0)
    assert falling.f0_corr == pytest.approx(-1.0)


def test_melody_of_a_glide_is_found() -> None:
    glide = np.geomspace(120.0, 300.0, 2 * JUDGE_RATE)
    found = pitch.f0_track(harmonic_tone(glide))
    centres = (np.arange(len(found)) * pitch.FRAME_SECONDS * JUDGE_RATE).astype(int)
    inner = slice(4, -4)
    np.testing.assert_allclose(found[inner], glide[centres[inner]], rtol=0.02)
    assert not pitch.f0_track(np.zeros(8000, dtype=np.float32)).any()


@relaxed
@given(st.floats(60.0, 900.0), st.floats(60.0, 900.0))
def test_shift_matches_medians_within_two_octaves(source: float, target: float) -> None:
    shift = pitch.shift_to_match(np.array([0.0, source, source]), np.array([target, 0.0]))
    assert abs(shift) <= pitch.MAX_SHIFT_SEMITONES
    if abs(math.log2(target / source)) < 2:
        assert source * 2 ** (shift / 12) == pytest.approx(target)
    assert pitch.shift_to_match(np.zeros(3), np.array([target])) == 0.0


# Identity


@pytest.mark.parametrize("judge", [CampPlus, pytest.param(Ge2e, marks=pytest.mark.slow)])
def test_speakers_are_told_apart_by_what_they_say_elsewhere(judge: type[CampPlus] | type[Ge2e]) -> None:
    embed = judge().embed
    halves = {}
    for name in ("source_rms", "target_slt", "target_awb"):
        audio = recording(name)[: 10 * JUDGE_RATE]
        halves[name] = [embed(half) for half in np.array_split(audio, 2)]
    for name, (_, second) in halves.items():
        assert np.linalg.norm(second) == pytest.approx(1.0, abs=1e-5)
        similarity = {other: float(first @ second) for other, (first, _) in halves.items()}
        assert max(similarity, key=lambda other: similarity[other]) == name
        assert similarity[name] > 0.6
        assert similarity.pop(name) - max(similarity.values()) > 0.1


@pytest.mark.parametrize("judge", [CampPlus, pytest.param(Ge2e, marks=pytest.mark.slow)])
def test_silence_is_nobodys_voice(judge: type[CampPlus] | type[Ge2e]) -> None:
    for seconds in (0.0, 0.01, 1.0):
        assert not judge().embed(np.zeros(round(seconds * JUDGE_RATE), dtype=np.float32)).any()


def test_the_colour_of_a_microphone_is_not_the_speaker() -> None:
    audio = recording("target_slt")[: 5 * JUDGE_RATE]
    coloured = signal.lfilter([0.1, -0.09], [1.0], audio).astype(np.float32)
    embed = CampPlus().embed
    assert embed(audio) @ embed(coloured) > 0.985


def test_unit_keeps_direction_and_zeros() -> None:
    np.testing.assert_allclose(unit(np.array([3.0, 4.0])), [0.6, 0.8])
    assert not unit(np.zeros(3)).any()


# Naturalness


@pytest.mark.parametrize("noisy", [pytest.param(True, marks=pytest.mark.slow), False])
def test_noise_is_heard(noisy: bool) -> None:
    """Clean speech in the quick suite; and that both judges hear noise."""
    audio = recording("target_slt")[: 4 * JUDGE_RATE]
    mos, dns = DistillMos(), DnsMos()
    clean, clean_dns = mos.score(audio), dns.score(audio)
    assert 1.5 < clean < 5.0
    assert set(clean_dns) == {"dns_overall", "dns_sig", "dns_bak", "dns_p808"}
    assert 2.0 < clean_dns["dns_overall"] < 5.0
    if noisy:
        hissing = audio + 0.05 * np.random.default_rng(0).standard_normal(len(audio)).astype(np.float32)
        assert mos.score(hissing) < clean - 0.3
        assert dns.score(hissing)["dns_bak"] < clean_dns["dns_bak"] - 1.0


# Answers kept on disk


def test_a_judge_is_not_asked_twice_about_the_same_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def score(self: DistillMos, audio: Audio) -> float:
        asked.append(len(audio))
        return 3.0

    monkeypatch.setattr(DistillMos, "score", score)
    audio = np.ones(3, dtype=np.float32)
    for heard in (audio, audio, 0.5 * audio):
        assert Judges(tmp_path).distill_mos(heard) == 3.0
    assert len(asked) == 2
    Judges().distill_mos(audio)
    assert len(asked) == 3


# Artifacts


def speech_like(seconds: float = 3.0) -> Audio:
    """Harmonics of a moving F0 and a little noise, at RATE."""
    time = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(150.0 * (1.0 + 0.3 * np.sin(2 * np.pi * 0.7 * time))) / RATE
    tone = sum(np.sin(k * phase) / k for k in range(1, 40))
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.05 * tone + 0.01 * noise).astype(np.float32)


def test_artifacts_are_found_where_they_are() -> None:
    plain = find_artifacts(speech_like())
    assert plain.line < 2.0
    time = np.arange(len(speech_like())) / RATE
    humming = find_artifacts(speech_like() + (0.01 * np.sin(2 * np.pi * 7800.0 * time)).astype(np.float32))
    assert humming.line > plain.line + 3.0
    assert humming.line_hz == pytest.approx(7800.0, abs=50.0)

    clicked = speech_like()
    clicked[12000] += 0.5
    assert find_artifacts(clicked).click > 3 * plain.click

    assert find_artifacts(speech_like() + np.float32(0.1)).offset == pytest.approx(-20.0, abs=0.5)
    loud = speech_like()
    assert find_artifacts(loud / np.abs(loud).max()).peak == pytest.approx(0.0, abs=0.01)

    spectrum = np.fft.rfft(speech_like())
    spectrum[np.fft.rfftfreq(len(loud), 1 / RATE) > 8000.0] = 0.0
    dull = np.fft.irfft(spectrum, len(loud)).astype(np.float32)
    assert plain.high_band > -40.0
    assert find_artifacts(dull).high_band < -60.0
