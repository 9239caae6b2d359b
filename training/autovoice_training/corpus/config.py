"""Size of the corpus, from a TOML file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib


@dataclass(frozen=True)
class CorpusConfig:
    """How many sentences and speakers of each kind.

    Attributes:
        parallel: training sentences rendered frame-aligned in every training diphone voice.
        valid: further frame-aligned sentences, also spoken by the validation human.
        free: sentences spoken by the flite training voices.
        hts: of those, how many the festival HTS voices speak.
        evaluation: evaluation sentences (at most 25 are written down).
        development: development sentences (at most 20 are written down).
        espeak_speakers: number of espeak-ng variants.
        espeak_sentences: sentences of each.
        warps: pseudo-speakers made of each training human (at most 8).
        warp_sentences: sentences of each.
        followers: diphone voices that follow the timing of each flite voice (at most 7).
        follow_sentences: sentences of each.
        recorded: utterances of about five seconds of each person who recorded words (0: no such people).
    """

    parallel: int = 1000
    valid: int = 60
    free: int = 700
    hts: int = 300
    evaluation: int = 25
    development: int = 20
    espeak_speakers: int = 30
    espeak_sentences: int = 30
    warps: int = 8
    warp_sentences: int = 32
    followers: int = 5
    follow_sentences: int = 150
    recorded: int = 48

    def __post_init__(self) -> None:
        """Refuse negative counts."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"corpus setting {field.name} = {value!r}: give a whole number, 0 or more")
        for name, most in (("warps", 8), ("evaluation", 25), ("development", 20)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} = {getattr(self, name)}: at most {most} are defined")

    @classmethod
    def from_toml(cls, path: Path) -> CorpusConfig:
        """Read a TOML file of these names.

        Raises:
            ValueError: an unknown name or a bad value.
        """
        values = tomllib.loads(path.read_text())
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{path}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
        return cls(**values)


SMALL = CorpusConfig(
    parallel=3,
    valid=1,
    free=3,
    hts=1,
    evaluation=2,
    development=1,
    espeak_speakers=1,
    espeak_sentences=2,
    warps=1,
    warp_sentences=2,
    recorded=1,
)
