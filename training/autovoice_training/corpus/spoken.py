"""The evaluation's sets of synthesisers that training never hears: every voice says the same sentences."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import soundfile

from autovoice_training.corpus import audio as levels
from autovoice_training.corpus import diphones, engines
from autovoice_training.corpus.store import write_json
from autovoice_training.corpus.texts import DEVELOPMENT_TEXTS, EVALUATION_TEXTS
from autovoice_training.corpus.voices import DEVELOPMENT_VOICES, REFERENCE, VOICES, Voice

SETS = {
    "dev": (DEVELOPMENT_VOICES, DEVELOPMENT_TEXTS),
    "eval": (tuple(VOICES), EVALUATION_TEXTS),
}


def write_sets(root: Path, say: Callable[[str], None], sentences: int | None = None) -> None:
    """Write ``dev`` and ``eval``, one file for each voice and sentence; a set that is there is kept.

    Args:
        root: folder of the corpus.
        say: receives a line for each set.
        sentences: how many of the written ones; None: all.

    Raises:
        MissingVoiceError: a synthesiser is not installed.
    """
    for name, (voices, texts) in SETS.items():
        folder = root / name
        if (folder / "voices.json").exists():
            continue
        for voice in voices:
            VOICES[voice].require()
        said = {f"{name[0]}{number:02d}": text for number, text in enumerate(texts[:sentences])}
        with tempfile.TemporaryDirectory() as scratch:
            plans = engines.plan_texts(VOICES[REFERENCE].engine_name, list(said.items()), Path(scratch))
        timings = {sentence: diphones.common_timing(plan) for sentence, plan in plans.items()}
        rates = {voice: _write(folder / voice, VOICES[voice], said, timings) for voice in voices}
        write_json(folder / "texts.json", said)
        described = {
            voice: {"human": voice, "sex": VOICES[voice].sex, "seen": False, "native_rate": rate}
            for voice, rate in rates.items()
        }
        write_json(folder / "voices.json", described)
        say(f"{name}: {len(voices)} voices")


def _write(
    folder: Path, voice: Voice, said: Mapping[str, str], timings: Mapping[str, tuple[engines.Segments, int]]
) -> int:
    """Let a voice say every sentence; returns the rate in Hz that it speaks at."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if voice.engine == "diphone":
            known = diphones.read_diphones(voice.group_file)
            items: Sequence[tuple[str, engines.Segments]] = [
                (sentence, diphones.in_voice(timing, voice, known))
                for sentence, (timing, _) in timings.items()
            ]
            engines.render_segments(voice.engine_name, items, scratch)
        else:
            for sentence, text in said.items():
                engines.render_flite(voice.engine_name, text, scratch / f"{sentence}.wav")
        for sentence in said:
            wave, rate = levels.read(scratch / f"{sentence}.wav")
            frames = timings[sentence][1] if voice.engine == "diphone" else -(-len(wave) // levels.HOP)
            audio = levels.normalise(levels.fit(wave, frames), f"{voice.name}/{sentence}")
            soundfile.write(folder / f"{sentence}.flac", audio, levels.SAMPLE_RATE, subtype="PCM_16")
    return rate
