"""From the reference voice's plan of a sentence to the timing and pitch each parallel voice follows."""

from __future__ import annotations

import zlib

import numpy as np
import pyworld

from autovoice_training.corpus import phones
from autovoice_training.corpus.audio import FRAME_SECONDS, SAMPLE_RATE
from autovoice_training.corpus.engines import Segments
from autovoice_training.corpus.voices import REFERENCE, VOICES, Voice

_FIRST_PAUSE, _LAST_PAUSE = 0.15, 0.20  # seconds
_SHORTEST = 0.030  # seconds
_RATE = (0.85, 1.20)
_DURATION_JITTER = 0.08  # log-normal
_SHIFT_SEMITONES = 1.2
_RANGE = (0.8, 1.7)


def generator(*keys: object) -> np.random.Generator:
    """A random generator that depends on the keys alone, whatever the order of the work."""
    return np.random.default_rng(zlib.crc32("/".join(map(str, keys)).encode()))


def common_timing(plan: Segments, sentence: str, seed: int, natural: bool) -> tuple[Segments, int]:
    """Timing and pitch shape shared by every voice that speaks a sentence.

    Args:
        plan: what the reference voice would do.
        sentence: sentence id; with the seed it decides the variation.
        seed: seed of the corpus.
        natural: keep the reference voice's own rate and pitch range (evaluation).

    Returns:
        Segments whose last end is a whole number of frames, and that number.
    """
    rng = generator(seed, "prosody", sentence)
    starts = np.array((0.0, *plan.ends[:-1]))
    ends = np.array(plan.ends)
    lengths = ends - starts
    if not natural:
        speech = np.array([phones.code_of(phone) != 0 for phone in plan.phones])
        factors = rng.uniform(*_RATE) * np.exp(_DURATION_JITTER * rng.standard_normal(len(lengths)))
        lengths = np.where(speech, np.maximum(lengths * factors, np.minimum(lengths, _SHORTEST)), lengths)
    lengths[0], lengths[-1] = _FIRST_PAUSE, _LAST_PAUSE
    frames = int(np.ceil(lengths.sum() / FRAME_SECONDS - 1e-6))
    lengths[-1] += frames * FRAME_SECONDS - lengths.sum()
    new_ends = np.cumsum(lengths)
    times, f0 = np.array(plan.targets).T
    moved = np.interp(times, np.concatenate([[0.0], ends]), np.concatenate([[0.0], new_ends]))
    expand = 1.0 if natural else rng.uniform(*_RANGE)
    reference = VOICES[REFERENCE].f0_hz
    shaped = reference * (f0 / reference) ** expand
    return Segments(plan.phones, tuple(new_ends), tuple(zip(moved, shaped, strict=True))), frames


def timing_of(audio: np.ndarray, labels: np.ndarray) -> Segments:
    """Timing and melody of a recording, the melody moved to the reference voice's register.

    Args:
        audio: int16 [240 * frames], 24 kHz.
        labels: phone codes [frames].
    """
    edges = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1, [len(labels)]])
    samples = audio.astype(np.float64) / 32768.0
    coarse, times = pyworld.dio(samples, SAMPLE_RATE, 55.0, 500.0, frame_period=1000 * FRAME_SECONDS)
    f0 = pyworld.stonemask(samples, coarse, times, SAMPLE_RATE)
    voiced = f0 > 0
    if not voiced.any():
        raise ValueError("the recording to follow has no voiced frame; leave it out")
    shaped = f0[voiced] * VOICES[REFERENCE].f0_hz / np.median(f0[voiced])
    return Segments(
        tuple(phones.PHONES[code] for code in labels[edges[:-1]]),
        tuple(float(edge) * FRAME_SECONDS for edge in edges[1:]),
        tuple(zip(times[voiced].tolist(), shaped.tolist(), strict=True)),
    )


def in_voice(
    timing: Segments,
    voice: Voice,
    diphones: frozenset[tuple[str, str]],
    sentence: str,
    seed: int,
    natural: bool,
) -> tuple[Segments, int]:
    """What a diphone voice is given to say, and how many of the diphones it lacks.

    The times of ``timing`` are kept; a phone said as two shares its time among them; the pitch is moved to
    the voice's register.
    """
    names = [phones.PHONES[phones.code_of(phone)] for phone in timing.phones]
    said, missing = phones.say(names, phones.TABLES[voice.language], diphones)
    starts = (0.0, *timing.ends[:-1])
    flat: list[str] = []
    ends: list[float] = []
    for sequence, start, end in zip(said, starts, timing.ends, strict=True):
        flat += sequence
        ends += list(start + np.cumsum(phones.split_duration(end - start, len(sequence))))
    ends = [*ends[:-1], timing.ends[-1]]
    shift = (
        0.0
        if natural
        else _SHIFT_SEMITONES * generator(seed, "register", voice.name, sentence).standard_normal()
    )
    scale = voice.f0_hz / VOICES[REFERENCE].f0_hz * 2 ** (float(np.clip(shift, -3, 3)) / 12)
    targets = tuple((time, f0 * scale) for time, f0 in timing.targets)
    return Segments(tuple(flat), tuple(ends), targets), missing
