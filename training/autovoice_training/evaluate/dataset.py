"""The recordings an evaluation reads: `<voice>/<sentence>.flac` or `.wav` in one folder.

Recordings of one name in the folders of two voices are renditions of the same sentence. Beside the voices may
lie `texts.json`, what is said by sentence, without which words are not counted, and `voices.json`, facts on
each voice: `human` (who is behind it; its name), `sex` (unknown), `seen` (whether heard in training; no).
"""

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

SUFFIXES = (".flac", ".wav")

# One sentence to convert, one as the reference, one to enrol the speaker with the judge.
MIN_SENTENCES = 3


@dataclass(frozen=True)
class Voice:
    """A voice and its recordings.

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
    """Voices and what they say.

    Attributes:
        root: folder of the recordings.
        voices: by name.
        texts: what is said, by sentence, where it is known.
    """

    root: Path
    voices: dict[str, Voice]
    texts: dict[str, str]

    def load(self, voice: str, sentence: str) -> tuple[Audio, int]:
        """Reads one recording.

        Returns:
            Samples [T], mono, in [-1, 1], and the sample rate in Hz.
        """
        stem = self.root / voice / sentence
        path = next(path for suffix in SUFFIXES if (path := stem.with_name(sentence + suffix)).exists())
        audio, rate = sf.read(path, dtype="float32", always_2d=True)
        return np.ascontiguousarray(audio.mean(axis=1)), int(rate)

    def load_joined(self, voice: str, sentences: tuple[str, ...]) -> tuple[Audio, int]:
        """Reads several recordings of one voice, one after the other.

        Returns:
            Samples [T], mono, in [-1, 1], and the sample rate in Hz.
        """
        parts = [self.load(voice, sentence) for sentence in sentences]
        return np.concatenate([audio for audio, _ in parts]), parts[0][1]


def open_dataset(root: Path) -> Dataset:
    """Reads which recordings there are.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it holds no voices, or a voice has too few recordings.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is missing; make the evaluation set with python -m autovoice_training.corpus, "
            "or name a folder of recordings with --data"
        )
    texts: dict[str, str] = _read_json(root / "texts.json")
    folders = [path.parent.name for suffix in SUFFIXES for path in root.glob(f"*/*{suffix}")]
    described: dict[str, dict[str, Any]] = _read_json(root / "voices.json") or {name: {} for name in folders}
    if not described:
        raise ValueError(f"{root} has no voices: give each its folder of {' or '.join(SUFFIXES)} files in it")
    voices = {}
    for name, facts in sorted(described.items()):
        files = (file for suffix in SUFFIXES for file in (root / name).glob(f"*{suffix}"))
        sentences = tuple(sorted({file.stem for file in files}))
        if len(sentences) < MIN_SENTENCES:
            raise ValueError(
                f"voice {name} has {len(sentences)} recordings in {root / name}, at least {MIN_SENTENCES} "
                "are needed: one to convert, one as the reference, one for the judges to know the voice by"
            )
        human, sex = facts.get("human", name), facts.get("sex", "unknown")
        voices[name] = Voice(name, human, sex, bool(facts.get("seen", False)), sentences)
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
    return json.loads(path.read_text()) if path.is_file() else {}
