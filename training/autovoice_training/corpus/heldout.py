"""Kokoro's voices that training never hears, each saying the same sentences, for the evaluation to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from autovoice.atomic import atomic_path
from autovoice_training.corpus import audio as levels
from autovoice_training.corpus import kokoro
from autovoice_training.corpus.store import write_json
from autovoice_training.corpus.texts import DEVELOPMENT_TEXTS, EVALUATION_TEXTS

SENTENCES = 10
SETS = {"development": ("dev_kokoro", DEVELOPMENT_TEXTS), "evaluation": ("eval_kokoro", EVALUATION_TEXTS)}


def render(
    root: Path,
    kind: str,
    packs: Mapping[str, NDArray[np.float32]],
    names: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Let every voice say every sentence, one file each; what is there is kept.

    Args:
        root: folder of the corpus.
        kind: "development" or "evaluation".
        packs: voices by name.
        names: of those, the ones to render.
        say: receives a line for each voice.
    """
    folder, texts = root / SETS[kind][0], SETS[kind][1][:SENTENCES]
    if (folder / "voices.json").exists():
        return
    said = {f"{kind[0]}{number:02d}": text for number, text in enumerate(texts)}
    synthesiser = kokoro.Kokoro()
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for sentence, text in said.items():
            path = folder / name / f"{sentence}.flac"
            if not path.exists():
                phonemes = synthesiser.phonemes(text, kokoro.is_british(name))
                audio = levels.normalise(synthesiser.speak(phonemes, packs[name], packs[name]).audio, name)
                with atomic_path(path) as temporary:
                    soundfile.write(temporary, audio, levels.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        say(f"{folder.name}: {name}")
    write_json(folder / "texts.json", said)
    described = {
        name: {"human": name, "sex": kokoro.sex_of(name), "seen": False, "native_rate": levels.SAMPLE_RATE}
        for name in names
    }
    write_json(folder / "voices.json", described)
