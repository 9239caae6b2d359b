"""People who read aloud: of a folder in LibriSpeech's layout (Panayotov et al. 2015) a speaker each."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile

from autovoice_training.corpus import audio as levels
from autovoice_training.corpus.store import Speaker, SpeakerWriter

# Of a reader with more recordings, these many are taken, spread over all of them: what a voice learns from is
# the number of readers.
RECORDINGS = 12
_QUIET_FRAMES = 15


def recordings(folder: Path) -> dict[int, list[Path]]:
    """The recordings of every reader: ``READER-CHAPTER-UTTERANCE.flac``, in folders or all in one.

    Raises:
        ValueError: there is none.
    """
    readers: dict[int, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*.flac")):
        reader, _, rest = path.stem.partition("-")
        if reader.isdigit() and rest:
            readers[int(reader)].append(path)
    if not readers:
        raise ValueError(
            f"{folder} holds no READER-CHAPTER-UTTERANCE.flac: give --people a folder of LibriSpeech's, "
            "for example LibriSpeech/train-clean-100"
        )
    return dict(readers)


def sexes(folder: Path) -> dict[int, str]:
    """Sex by reader, from ``speakers.tsv`` in the folder or LibriSpeech's ``SPEAKERS.TXT`` there or above."""
    names = {"F": "female", "M": "male"}
    for path in (folder / "speakers.tsv", folder / "SPEAKERS.TXT", folder.parent / "SPEAKERS.TXT"):
        if path.exists():
            rows = [line.replace("|", "\t").split("\t") for line in path.read_text().splitlines()]
            return {
                int(row[0]): names[row[1].strip()]
                for row in rows
                if len(row) > 1 and row[0].strip().isdigit() and row[1].strip() in names
            }
    return {}


def halves(audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut audio [T] in two at its quietest moment between two fifths and three fifths, at a whole frame.

    So that the recording a voice is known by and the one that is to be said are never the same.
    """
    frames = len(audio) // levels.HOP
    power = np.square(audio[: frames * levels.HOP].reshape(frames, levels.HOP), dtype=np.float64).mean(axis=1)
    smooth = np.convolve(power, np.ones(_QUIET_FRAMES), mode="same")
    first, last = frames * 2 // 5, frames * 3 // 5
    cut = levels.HOP * (first + int(np.argmin(smooth[first : last + 1])))
    return audio[:cut], audio[cut : frames * levels.HOP]


def gather(root: Path, folder: Path, held_out: frozenset[int]) -> int:
    """Write every reader who is not held out as a speaker of the corpus; returns how many.

    Args:
        root: folder of the corpus.
        folder: of the recordings.
        held_out: readers who are kept out.
    """
    of_sex = sexes(folder)
    readers = {reader: paths for reader, paths in recordings(folder).items() if reader not in held_out}
    for reader, paths in readers.items():
        name, taken = f"reader_{reader}", paths[:: -(-len(paths) // RECORDINGS)]
        rate = min(soundfile.info(path).samplerate for path in taken)
        writer = SpeakerWriter(
            root, Speaker(name, name, of_sex.get(reader, "unknown"), "people", rate, "train")
        )
        for path in taken:
            recording, _ = levels.read(path)
            for letter, half in zip("ab", halves(levels.normalise(recording, str(path))), strict=True):
                writer.add(f"{path.stem}{letter}", "", half, None, "train", None)
        writer.close()
    return len(readers)
