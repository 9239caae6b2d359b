"""The judges of an evaluation on cases whose answer is known: arrays and the demo's recordings."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autovoice_training.evaluate import cepstrum, pitch, speaker, words
from autovoice_training.evaluate.dataset import JUDGE_RATE, Audio, at_judge_rate

DEMO = Path(__file__).resolve().parents[2] / "demo"
# The first example pays for the imports.
relaxed = settings(deadline=None, max_examples=50)
seeds = st.integers(0, 2**32 - 1)


def recording(name: str) -> Audio:
    audio, rate = soundfile.read(DEMO / f"{name}.flac", dtype="float32")
    return at_judge_rate(audio, rate)


def harmonic_tone(f0: NDArray[np.float64]) -> Audio:
    """A buzz of ten harmonics with F0 [T] in Hz at JUDGE_RATE."""
    phase = 2 * np.pi * np.cumsum(f0) / JUDGE_RATE
    return (0.2 * sum(np.sin(k * phase) / k for k in range(1, 11))).astype(np.float32)


# Mel-cepstral distortion


@relaxed
@given(seeds, st.integers(1, 40))
def test_distortion_of_a_recording_from_itself_is_zero(seed: int, frames: int) -> None:
    mel_cepstra = np.random.default_rng(seed).standard_normal((frames, cepstrum.ORDER))
    assert cepstrum.mel_cepstral_distortion(mel_cepstra, mel_cepstra) == 0.0


@relaxed
@given(seeds, st.floats(-3.0, 3.0), st.integers(1, cepstrum.ORDER - 1))
def test_distortion_of_a_shifted_coefficient_is_kubicheks(seed: int, shift: float, coefficient: int) -> None:
    mel_cepstra = np.random.default_rng(seed).standard_normal((20, cepstrum.ORDER))
    # The first coefficient tells the frames apart by so much that only the diagonal path is cheap.
    mel_cepstra[:, 0] = 100.0 * np.arange(20)
    shifted = mel_cepstra.copy()
    shifted[:, coefficient] += shift
    expected = 10.0 / math.log(10.0) * math.sqrt(2.0 * shift**2)
    assert cepstrum.mel_cepstral_distortion(mel_cepstra, shifted) == pytest.approx(expected, abs=1e-9)


@relaxed
@given(seeds, st.lists(st.integers(1, 4), min_size=2, max_size=20))
def test_distortion_does_not_hear_tempo(seed: int, durations: list[int]) -> None:
    mel_cepstra = np.random.default_rng(seed).standard_normal((len(durations), cepstrum.ORDER))
    slower = np.repeat(mel_cepstra, durations, axis=0)
    assert cepstrum.mel_cepstral_distortion(mel_cepstra, slower) == pytest.approx(0.0, abs=1e-9)


@relaxed
@given(seeds, st.integers(1, 30), st.integers(1, 30))
def test_alignment_runs_forward_from_first_to_last_frame(seed: int, first: int, second: int) -> None:
    rng = np.random.default_rng(seed)
    path, distance = cepstrum.align(
        rng.standard_normal((first, cepstrum.ORDER)), rng.standard_normal((second, cepstrum.ORDER))
    )
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [first - 1, second - 1]
    steps = np.diff(path, axis=0)
    assert steps.min(initial=0) >= 0
    assert steps.max(initial=0) <= 1
    assert (steps.sum(axis=1) > 0).all()
    assert distance > 0


@relaxed
@given(seeds)
def test_cepstrum_finds_the_coefficients_an_envelope_was_made_of(seed: int) -> None:
    wanted = np.random.default_rng(seed).standard_normal(cepstrum.ORDER + 1)
    omega = np.linspace(0.0, np.pi, 513)
    z = np.exp(-1j * omega)
    warped = -np.unwrap(np.angle((z - cepstrum.ALL_PASS) / (1.0 - cepstrum.ALL_PASS * z)))
    log_magnitude = np.cos(np.outer(warped, np.arange(cepstrum.ORDER + 1))) @ wanted
    np.testing.assert_allclose(cepstrum.cepstrum_of(log_magnitude[None])[0], wanted, atol=1e-6)


def test_distortion_hears_neither_loudness_nor_pauses() -> None:
    audio = recording("source_rms")[:32000]
    pause = np.zeros(8000, dtype=np.float32)
    plain = cepstrum.mel_cepstrum(audio)
    assert cepstrum.mel_cepstral_distortion(plain, cepstrum.mel_cepstrum(0.3 * audio)) < 0.02
    padded = cepstrum.mel_cepstrum(np.concatenate([pause, audio, pause]))
    assert cepstrum.mel_cepstral_distortion(plain, padded) < 0.3


def test_distortion_does_not_hear_the_resampling_of_a_recording() -> None:
    audio = recording("target_slt")
    travelled = soxr.resample(soxr.resample(audio, JUDGE_RATE, 24000), 24000, JUDGE_RATE)
    distortion = cepstrum.mel_cepstral_distortion(
        cepstrum.mel_cepstrum(audio), cepstrum.mel_cepstrum(travelled)
    )
    assert distortion < 0.3


def test_distortion_is_far_greater_between_speakers_than_within_one_recording() -> None:
    first, other = (cepstrum.mel_cepstrum(recording(name)) for name in ("target_slt", "target_awb"))
    resampled = cepstrum.mel_cepstrum(recording("target_slt")[1:])
    assert cepstrum.mel_cepstral_distortion(first, resampled) < 1.0
    assert cepstrum.mel_cepstral_distortion(first, other) > 5.0


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
    assert words.word_errors(heard.split(), said.split()) == errors


@relaxed
@given(word_lists, word_lists, word_lists)
def test_word_errors_are_a_distance(first: list[str], second: list[str], third: list[str]) -> None:
    between = words.word_errors(first, second)
    assert between == words.word_errors(second, first)
    assert (between == 0) == (first == second)
    assert abs(len(first) - len(second)) <= between <= max(len(first), len(second))
    assert words.word_errors(first, third) <= between + words.word_errors(second, third)


def test_words_are_compared_without_case_punctuation_and_noise_marks() -> None:
    assert words.words_of("\"It's -- the Cat's\", he said!") == ["it's", "the", "cat's", "he", "said"]
    assert words.words_of("<s> yes [NOISE] ++BREATH++ no </s>") == ["yes", "no"]


def test_the_recogniser_understands_speech_and_repeats_itself() -> None:
    audio = recording("target_slt")[: 4 * JUDGE_RATE]
    heard = words.transcribe(audio)
    assert words.words_of(heard)[:5] == words.words_of("My grandmother kept her recipes")
    words.transcribe(np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32))
    assert words.transcribe(audio) == heard


# Melody

tracks = st.lists(st.one_of(st.just(0.0), st.floats(60.0, 500.0)), min_size=8, max_size=60)


@relaxed
@given(tracks, st.floats(-24.0, 24.0))
def test_melody_agreement_is_blind_to_transposition(track: list[float], shift: float) -> None:
    source = np.array(track)
    result = source * 2.0 ** (shift / 12.0)
    agreement = pitch.compare_f0(result, source, shift)
    if np.ptp(np.log(source[source > 0])) > 0.01 if np.any(source > 0) else False:
        assert agreement.correlation == pytest.approx(1.0)
        assert agreement.gross_error == 0.0
    assert agreement.voicing_error == 0.0
    other = pitch.compare_f0(result, source, 0.0)
    assert other.correlation == pytest.approx(agreement.correlation, abs=1e-6)


def test_melody_errors_are_counted_by_frame() -> None:
    source = np.array([100.0, 110.0, 120.0, 130.0, 140.0, 0.0, 0.0, 0.0, 150.0, 160.0])
    octave = source.copy()
    octave[1] *= 2.0
    assert pitch.compare_f0(octave, source, 0.0).gross_error == pytest.approx(1 / 7)
    assert pitch.compare_f0(octave, source, 0.0).correlation < 0.5
    unvoiced = source.copy()
    unvoiced[[0, 5]] = 0.0, 90.0
    assert pitch.compare_f0(unvoiced, source, 0.0).voicing_error == pytest.approx(2 / 10)
    assert pitch.compare_f0(unvoiced, source, 0.0).correlation == pytest.approx(1.0)
    nothing = pitch.compare_f0(np.zeros(10), source, 0.0)
    assert (nothing.correlation, nothing.gross_error) == (0.0, 1.0)
    falling = pitch.compare_f0(200.0**2 / np.maximum(source, 1.0) * (source > 0), source, 0.0)
    assert falling.correlation == pytest.approx(-1.0)


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


def directions(*angles: float) -> list[speaker.Embedding]:
    return [np.array([math.cos(a), math.sin(a)] + [0.0] * 254, dtype=np.float32) for a in angles]


@relaxed
@given(st.floats(0.0, 1.5), st.floats(0.02, 1.5))
def test_the_nearer_speaker_is_named(between: float, apart: float) -> None:
    source, target = directions(0.0, apart)
    enrolled = {"source": source, "target": target}
    (result,) = directions(between * apart)
    identity = speaker.identify(result, enrolled, "source", "target")
    assert identity.similarity_source == pytest.approx(math.cos(between * apart), abs=1e-6)
    if abs(between - 0.5) > 0.1:
        assert identity.nearer_target == (between > 0.5)
        assert identity.identified_as == ("target" if between > 0.5 else "source")


def test_a_third_speaker_can_be_mistaken_for_the_target() -> None:
    source, target, third, result = directions(0.0, 1.0, 0.8, 0.75)
    enrolled = {"source": source, "target": target, "third": third}
    identity = speaker.identify(result, enrolled, "source", "target")
    assert identity.nearer_target
    assert identity.identified_as == "third"


def test_no_speech_is_nobodys_voice() -> None:
    silence = speaker.embed(np.zeros(16000, dtype=np.float32))
    enrolled = dict(zip(("source", "target"), directions(0.0, 1.0), strict=True))
    identity = speaker.identify(silence, enrolled, "source", "target")
    assert (identity.nearer_target, identity.identified_as) == (False, "")


def test_mean_embedding_has_unit_length() -> None:
    mean = speaker.mean_embedding(directions(0.2, 0.6))
    np.testing.assert_allclose(mean, directions(0.4)[0], atol=1e-6)


def test_speakers_are_told_apart_by_what_they_say_elsewhere() -> None:
    halves = {}
    for name in ("source_rms", "target_slt", "target_awb"):
        audio = recording(name)
        halves[name] = [speaker.embed(audio[: len(audio) // 2]), speaker.embed(audio[len(audio) // 2 :])]
    enrolled = {name: first for name, (first, _) in halves.items()}
    for name, (_, second) in halves.items():
        other = next(candidate for candidate in halves if candidate != name)
        identity = speaker.identify(second, enrolled, other, name)
        assert identity.identified_as == name
        assert identity.similarity_target > 0.8 > identity.similarity_source
