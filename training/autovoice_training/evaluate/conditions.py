"""Conversions under harder conditions: transposed, noisy and sung sources, and how natural they sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyworld
from numpy.typing import NDArray

from autovoice_training.evaluate import cepstrum, pitch, speaker, words
from autovoice_training.evaluate.dataset import Audio, Dataset, at_judge_rate
from autovoice_training.evaluate.naturalness import Naturalness, measure
from autovoice_training.evaluate.pairs import Pair
from autovoice_training.evaluate.systems import Converter

PITCH_SHIFTS = (-12.0, -8.0, -4.0, 4.0, 8.0, 12.0)
NOISE_DB = (20.0, 10.0)
GLIDE_SEMITONES = 6.0
VIBRATO_HZ = 5.5
VIBRATO_SEMITONES = 1.0


@dataclass(frozen=True)
class Condition:
    """A way to make a conversion harder.

    Attributes:
        name: in the table.
        change: what happens to the source, samples [T] at a rate in Hz.
        shift_semitones: of the conversion, beyond what matches the medians.
        keeps_melody: whether the source's melody is that of the recording.
    """

    name: str
    change: Callable[[Audio, int], Audio]
    shift_semitones: float = 0.0
    keeps_melody: bool = True


@dataclass(frozen=True)
class Finding:
    """What the judges say about one conversion under one condition."""

    condition: str
    source: str
    target: str
    target_seen: bool
    similarity_target: float
    identified: bool
    impostors: tuple[float, ...]
    f0_correlation: float
    gross_error: float
    voicing_error: float
    words_wrong: int
    words: int
    naturalness: Naturalness


def noisy(audio: Audio, decibels: float, seed: int = 0) -> Audio:
    """Adds pink noise [T] at a signal-to-noise ratio."""
    white = np.random.default_rng(seed).standard_normal(len(audio))
    spectrum = np.fft.rfft(white)
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1.0))
    pink = np.fft.irfft(spectrum, len(audio))
    level = np.sqrt(np.mean(np.square(audio, dtype=np.float64)) / np.mean(pink**2)) * 10 ** (-decibels / 20)
    mixed: Audio = (audio + level * pink).astype(np.float32)
    return mixed


def sung(audio: Audio, rate: int, semitones: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Audio:
    """Gives a recording another melody with the WORLD vocoder.

    Args:
        audio: samples [T].
        rate: Hz.
        semitones: transposition by time in seconds.
    """
    samples = audio.astype(np.float64)
    f0, times = pyworld.dio(samples, rate)
    f0 = pyworld.stonemask(samples, f0, times, rate)
    envelope = pyworld.cheaptrick(samples, f0, times, rate)
    aperiodicity = pyworld.d4c(samples, f0, times, rate)
    made = pyworld.synthesize(f0 * 2.0 ** (semitones(times) / 12.0), envelope, aperiodicity, rate)
    result = np.zeros(len(audio), dtype=np.float32)
    result[: len(made)] = made[: len(audio)]
    return result


def glide(audio: Audio, rate: int) -> Audio:
    """The melody rises by twelve semitones from the first to the last sample."""
    seconds = len(audio) / rate
    return sung(audio, rate, lambda time: GLIDE_SEMITONES * (2.0 * time / seconds - 1.0))


def vibrato(audio: Audio, rate: int) -> Audio:
    """The melody swings by a semitone to both sides."""
    return sung(audio, rate, lambda time: VIBRATO_SEMITONES * np.sin(2.0 * np.pi * VIBRATO_HZ * time))


def _with_noise(decibels: float) -> Callable[[Audio, int], Audio]:
    return lambda audio, rate: noisy(audio, decibels)


def conditions() -> tuple[Condition, ...]:
    """All conditions, the plain one first."""
    return (
        Condition("as recorded", lambda audio, rate: audio),
        *(Condition(f"{shift:+.0f} semitones", lambda audio, rate: audio, shift) for shift in PITCH_SHIFTS),
        *(Condition(f"pink noise at {level:.0f} dB", _with_noise(level)) for level in NOISE_DB),
        Condition("glide over an octave", glide, keeps_melody=False),
        Condition("vibrato", vibrato, keeps_melody=False),
    )


def judge_condition(
    dataset: Dataset,
    converter: Converter,
    pair: Pair,
    condition: Condition,
    enrolled: dict[str, speaker.Embedding],
) -> Finding:
    """Converts one pair under a condition and asks the judges."""
    recorded, rate = dataset.load(pair.source, pair.sentence)
    source = condition.change(recorded, rate)
    reference, reference_rate = dataset.load_joined(pair.target, pair.references)
    voice = converter.embed(reference, reference_rate)
    # Noise decides neither by how much is transposed nor which melody is expected.
    clean_f0 = pitch.f0_track(at_judge_rate(recorded if condition.keeps_melody else source, rate))
    matched = pitch.shift_to_match(clean_f0, pitch.f0_track(at_judge_rate(reference, reference_rate)))
    shift = float(np.clip(matched + condition.shift_semitones, -24.0, 24.0))
    result = at_judge_rate(converter.convert(source, rate, voice, shift), rate)
    f0 = pitch.f0_track(result)
    melody = pitch.compare_f0(f0, clean_f0, shift)
    embedding = speaker.embed(result)
    similarity = {name: float(embedding @ mean) for name, mean in enrolled.items()}
    said = words.words_of(dataset.texts[pair.sentence])
    return Finding(
        condition.name,
        pair.source,
        pair.target,
        pair.target_seen,
        similarity[pair.target],
        max(similarity, key=lambda name: similarity[name]) == pair.target,
        tuple(value for name, value in similarity.items() if name != pair.target),
        melody.correlation,
        melody.gross_error,
        melody.voicing_error,
        words.word_errors(words.words_of(words.transcribe(result)), said),
        len(said),
        measure(result, f0, cepstrum.mel_cepstrum(result)),
    )


def equal_error_rate(genuine: Sequence[float], impostors: Sequence[float]) -> float:
    """Where as many results are refused as the target as others are taken for it.

    Args:
        genuine: similarities of results to their targets.
        impostors: similarities of results to everybody else.
    """
    scores = np.concatenate([genuine, impostors])
    best = 1.0
    for threshold in np.unique(scores):
        refused = float(np.mean(np.asarray(genuine) < threshold))
        taken = float(np.mean(np.asarray(impostors) >= threshold))
        best = min(best, max(refused, taken))
    return best


def natural_range(dataset: Dataset) -> dict[str, tuple[float, float]]:
    """Lowest and highest mean of every naturalness proxy over the voices of the set, as recorded."""
    means: dict[str, list[float]] = {field.name: [] for field in fields(Naturalness)}
    for name, voice in dataset.voices.items():
        found = []
        for sentence in voice.sentences[:3]:
            audio = at_judge_rate(*dataset.load(name, sentence))
            found.append(measure(audio, pitch.f0_track(audio), cepstrum.mel_cepstrum(audio)))
        for key, values in means.items():
            values.append(float(np.mean([getattr(one, key) for one in found])))
    return {key: (min(values), max(values)) for key, values in means.items()}


def condition_table(findings: Sequence[Finding], natural: dict[str, tuple[float, float]]) -> list[str]:
    """The figures of all conditions as a Markdown table, and the range of natural voices under it."""
    proxies = [field.name for field in fields(Naturalness)]
    head = ["condition", "pairs", "similarity", "rank-1, %", "EER, %", "words wrong, %", "log-F0 correlation"]
    head += ["gross pitch error, %", "voicing error, %", *(name.replace("_", " ") for name in proxies)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in dict.fromkeys(finding.condition for finding in findings):
        some = [finding for finding in findings if finding.condition == name]
        impostors = [value for finding in some for value in finding.impostors]
        cells = [
            name,
            str(len(some)),
            f"{np.mean([one.similarity_target for one in some]):.2f}",
            f"{100 * np.mean([one.identified for one in some]):.0f}",
            f"{100 * equal_error_rate([one.similarity_target for one in some], impostors):.0f}",
            f"{100 * sum(one.words_wrong for one in some) / sum(one.words for one in some):.0f}",
            f"{np.mean([one.f0_correlation for one in some]):.3f}",
            f"{100 * np.mean([one.gross_error for one in some]):.1f}",
            f"{100 * np.mean([one.voicing_error for one in some]):.1f}",
            *(f"{np.mean([getattr(one.naturalness, key) for one in some]):.1f}" for key in proxies),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    ranges = [f"{natural[key][0]:.1f} to {natural[key][1]:.1f}" for key in proxies]
    return [*lines, f"| natural voices | {' | '.join([''] * 8 + ranges)} |"]
