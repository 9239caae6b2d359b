# ruff: noqa: RUF001 (IPA)
"""The sentences are repeatable, distinct, varied, and never those of the evaluation."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from autovoice_training.corpus import texts


def _sentences(count: int, seed: int = 0) -> list[str]:
    return list(islice(texts.sentences(seed), count))


def test_the_same_seed_gives_the_same_sentences_and_another_seed_others() -> None:
    first = _sentences(40, 3)
    assert first == _sentences(40, 3)
    assert set(first).isdisjoint(_sentences(40, 4))


def test_no_sentence_comes_twice_and_none_is_the_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    first = _sentences(160)
    assert len({texts.normalise(text) for text in first}) == 160
    monkeypatch.setattr(texts, "EVALUATION_TEXTS", (first[0].upper(),))
    assert first[0] not in _sentences(160)


def test_there_are_questions_exclamations_numbers_lists_and_all_lengths() -> None:
    said = _sentences(320)
    assert sum(text.endswith("?") for text in said) >= 30
    assert sum(text.endswith("!") for text in said) >= 15
    assert sum(any(letter.isdigit() for letter in text) for text in said) >= 30
    assert sum(text.count(",") >= 3 for text in said) >= 10
    assert min(map(len, said)) < 15 < 100 < max(map(len, said))
    assert not any("{" in text for text in said)


def test_every_phone_occurs_often() -> None:
    lexicon = texts.read_lexicon()
    words = [word.strip(".,;!?") for text in _sentences(200) for word in text.split()]
    counts = Counter("".join(lexicon.get(word, lexicon.get(word.lower(), "")) for word in words))
    assert min(counts[phone] for phone in "AIOWYiuæɑɔəɛɜɪʊʌbdfhjklmnpstvwzðŋɡɹʃʒʤʧθ") >= 5, counts
