"""Who is evaluated, and which of their recordings serve for what.

A folder holds a folder for each voice (`VOICE/RECORDING.flac` or `.wav`); recordings of one name in the
folders of two voices are renditions of the same sentence. Beside the voices may lie `texts.json`, what is
said by recording, and `voices.json`, facts on each voice: `sex`, and `seen`, whether training heard the
speaker. People are read from a folder in LibriSpeech's layout.

No recording serves for two purposes: one third is converted, one third is the reference that a voice is taken
from, and by the last third the judges know the speaker. A speaker with fewer than three recordings has the
first cut in two: its first half is both converted and the reference, its second half is for the judges.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from autovoice_training.corpus import people
from autovoice_training.evaluate.audio import RATE, Audio, read_audio

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEVELOPMENT, EVALUATION = "development", "evaluation"
PEOPLE, KOKORO, SYNTHESISERS, FOLDER = "people", "kokoro", "synthesisers", "folder"

HELD_OUT = Path(__file__).resolve().parents[2] / "sets.toml"
SUFFIXES = (".flac", ".wav")
# About ten seconds of speech, as a user of the service would hand in.
MAX_REFERENCES = 3
MAX_ENROLMENT = 5
MAX_SECONDS = 15.0
"""Of a clip whose text is not known: what is longer costs the judges time and memory, and tells no more."""
MIN_SECONDS = 4.0
"""The shortest recording that is cut in two: a judge needs two seconds to know a speaker."""

_FOLDERS = {
    KOKORO: {DEVELOPMENT: "dev_kokoro", EVALUATION: "eval_kokoro"},
    SYNTHESISERS: {DEVELOPMENT: "dev", EVALUATION: "eval"},
}


@dataclass(frozen=True)
class Clip:
    """A recording or half of one.

    Attributes:
        path: of the recording.
        half: 0 or 1 for a half of it; None for the whole.
        text: what is said; None where that is not known.
    """

    path: Path
    half: int | None = None
    text: str | None = None

    def load(self) -> Audio:
        """Reads the samples [T] at RATE, in [-1, 1]; at most MAX_SECONDS where no text is known."""
        audio = read_audio(self.path)
        if self.half is not None:
            audio = people.halves(audio)[self.half]
        return audio if self.text else audio[: round(MAX_SECONDS * RATE)]


@dataclass(frozen=True)
class Speaker:
    """A voice and its recordings.

    Attributes:
        name: of the voice.
        sex: "female", "male" or another label; pairs are balanced over it.
        sources: what is converted.
        references: what its voice is taken from.
        enrolment: what the judges know it by.
    """

    name: str
    sex: str
    sources: tuple[Clip, ...]
    references: tuple[Clip, ...]
    enrolment: tuple[Clip, ...]


@dataclass(frozen=True)
class EvaluationSet:
    """Speakers to convert between.

    Attributes:
        name: in tables and floors.
        speakers: sorted by name.
    """

    name: str
    speakers: tuple[Speaker, ...]


class MissingSetError(FileNotFoundError):
    """A set is not there; the message says how to get it."""


def held_out(path: Path = HELD_OUT) -> dict[str, dict[str, list[Any]]]:
    """Who is kept out of training: by set, then by `development` and `evaluation`."""
    read: dict[str, dict[str, list[Any]]] = tomllib.loads(path.read_text())
    return read


def open_people(folder: Path, kind: str) -> EvaluationSet:
    """The readers of a folder in LibriSpeech's layout who are kept out of training.

    Args:
        folder: of the recordings.
        kind: DEVELOPMENT or EVALUATION.

    Raises:
        MissingSetError: no folder, or fewer than two of the readers in it.
        ValueError: the folder holds no recordings.
    """
    if not folder.is_dir():
        raise MissingSetError(
            f"{folder} is missing; name LibriSpeech's train-clean-100 (openslr.org/12) with --people"
        )
    sexes, recordings = people.sexes(folder), people.recordings(folder)
    readers = [reader for reader in held_out()[PEOPLE][kind] if reader in recordings]
    if len(readers) < 2:
        raise MissingSetError(
            f"{folder} has {len(readers)} of the {kind} readers; they are in LibriSpeech's train-clean-100"
        )
    speakers = (
        _speaker(f"reader_{reader}", sexes.get(reader, "unknown"), recordings[reader], {})
        for reader in sorted(readers)
    )
    return EvaluationSet(PEOPLE, tuple(speakers))


def open_rendered(corpus: Path, name: str, kind: str) -> EvaluationSet:
    """A set that the corpus holds: KOKORO or SYNTHESISERS.

    Raises:
        MissingSetError: it does not hold it.
        ValueError: it has no two voices or too few recordings.
    """
    folder = corpus / _FOLDERS[name][kind]
    if not folder.is_dir():
        raise MissingSetError(f"{folder} is missing; make corpus renders it")
    return open_folder(folder, name)


def open_folder(folder: Path, name: str = FOLDER) -> EvaluationSet:
    """A folder with a folder of recordings for each voice. Speakers heard in training are left out.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it has no two voices, or a voice has too few recordings or too short ones.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; name one with a folder of recordings for each voice")
    texts: dict[str, str] = _read_json(folder / "texts.json")
    facts: dict[str, dict[str, Any]] = _read_json(folder / "voices.json")
    found = {path.parent.name for suffix in SUFFIXES for path in folder.glob(f"*/*{suffix}")}
    speakers = []
    for voice in sorted(found):
        described = facts.get(voice, {})
        if described.get("seen"):
            continue
        files = {path.stem: path for suffix in SUFFIXES for path in (folder / voice).glob(f"*{suffix}")}
        paths = [path for _, path in sorted(files.items())]
        speakers.append(_speaker(voice, described.get("sex", "unknown"), paths, texts))
    if len(speakers) < 2:
        raise ValueError(
            f"{folder} has {len(speakers)} voices; a conversion needs two, each a folder of recordings "
            f"({' or '.join(SUFFIXES)})"
        )
    return EvaluationSet(name, tuple(speakers))


def _speaker(name: str, sex: str, paths: Sequence[Path], texts: dict[str, str]) -> Speaker:
    if len(paths) < 3:
        if (seconds := soundfile.info(paths[0]).duration) < MIN_SECONDS:
            raise ValueError(
                f"{paths[0]} has {seconds:.1f} s; give voice {name} a recording of at least "
                f"{MIN_SECONDS:.0f} s, or three recordings"
            )
        first, second = Clip(paths[0], 0), Clip(paths[0], 1)
        return Speaker(name, sex, (first,), (first,), (second, *(Clip(path) for path in paths[1:])))
    clips = [Clip(path, text=texts.get(path.stem)) for path in paths]
    third = len(clips) // 3
    references, enrolment = clips[third : 2 * third], clips[2 * third :]
    return Speaker(
        name,
        sex,
        tuple(clips[:third]),
        tuple(references[:MAX_REFERENCES]),
        tuple(enrolment[:MAX_ENROLMENT]),
    )


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else {}
