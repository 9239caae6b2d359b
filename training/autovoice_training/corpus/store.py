"""The corpus on disk: one audio and one label array per speaker, and one index.

``speakers/NAME/audio.npy`` is int16 [240 * frames], 24 kHz; ``speakers/NAME/phones.npy`` is int16 [frames]
(codes into the index's ``phones``, -1 unknown); utterances lie one after another. ``index.json`` lists
speakers and utterances. A speaker's folder appears at once when it is complete, so a build that was
stopped can go on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autovoice.atomic import atomic_path
from autovoice_training.corpus.audio import HOP, SAMPLE_RATE
from autovoice_training.corpus.phones import PHONES, UNKNOWN

FORMAT = 1


@dataclass(frozen=True)
class Source:
    """Where speech of the corpus comes from.

    Attributes:
        engine: what the speakers of this source name as their engine.
        name: of the collection.
        licence: under which it is used.
        credit: whom the licence asks to name, or who made it.
    """

    engine: str
    name: str
    licence: str
    credit: str


SOURCES: tuple[Source, ...] = (
    Source("kokoro", "Kokoro-82M v1.0", "Apache-2.0", "hexgrad, https://huggingface.co/hexgrad/Kokoro-82M"),
    Source(
        "people",
        "LibriSpeech",
        "CC-BY-4.0",
        "V. Panayotov, G. Chen, D. Povey and S. Khudanpur, https://www.openslr.org/12; readers of LibriVox",
    ),
)


@dataclass(frozen=True)
class Speaker:
    """One voice identity.

    Attributes:
        name: name in the corpus.
        human: who is behind it.
        sex: "female", "male" or "unknown".
        engine: "people" or "kokoro".
        native_rate: rate in Hz up to half of which the audio has content; mask the loss above.
        split: "train".
        pseudo: a mixture of two voices.
        base: the speaker that this one was made of by warping; none is.
        approximate: phones that the speaker replaces by other sounds; nobody does.
    """

    name: str
    human: str
    sex: str
    engine: str
    native_rate: int
    split: str
    pseudo: bool = False
    base: str | None = None
    approximate: tuple[str, ...] = ()


@dataclass
class SpeakerWriter:
    """Collects one speaker's utterances and writes them as one folder."""

    root: Path
    speaker: Speaker
    _audio: list[np.ndarray] = field(default_factory=list)
    _phones: list[np.ndarray] = field(default_factory=list)
    _utterances: list[dict[str, Any]] = field(default_factory=list)
    _frames: int = 0

    def add(
        self,
        sentence: str,
        text: str,
        audio: np.ndarray,
        labels: np.ndarray | None,
        split: str,
        group: str | None,
    ) -> None:
        """Append an utterance.

        Args:
            sentence: sentence id.
            text: what is said.
            audio: int16 [240 * frames].
            labels: int16 [frames], or None when the phones are unknown.
            split: split of this utterance.
            group: id shared by the frame-aligned utterances of a sentence, or None.
        """
        frames = len(audio) // HOP
        if (
            audio.dtype != np.int16
            or len(audio) != frames * HOP
            or (labels is not None and len(labels) != frames)
        ):
            raise ValueError(
                f"{self.speaker.name}/{sentence}: {audio.dtype} audio of {len(audio)} samples does not "
                f"fit {None if labels is None else len(labels)} labels of {HOP} samples"
            )
        self._audio.append(audio)
        self._phones.append(np.full(frames, UNKNOWN, np.int16) if labels is None else labels.astype(np.int16))
        self._utterances.append(
            {
                "id": f"{self.speaker.name}_{sentence}",
                "speaker": self.speaker.name,
                "sentence": sentence,
                "text": text,
                "start_frame": self._frames,
                "frames": frames,
                "labelled": labels is not None,
                "split": split,
                "group": group,
            }
        )
        self._frames += frames

    def close(self) -> None:
        """Write the folder; it appears whole or not at all."""
        final = self.root / "speakers" / self.speaker.name
        partial = final.with_name(final.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        np.save(partial / "audio.npy", np.concatenate(self._audio))
        np.save(partial / "phones.npy", np.concatenate(self._phones))
        write_json(
            partial / "speaker.json", {"speaker": asdict(self.speaker), "utterances": self._utterances}
        )
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON so that the file is either the old or the whole new one."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=0))


def write_index(root: Path, names: Sequence[str], seed: int) -> dict[str, Any]:
    """Gather the speakers of these names into ``index.json`` and return it."""
    parts = [json.loads((root / "speakers" / name / "speaker.json").read_text()) for name in names]
    engines = {part["speaker"]["engine"] for part in parts}
    index = {
        "format": FORMAT,
        "sample_rate": SAMPLE_RATE,
        "hop": HOP,
        "seed": seed,
        "sources": [asdict(source) for source in SOURCES if source.engine in engines],
        "phones": list(PHONES),
        "speakers": [part["speaker"] for part in parts],
        "utterances": [utterance for part in parts for utterance in part["utterances"]],
    }
    write_json(root / "index.json", index)
    return index
