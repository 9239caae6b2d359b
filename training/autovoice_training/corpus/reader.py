"""The corpus as the trainer sees it: speakers, utterances and memory-mapped arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovoice_training.corpus.store import FORMAT, Speaker


class CorpusError(ValueError):
    """A corpus that is missing or of another version; the message says what to do."""


@dataclass(frozen=True)
class Utterance:
    """One utterance in its speaker's arrays.

    Attributes:
        speaker: name of the speaker.
        start_frame: first frame in the speaker's arrays.
        frames: number of 10 ms frames.
        split: "train" or "valid".
        group: id shared by aligned utterances: the same sentence with the same timing in several voices.
    """

    speaker: str
    start_frame: int
    frames: int
    split: str
    group: str


class Corpus:
    """A finished corpus, opened for reading.

    Args:
        root: folder that ``autovoice_training.corpus`` made.

    Raises:
        CorpusError: there is none, or it is of another format.
    """

    def __init__(self, root: Path) -> None:
        path = root / "index.json"
        if not path.exists():
            raise CorpusError(f"no corpus at {root} (no index.json); make one with  make corpus")
        index = json.loads(path.read_text())
        if index["format"] != FORMAT:
            raise CorpusError(
                f"the corpus at {root} has format {index['format']}, expected {FORMAT}; make it again"
            )
        self.root = root
        self.seed: int = index["seed"]
        self.phone_set: list[str] = index["phones"]
        self.speakers: dict[str, Speaker] = {entry["name"]: Speaker(**entry) for entry in index["speakers"]}
        self.utterances = [self._utterance(entry) for entry in index["utterances"]]
        self._array = cache(self._open)

    def _utterance(self, entry: dict[str, Any]) -> Utterance:
        group = entry["group"] or entry["id"]
        return Utterance(entry["speaker"], entry["start_frame"], entry["frames"], entry["split"], group)

    def _open(self, speaker: str, name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(self.root / "speakers" / speaker / f"{name}.npy", mmap_mode="r")
        return array

    def audio(self, speaker: str) -> NDArray[np.int16]:
        """All audio of a speaker, int16 at 24 kHz, [240 F]."""
        return self._array(speaker, "audio")

    def phones(self, speaker: str) -> NDArray[np.int16]:
        """Phone codes of every frame of a speaker, -1 where unknown, [F]."""
        return self._array(speaker, "phones")
