"""Sentences: templates filled with lexicon words, chosen for diphones; evaluation and development texts."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

LEXICON = Path("/usr/share/festival/dicts/cmu/cmudict-0.4.out")
_ENTRY = re.compile(r'^\("([a-z]+)" (\S+) \((.*)\)\)$')
_MIN_PHONES, _MAX_PHONES = 24, 46  # about 2 to 4.5 seconds as the reference voice speaks
_CANDIDATES = 10

EVALUATION_TEXTS: tuple[str, ...] = (
    "The children walked home from school before the rain began.",
    "Please send me the final report by Monday afternoon.",
    "She found a small wooden box under the old bridge.",
    "We should leave early if we want to catch the first train.",
    "He put the coffee on the table and opened the newspaper.",
    "The doctor said that the patient would be fine in a week.",
    "My brother lives in a large house near the city center.",
    "There was nothing left to do but wait for the answer.",
    "The company announced a new plan to reduce its costs.",
    "I would like a glass of water and a piece of bread.",
    "They were surprised by the strength of the evening wind.",
    "A good teacher knows when to listen and when to speak.",
    "The road to the village was closed because of heavy snow.",
    "You can see the mountains from the window of the kitchen.",
    "The president will meet with business leaders this morning.",
    "It took three hours to repair the engine of the boat.",
    "Nobody knew why the young man had decided to return.",
    "The museum is open every day except on public holidays.",
    "Her voice was calm, but her hands were shaking.",
    "Most people agree that the price of food is too high.",
    "We watched the ships move slowly across the bay.",
    "The judge asked both sides to choose their words with care.",
    "A yellow bird was singing on the roof of the garage.",
    "He measured the length of the field with a piece of rope.",
    "The measure was passed after a short discussion.",
)
DEVELOPMENT_TEXTS: tuple[str, ...] = (
    "The old man sat by the fire and told us a story.",
    "Her sister works in a hospital on the other side of town.",
    "Can you tell me the way to the nearest post office?",
    "The farmer sold his horses and moved to the coast.",
    "We had dinner in a small restaurant near the station.",
    "The weather will be cold and dry until the weekend.",
    "He forgot his umbrella and got wet on the way back.",
    "The children asked their mother for another piece of cake.",
    "A large crowd gathered in front of the town hall.",
    "I have not seen my cousin since he joined the army.",
    "The garden behind the church is full of roses.",
    "They bought a new car because the old one broke down.",
    "The students finished their work before the bell rang.",
    "She opened the letter and read it twice without a word.",
    "The river was so high that the bridge had to be closed.",
    "My uncle plays the piano every evening after dinner.",
    "The police found the stolen money under a tree.",
    "It is too early to say who will win the game.",
    "The train to the north leaves at half past seven.",
    "He thanked his friends for their help and went to bed.",
)
"""Sentences to decide by: neither in training nor in the evaluation, which is for measuring alone."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


_SLOTS: dict[str, tuple[str, ...]] = {
    "adj": _words(
        "bright, careful, deep, early, foggy, gentle, huge, icy, joyful, known, lively, mellow, narrow, "
        "odd, plain, quiet, rough, shallow, thick, unusual, vague, wide, young, zealous, casual, beige, "
        "royal, sour, foolish, thorough, yellow, choosy, edgy, awkward, useful, worthy, smooth, genuine, "
        "various, cheerful"
    ),
    "noun": _words(
        "apple, basket, chair, dolphin, engine, feather, garage, hammer, island, journal, kettle, "
        "lantern, measure, needle, ocean, pigeon, question, river, shadow, thimble, umbrella, village, "
        "window, yard, zipper, treasure, voyage, boy, mouth, nature, oyster, path, cloth, bush, jewel, "
        "church, thunder, vision, wagon, yogurt, flower, harbour, leather, mirror, orchard, picture, "
        "ribbon, saddle, toy, valley, hood"
    ),
    "verb": _words(
        "avoids, borrows, catches, draws, enjoys, finds, guards, hides, imagines, joins, keeps, loves, "
        "measures, notices, owns, pushes, questions, raises, shows, throws, uses, values, watches, "
        "yields, buys, teaches, judges, bathes, soothes, chooses"
    ),
    "past": _words(
        "avoided, built, chose, dropped, employed, found, gathered, heard, ignored, joined, kept, lost, "
        "measured, noticed, opened, painted, questioned, reached, shouted at, thought about, used, "
        "visited, washed, yelled at, zoomed past, pulled, bought, taught"
    ),
    "prep": _words(
        "above, across, behind, below, beside, between us and, inside, near, over, through, toward, "
        "under, without, beyond"
    ),
    "when": _words(
        "yesterday, this morning, on Thursday, in July, last year, every hour, at noon, in August, before "
        "lunch, after the show, without warning, as usual, later on, once again, tomorrow"
    ),
    "who": _words(
        "my father, her cousin, the judge, your neighbour, their teacher, a stranger, the boy, our guide, "
        "the nurse, the young girl, his aunt, the chef, somebody, the usher, no one"
    ),
    "adv": _words(
        "quietly, usually, barely, cheerfully, thoroughly, awkwardly, rather badly, slowly, joyfully, in "
        "a hurry, with pleasure, loudly, early, with both hands"
    ),
}
_TEMPLATES: tuple[str, ...] = (
    "{who} {past} the {adj} {noun} {prep} the {noun2}.",
    "The {adj} {noun} of {name} {verb} a {adj2} {noun2}.",
    "{name} and {name2} {past} it {adv}.",
    "Why is the {noun} {prep} the {adj} {noun2}?",
    "{when}, {who} {past} a {noun} in {name}.",
    "Is {name} a {adj} {noun}, or a {adj2} {noun2}?",
    "{who} never {verb} the {noun}, {name} does.",
    "They said {name}, not {name2}, {past} the {noun}.",
    "Put the {adj} {noun} {prep} the {noun2} {when}.",
    "If {who} {past} {name}, then {name2} {past2} us.",
    "Doctor {name} {verb} {noun}, {noun2}, and {name2}.",
    "I think that {name} {past} {who} {adv}.",
    "How many {adj} things did {who} see {prep} the {noun}?",
    "Oh yes, {name} Street is {prep} the {adj} {noun}.",
    "{adv}, {who} {past} the {noun}, and {name} {past2} the {noun2}.",
    "There were {name}, {name2}, and the {adj} {noun}.",
)


