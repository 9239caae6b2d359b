"""The sentences are repeatable, distinct, varied, and never those of the evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from autovoice_training.corpus import texts
from autovoice_training.corpus.build import sentences
from autovoice_training.corpus.config import CorpusConfig

needs_lexicon = pytest.mark.skipif(not texts.LEXICON.exists(), reason="Debian's festlex-cmu is not installed")


@needs_lexicon
def test_the_same_seed_gives_the_same_sentences_and_another_seed_others() -> None:
    first = texts.generate(40, 3)
    assert first == texts.generate(40, 3)
    assert set(first).isdisjoint(texts.generate(40, 4))


@needs_lexicon
def test_no_text_is_in_two_parts() -> None:
    parts = sentences(CorpusConfig(parallel=60, valid=20, free=40, espeak_speakers=2, espeak_sentences=10), 0)
    everything = [texts.normalise(text) for part in parts.values() for _, text, _ in part]
    assert len(everything) == len(set(everything)) == 60 + 20 + 40 + 20 + 25 + 20
    ids = [name for part in parts.values() for name, _, _ in part]
    assert len(ids) == len(set(ids))


@needs_lexicon
def test_an_excluded_text_does_not_come_back() -> None:
    first = texts.generate(5, 0)
    assert first[0] not in texts.generate(5, 0, exclude=[first[0].upper()])


@needs_lexicon
def test_every_phone_occurs_often() -> None:
    lexicon = texts.read_lexicon()
    spoken = [
        phone
        for text in texts.generate(150, 0)
        for word in texts.normalise(text).split()
        for phone in lexicon.get(word, ())
    ]
    rare = {phone: spoken.count(phone) for phone in set(spoken)}
    assert len(rare) >= 40
    assert min(rare.values()) >= 10, rare


def test_a_missing_lexicon_names_its_package(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="apt-get install festlex-cmu"):
        texts.read_lexicon(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "named"),
    [("parallell = 3", "parallell"), ("parallel = -1", "parallel"), ("warps = 9", "warps")],
)
def test_a_bad_setting_is_refused_by_name(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=named):
        CorpusConfig.from_toml(path)


def test_the_shipped_config_is_the_default() -> None:
    path = Path(__file__).parents[2] / "training" / "corpus.toml"
    assert CorpusConfig.from_toml(path) == CorpusConfig()
