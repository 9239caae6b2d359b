"""Kokoro's voices that training never hears, each saying the same sentences, for the evaluation to read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from autovoice.atomic import atomic_path
from autovoice_training.corpus import audio as levels
from autovoice_training.corpus.kokoro import Kokoro, is_british, sex_of
from autovoice_training.corpus.store import write_json
from autovoice_training.corpus.texts import DEVELOPMENT_TEXTS, EVALUATION_TEXTS

SENTENCES = 10
SETS = {"development": ("dev_kokoro", DEVELOPMENT_TEXTS), "evaluation": ("eval_kokoro", EVALUATION_TEXTS)}


def render(
    root: Path, kind: str, kokoro: Kokoro, packs: dict[str, NDArray[np.float32]], names: list[str]
) -> Iterator[str]:
    """Let every voice say every sentence, one file each; what is there is kept.

    Args:
        root: folder of the corpus.
        kind: "development" or "evaluation".
        kokoro: the synthesiser.
        packs: voices by name.
        names: of those, the ones to render.

    Yields:
        The name of each voice that is done.
    """
    folder, texts = root / SETS[kind][0], SETS[kind][1][:SENTENCES]
    said = {f"{kind[0]}{number:02d}": text for number, text in enumerate(texts)}
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for sentence, text in said.items():
            path = folder / name / f"{sentence}.flac"
            if not path.exists():
                phonemes = kokoro.phonemes(text, is_british(name))
                audio = levels.normalise(kokoro.speak(phonemes, packs[name], packs[name]).audio, name)
                with atomic_path(path) as temporary:
                    soundfile.write(
                        temporary, audio, levels.SAMPLE_RATE, format="FLAC", subtype="PCM_16"
                    )
        yield name
    write_json(folder / "texts.json", said)
    described = {
        name: {"human": name, "sex": sex_of(name), "seen": False, "native_rate": levels.SAMPLE_RATE}
        for name in names
    }
    write_json(folder / "voices.json", described)
