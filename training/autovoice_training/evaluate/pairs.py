"""Which recording is converted into which voice: balanced over the conditions, the same for the same seed."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass

from autovoice_training.evaluate.dataset import Dataset, Voice

# About ten seconds of speech, as a user of the service would hand in.
REFERENCE_SENTENCES = 3
ENROLMENT_SENTENCES = 5


@dataclass(frozen=True)
class Pair:
    """One conversion.

    Attributes:
        source: voice converted from.
        target: voice converted to.
        sentence: what the source says; the target's own rendition of it, where there is one, is what the
            result is held against.
        references: sentences of the target that its embedding is made of, never the converted one.
        source_seen: whether the source speaker was heard in training.
        target_seen: whether the target speaker was heard in training.
        same_sex: whether source and target are of one sex.
    """

    source: str
    target: str
    sentence: str
    references: tuple[str, ...]
    source_seen: bool
    target_seen: bool
    same_sex: bool

    @property
    def cell(self) -> str:
        """The cell of the evaluation's design the pair falls in."""
        return (
            f"{'seen' if self.source_seen else 'unseen'} source, "
            f"{'seen' if self.target_seen else 'unseen'} target, "
            f"{'same' if self.same_sex else 'cross'} sex"
        )

    def enrolment(self, voice: Voice) -> tuple[str, ...]:
        """Sentences by which the judge knows a voice: none of those that the conversion has heard."""
        heard = {self.sentence, *(self.references if voice.name == self.target else ())}
        return tuple(sentence for sentence in voice.sentences if sentence not in heard)[:ENROLMENT_SENTENCES]


def choose_pairs(dataset: Dataset, count: int, seed: int) -> list[Pair]:
    """Draws conversions in turn from every cell of seen/unseen source x seen/unseen target x same/cross sex.

    Within a cell the speakers least used so far come first, so that no voice carries the figures. Between two
    voices that share sentences those alone are converted.

    Args:
        dataset: voices and sentences.
        count: pairs wanted.
        seed: of the draw.

    Returns:
        At most count pairs, all different; fewer when the set has no more.

    Raises:
        ValueError: there is only one speaker.
    """
    rng = random.Random(seed)
    cells: dict[tuple[bool, bool, bool], list[tuple[Voice, Voice, str]]] = {}
    for source, target in itertools.permutations(dataset.voices.values(), 2):
        if source.human == target.human:
            continue
        cell = cells.setdefault((source.seen, target.seen, source.sex == target.sex), [])
        shared = [sentence for sentence in source.sentences if sentence in target.sentences]
        cell += [(source, target, sentence) for sentence in shared or source.sentences]
    open_cells = [cells[key] for key in sorted(cells) if cells[key]]
    if not open_cells:
        raise ValueError(f"{dataset.root} holds one speaker only; a conversion needs a source and a target")
    for cell in open_cells:
        rng.shuffle(cell)

    used: Counter[tuple[str, ...]] = Counter()

    def times_used(candidate: tuple[Voice, Voice, str]) -> tuple[int, ...]:
        source, target, sentence = candidate
        return (
            used[(source.name, target.name)],
            used[("source", source.human)] + used[("target", target.human)],
            used[("sentence", sentence)],
        )

    pairs: list[Pair] = []
    while open_cells and len(pairs) < count:
        cell = open_cells.pop(0)
        source, target, sentence = chosen = min(cell, key=times_used)
        cell.remove(chosen)
        if cell:
            open_cells.append(cell)
        used.update(
            [
                (source.name, target.name),
                ("source", source.human),
                ("target", target.human),
                ("sentence", sentence),
            ]
        )
        others = [other for other in target.sentences if other != sentence]
        references = rng.sample(others, min(REFERENCE_SENTENCES, len(others) - 1))
        pairs.append(
            Pair(
                source.name,
                target.name,
                sentence,
                tuple(references),
                source.seen,
                target.seen,
                source.sex == target.sex,
            )
        )
    return pairs
