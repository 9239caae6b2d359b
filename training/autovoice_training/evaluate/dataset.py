"""The sentences an evaluation reads: `<voice>/<id>.flac`, `texts.json` and `voices.json` in one folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

Audio = NDArray[np.float32]

JUDGE_RATE = 16000
"""Hz. Resemblyzer, swift-f0 and the recogniser all listen at this rate, and so do the mel-cepstra."""

# One sentence to convert, one as the reference, one to enrol the speaker with the judge.
MIN_SENTENCES = 3


@dataclass(frozen=True)
class Voice:
    """A synthesiser's voice.

    Attributes:
        name: folder of its recordings.
        human: the speaker behind it; two engines may carry the same one.
        sex: "M", "F" or another label; pairs are told apart by whether it is equal.
        seen: whether the speaker was heard in training.
        sentences: ids of the recordings there are, sorted.
    """

    name: str
    human: str
    sex: str
    seen: bool
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """Voices that read the same sentences.

    Attributes:
        root: folder of the recordings.
        voices: by name.
        texts: what is read, by sentence id.
    """

    root: Path
    voices: dict[str, Voice]
    texts: dict[str, str]

    def load(self, voice: str, sentence: str) -> tuple[Audio, int]:
        """Reads one recording.

        Returns:
            Samples [T], mono, in [-1, 1], and the sample rate in Hz.
        """
        audio, rate = sf.read(self.root / voice / f"{sentence}.flac", dtype="float32", always_2d=True)
        return np.ascontiguousarray(audio.mean(axis=1)), int(rate)

    def load_joined(self, voice: str, sentences: tuple[str, ...]) -> tuple[Audio, int]:
        """Reads several recordings of one voice, one after the other.

        Returns:
            Samples [T], mono, in [-1, 1], and the sample rate in Hz.
        """
        parts = [self.load(voice, sentence) for sentence in sentences]
        return np.concatenate([audio for audio, _ in parts]), parts[0][1]


def open_dataset(root: Path) -> Dataset:
    """Reads the description of an evaluation set.

    Raises:
        FileNotFoundError: a description or all recordings of a voice are missing.
        ValueError: a voice has too few sentences to be converted, referred to and enrolled.
    """
    texts: dict[str, str] = _read_json(root / "texts.json")
    described: dict[str, dict[str, Any]] = _read_json(root / "voices.json")
    voices = {}
    for name, facts in sorted(described.items()):
        sentences = tuple(sorted(file.stem for file in (root / name).glob("*.flac") if file.stem in texts))
        if len(sentences) < MIN_SENTENCES:
            raise ValueError(
                f"voice {name} has {len(sentences)} sentences in {root / name}, at least {MIN_SENTENCES} are "
                "needed; make the evaluation set again with python -m autovoice_training.corpus"
            )
        voices[name] = Voice(name, facts["human"], facts["sex"], bool(facts["seen"]), sentences)
    return Dataset(root, voices, texts)


def at_judge_rate(audio: Audio, rate: int) -> Audio:
    """Resamples to what the judges listen to.

    Args:
        audio: samples [T].
        rate: Hz.

    Returns:
        Samples [T * JUDGE_RATE / rate] at JUDGE_RATE.
    """
    resampled: Audio = soxr.resample(audio, rate, JUDGE_RATE).astype(np.float32)
    return resampled


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; make the evaluation set with python -m autovoice_training.corpus, "
            "or name its folder with --data"
        )
    return json.loads(path.read_text())