def normalise(text: str) -> str:
    """Reduce a sentence to its lower-case words, the form in which two texts are compared."""
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def read_lexicon(path: Path = LEXICON) -> dict[str, tuple[str, ...]]:
    """Read word -> phones from festival's CMU lexicon (the first pronunciation of each word).

    Raises:
        FileNotFoundError: the lexicon is not installed.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"no lexicon at {path}: install Debian's festlex-cmu (apt-get install festlex-cmu)"
        )
    words: dict[str, tuple[str, ...]] = {}
    for line in path.read_text("latin-1").splitlines():
        if entry := _ENTRY.match(line):
            words.setdefault(entry[1], tuple(re.findall(r"[a-z]+", entry[3])))
    return words


def _phones(text: str, lexicon: dict[str, tuple[str, ...]]) -> list[str]:
    return [phone for word in normalise(text).split() for phone in lexicon.get(word, ())]


def _fill(rng: np.random.Generator, names: Sequence[str]) -> str:
    template = _TEMPLATES[int(rng.integers(len(_TEMPLATES)))]

    def word(slot: re.Match[str]) -> str:
        kind = slot[1].rstrip("2")
        words: Sequence[str] = names if kind == "name" else _SLOTS[kind]
        drawn = words[int(rng.integers(len(words)))]
        return drawn.capitalize() if kind == "name" else drawn

    sentence = re.sub(r"\{(\w+)\}", word, template)
    return sentence[0].upper() + sentence[1:]


def generate(count: int, seed: int, exclude: Iterable[str] = ()) -> list[str]:
    """Make sentences, each the best of several candidates by the rarity of its diphones so far.

    Args:
        count: number of sentences.
        seed: the same seed gives the same sentences.
        exclude: texts that must not occur; those of evaluation and development are always excluded.

    Returns:
        ``count`` distinct sentences of roughly 2 to 4.5 seconds.
    """
    lexicon = read_lexicon()
    rng = np.random.default_rng([seed, 7])
    names = sorted(word for word, phones in lexicon.items() if 4 <= len(word) <= 10 and 4 <= len(phones) <= 8)
    seen = {normalise(text) for text in (*EVALUATION_TEXTS, *DEVELOPMENT_TEXTS, *exclude)}
    counts: Counter[tuple[str, str]] = Counter()
    chosen: list[str] = []
    while len(chosen) < count:
        scored: list[tuple[float, str, list[tuple[str, str]]]] = []
        while len(scored) < _CANDIDATES:
            text = _fill(rng, names)
            phones = _phones(text, lexicon)
            if normalise(text) not in seen and _MIN_PHONES <= len(phones) <= _MAX_PHONES:
                pairs = list(itertools.pairwise(phones))
                scored.append((sum(1.0 / (1 + counts[pair]) for pair in pairs) / len(pairs), text, pairs))
        _, text, pairs = max(scored, key=lambda item: item[0])
        seen.add(normalise(text))
        counts.update(pairs)
        chosen.append(text)
    return chosen
