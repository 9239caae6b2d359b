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
    """How much of what Kokoro says, and by whom.

    Attributes:
        seed: of sentences, voices and plan.
        groups: sentences in three or four voices each, aligned.
        free: sentences in one voice, with its own prosody.
        blends: voices mixed of two packs.
    """

    seed: int = 0
    groups: int = 1300
    free: int = 1900
    blends: int = 84

    def __post_init__(self) -> None:
        """Refuse negative counts."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"corpus setting {field.name} = {value!r}: give a whole number, 0 or more")

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


@dataclass(frozen=True)
class HeldOut:
    """Who is kept out of training, from ``training/sets.toml``.

    Attributes:
        readers: of LibriSpeech, by number.
        packs: voices of Kokoro, by set: "development" and "evaluation".
    """

    readers: frozenset[int]
    packs: dict[str, tuple[str, ...]]

    @classmethod
    def from_toml(cls, path: Path) -> HeldOut:
        """Read the file."""
        sets = tomllib.loads(path.read_text())
        readers = frozenset(reader for numbers in sets["people"].values() for reader in numbers)
        return cls(readers, {kind: tuple(names) for kind, names in sets["kokoro"].items()})
