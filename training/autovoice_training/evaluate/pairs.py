"""Who is converted into whom: balanced over the sexes, each speaker used alike."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

import numpy as np

from autovoice_training.evaluate.audio import Audio
from autovoice_training.evaluate.sets import Clip, EvaluationSet, Speaker


@dataclass(frozen=True)
class Pair:
    """One conversion.

    Attributes:
        source: who is converted.
        target: into whom; the source for a voice into its own speaker.
        clip: what of the source is converted.
        enrolment_as_reference: whether the voice is taken from what the judges know the target by, of a voice
            into itself whose only other recording that is.
    """

    source: Speaker
    target: Speaker
    clip: Clip
    enrolment_as_reference: bool = False

    @property
    def same_sex(self) -> bool:
        """Whether source and target are of one sex."""
        return self.source.sex == self.target.sex

    def reference(self) -> Audio:
        """What the target's voice is taken from, samples [T] at RATE."""
        clips = self.target.enrolment if self.enrolment_as_reference else self.target.references
        return np.concatenate([clip.load() for clip in clips])

    @property
    def target_clip(self) -> Clip:
        """The target's own rendition of what is converted; where there is none, its first recording."""
        same = (clip for clip in self.target.sources if clip.path.stem == self.clip.path.stem)
        return next(same, self.target.sources[0])


def choose_pairs(chosen_from: EvaluationSet, count: int, seed: int = 0) -> list[Pair]:
    """Draws conversions between the speakers of a set.

    The speakers of each sex stand on a ring in an order that the seed draws. A round takes for each source,
    in turn over the combinations of sexes, the targets some places ahead, one place more in each round; so
    whole rounds use every speaker alike, and any number of pairs nearly so. Each round converts another
    recording.

    Args:
        chosen_from: the speakers.
        count: pairs wanted.
        seed: of the draw.

    Returns:
        At most count pairs, all different; fewer where the set has no more.
    """
    rng = random.Random(seed)
    rings: dict[str, list[Speaker]] = {}
    for speaker in chosen_from.speakers:
        rings.setdefault(speaker.sex, []).append(speaker)
    for sex in sorted(rings):
        rng.shuffle(rings[sex])
    combinations = [
        (sources, targets)
        for first, second in itertools.product(sorted(rings), repeat=2)
        if len(targets := rings[second]) > (first == second)
        for sources in [rings[first]]
    ]
    rounds = max(map(len, rings.values())) * max(len(one.sources) for one in chosen_from.speakers)
    pairs: dict[Pair, None] = {}
    for turn, place in itertools.product(range(rounds), range(max(map(len, rings.values())))):
        for sources, targets in combinations:
            if place >= len(sources):
                continue
            ahead = 1 + turn % (len(targets) - 1) if sources is targets else turn
            source, target = sources[place], targets[(place + ahead) % len(targets)]
            pairs[Pair(source, target, source.sources[turn % len(source.sources)])] = None
            if len(pairs) == count:
                return list(pairs)
    return list(pairs)


def own_voices(speakers: EvaluationSet) -> list[Pair]:
    """Every speaker into its own voice; where the reference is what is converted, with another too."""
    pairs = [Pair(speaker, speaker, speaker.sources[0]) for speaker in speakers.speakers]
    return pairs + [
        replace(one, enrolment_as_reference=True) for one in pairs if one.clip in one.target.references
    ]
