"""Sentences: templates filled with words, chosen for their phone pairs; evaluation and development texts."""

from __future__ import annotations

import gzip
import importlib.resources
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

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
    "count": _words(
        "two, 3, four, 7, nine, 12, 15, twenty, 28, 31, 46, 60, 75, 100, 250, 999, 1400, 12000, half a dozen"
    ),
    "year": _words("1066, 1492, 1789, 1848, 1912, 1969, 1987, 1999, 2003, 2016, 2024"),
    "price": _words("$3, $4.50, $12.99, $20, $75, £5, £180, €9.20, $1500, 40 cents"),
    "time": _words("6:15, 7:45, 8:30, 9:05, 10:20, 11:50, noon, midnight, a quarter past four"),
    "date": _words(
        "May 5th, June 21st, March 3rd, the 12th of April, October 30th, January 1st, the 8th of July"
    ),
    "feeling": _words("wonderful, awful, ridiculous, delicious, unbelievable, charming, outrageous, perfect"),
}
_TEMPLATES: dict[str, tuple[str, ...]] = {
    "statement": (
        "{who} {past} the {adj} {noun} {prep} the {noun2}.",
        "The {adj} {noun} of {name} {verb} a {adj2} {noun2}.",
        "{name} and {name2} {past} it {adv}.",
        "{when}, {who} {past} a {noun} in {name}.",
        "{who} never {verb} the {noun}, {name} does.",
        "They said {name}, not {name2}, {past} the {noun}.",
        "Put the {adj} {noun} {prep} the {noun2} {when}.",
        "If {who} {past} {name}, then {name2} {past2} us.",
        "Doctor {name} {verb} {noun}, {noun2}, and {name2}.",
        "I think that {name} {past} {who} {adv}.",
        "Oh yes, {name} Street is {prep} the {adj} {noun}.",
        "{adv}, {who} {past} the {noun}, and {name} {past2} the {noun2}.",
        "There were {name}, {name2}, and the {adj} {noun}.",
    ),
    "question": (
        "Why is the {noun} {prep} the {adj} {noun2}?",
        "Is {name} a {adj} {noun}, or a {adj2} {noun2}?",
        "How many {adj} things did {who} see {prep} the {noun}?",
        "Did {who} really give the {noun} to {name}?",
        "Who {past} my {adj} {noun} {when}?",
        "Would you rather have the {adj} {noun} or the {adj2} one?",
        "You {past} {name}, didn't you?",
        "Where on earth is {name} going with that {noun}?",
        "What did {who} say about the {noun}, and why so {adv}?",
    ),
    "exclamation": (
        "What a {feeling} {noun} you have there, {name}!",
        "Don't touch the {noun}, it is far too {adj}!",
        "How {feeling}! {who} {past} the {noun}!",
        "Look out, {name}, there's a {noun} {prep} you!",
        "Come on, {name}, we can still make it!",
        "That is the most {adj} {noun} I have ever seen!",
    ),
    "number": (
        "In {year}, {who} {past} {count} {adj} {noun}s.",
        "The {noun} costs {price}, and the {noun2} {price2}.",
        "Be at {name} Street by {time} on {date}.",
        "It was {time} when {who} {past} number {count}.",
        "{count} of the {count2} people in {name} were born before {year}.",
        "Call {count}, {count2}, {count3}, and ask for {name}.",
    ),
    "list": (
        "{name}, {name2}, {name3}, and {name4}.",
        "We need a {noun}, a {noun2}, two {adj} {noun3}s, and some {adj2} {noun4}s.",
        "First {who}, then {who2}, and last of all {name}.",
        "It was {adj}, {adj2}, and, above all, {adj3}.",
        "{count}, {count2}, {count3}, {count4}, and so on.",
    ),
    "short": (
        "{feeling}, {name}.",
        "Not {when}.",
        "Of course not!",
        "Why {name}?",
        "The {adj} {noun}.",
        "{who} {past} it.",
        "Thank you, {name}.",
        "It's {time}.",
        "{adv}, please.",
        "Is it {adj}?",
    ),
}
# What is drawn in turn; "long" is two sentences of the first three kinds.
_KINDS = _words(
    "statement, question, statement, list, statement, number, long, statement, exclamation, statement, "
    "question, short, statement, number, statement, long"
)
_LETTERS = {"short": (6, 30), "long": (70, 150)}  # and otherwise:
_OTHER_LETTERS = (26, 78)


def normalise(text: str) -> str:
    """Reduce a sentence to its lower-case words and numbers, the form in which two texts are compared."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def read_lexicon() -> dict[str, str]:
    """Word -> IPA phonemes, from the lexicon in the package hibari-tts."""
    packed = importlib.resources.files("hibari") / "assets" / "lexicon_us_gold.json.gz"
    entries = json.loads(gzip.decompress(packed.read_bytes()))
    first = {word: said["DEFAULT"] if isinstance(said, dict) else said for word, said in entries.items()}
    return {word: re.sub("[ˈˌ]", "", said) for word, said in first.items() if said}


def _fill(rng: np.random.Generator, templates: Sequence[str], names: Sequence[str]) -> str:
    template = templates[int(rng.integers(len(templates)))]

    def word(slot: re.Match[str]) -> str:
        words: Sequence[str] = names if slot[1] == "name" else _SLOTS[slot[1]]
        return words[int(rng.integers(len(words)))]

    sentence = re.sub(r"\{([a-z]+)\d?\}", word, template)
    sentence = re.sub(r"\b([Aa]) (?=[aeio]|un|um)", r"\1n ", sentence)
    return re.sub(r"(?:^|[.!?] )[a-z]", lambda first: first[0].upper(), sentence)


def _draw(rng: np.random.Generator, kind: str, names: Sequence[str]) -> str:
    if kind == "long":
        parts = (_KINDS[int(part)] for part in rng.integers(3, size=2))
        return " ".join(_fill(rng, _TEMPLATES[part], names) for part in parts)
    return _fill(rng, _TEMPLATES[kind], names)


def sentences(seed: int) -> Iterator[str]:
    """Make sentences without end, each the best of several by how rare its phone pairs were so far.

    Args:
        seed: the same seed gives the same sentences.

    Yields:
        Distinct sentences of about one to eight seconds: statements, questions, exclamations, numbers, lists;
        none of the evaluation's or the development's.
    """
    lexicon = read_lexicon()
    rng = np.random.default_rng([seed, 7])
    names = sorted(w for w in lexicon if re.fullmatch("[A-Z][a-z]{3,9}", w) and 4 <= len(lexicon[w]) <= 8)
    seen = {normalise(text) for text in (*EVALUATION_TEXTS, *DEVELOPMENT_TEXTS)}
    counts: Counter[tuple[str, str]] = Counter()
    for kind in itertools.cycle(_KINDS):
        least, most = _LETTERS.get(kind, _OTHER_LETTERS)
        scored: list[tuple[float, str, list[tuple[str, str]]]] = []
        while len(scored) < _CANDIDATES:
            text = _draw(rng, kind, names)
            if normalise(text) not in seen and least <= len(text) <= most:
                words = re.findall("[A-Za-z']+", text)
                said = "".join(lexicon.get(word, lexicon.get(word.lower(), "")) for word in words)
                pairs = list(itertools.pairwise(said))
                rarity = sum(1.0 / (1 + counts[pair]) for pair in pairs) / max(1, len(pairs))
                scored.append((rarity, text, pairs))
        _, text, pairs = max(scored, key=lambda item: item[0])
        seen.add(normalise(text))
        counts.update(pairs)
        yield text
