"""The recordings that releases are tried with, and the conditions made from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autovoice.audio.files import read_audio
from autovoice.audio.levels import level_of
from autovoice.audio.samples import resample
from autovoice.errors import ConfigurationError
from autovoice.results import FloatArray

SUITE = "demo"  # the folder's name in a checkout, and in the installed package
SOURCE, TARGET = "source", "target"
QUIET_DB, LOUD_PEAK = -55.0, 0.9
SILENT_SECONDS = 2.0
NOISE_DB = 10.0
LONG_SECONDS = 60.0


@dataclass(frozen=True)
class Recording:
    """One recording of the suite.

    Attributes:
        path: of its file.
        audio: mono samples [T].
        sample_rate: Hz.
    """

    path: Path
    audio: FloatArray
    sample_rate: int

    def at(self, rate: int) -> FloatArray:
        """Its samples at another rate."""
        return resample(self.audio, self.sample_rate, rate)


@dataclass(frozen=True)
class Suite:
    """Real speech: what is converted, and the voices it is converted to.

    Attributes:
        sources: one at least.
        targets: one at least.
    """

    sources: tuple[Recording, ...]
    targets: tuple[Recording, ...]

    def digests(self) -> dict[str, str]:
        """SHA-256 of each file, by its name."""
        files = [recording.path for recording in (*self.sources, *self.targets)]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@dataclass(frozen=True)
class Condition:
    """One source as a release is given it.

    Attributes:
        name: of the condition.
        audio: mono samples [T].
        speech: what is spoken in it [T], without the noise; None where nobody speaks.
    """

    name: str
    audio: FloatArray
    speech: FloatArray | None


def suite_folder() -> Path:
    """The folder of the recordings that come with AutoVoice.

    Raises:
        ConfigurationError: there is none.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package.parents[1] / SUITE, package / SUITE)
    for place in places:
        if place.is_dir():
            return place
    raise ConfigurationError(
        f"no recordings found in {', '.join(map(str, places))}; name a folder by --suite"
    )


def read_suite(folder: Path | None = None) -> Suite:
    """Read a folder of recordings: `source*` are converted to the voices of `target*`.

    Args:
        folder: of audio files of any kind; None for the recordings that come with AutoVoice.

    Raises:
        ConfigurationError: no such folder, or one of the two kinds is missing.
        AudioFileError: a recording cannot be read.
    """
    folder = suite_folder() if folder is None else folder
    if not folder.is_dir():
        raise ConfigurationError(
            f"suite {folder} is no folder; name one with recordings {SOURCE}* and {TARGET}*"
        )
    found = {kind: tuple(_recordings(folder, kind)) for kind in (SOURCE, TARGET)}
    for kind, recordings in found.items():
        if not recordings:
            raise ConfigurationError(f"suite {folder} holds no recording {kind}*.wav or .flac; add one")
    return Suite(found[SOURCE], found[TARGET])


def _recordings(folder: Path, kind: str) -> Iterator[Recording]:
    for path in sorted(folder.glob(f"{kind}*.*")):
        if path.is_file():
            yield Recording(path, *read_audio(path))


def conditions(suite: Suite, rate: int, long_seconds: float = LONG_SECONDS) -> list[Condition]:
    """The five conditions, at a voice's rate.

    Args:
        suite: the recordings.
        rate: Hz.
        long_seconds: length of the long one, which is all sources over and over.
    """
    sources = [recording.at(rate) for recording in suite.sources]
    first, last = sources[0], sources[-1]
    quiet = first * np.float32(10 ** (QUIET_DB / 20) / level_of(first, rate))
    loud = last * np.float32(LOUD_PEAK / np.abs(last).max())
    noise = np.random.default_rng(0).standard_normal(first.size).astype(np.float32)
    noisy = first + noise * np.float32(level_of(first, rate) * 10 ** (-NOISE_DB / 20))
    long = long_source(suite, rate, long_seconds)
    return [
        Condition("quiet", quiet, quiet),
        Condition("loud", loud, loud),
        Condition("silent", np.zeros(round(SILENT_SECONDS * rate), np.float32), None),
        Condition("noisy", noisy, first),
        Condition("long", long, long),
    ]


def long_source(suite: Suite, rate: int, seconds: float = LONG_SECONDS) -> FloatArray:
    """All sources over and over [seconds * rate], at a rate in Hz."""
    sources = np.concatenate([recording.at(rate) for recording in suite.sources])
    return np.resize(sources, round(seconds * rate))
