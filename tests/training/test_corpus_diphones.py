"""Every voice can say every phone, and labels sit where the segments are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autovoice_training.corpus import diphones, phones
from autovoice_training.corpus.diphones import common_timing, in_voice
from autovoice_training.corpus.engines import Segments
from autovoice_training.corpus.voices import VOICES, Voice

DIPHONE_VOICES = [voice for voice in VOICES.values() if voice.engine == "diphone"]


@pytest.mark.parametrize("language", sorted(diphones.TABLES))
def test_every_phone_has_a_counterpart_in_every_language(language: str) -> None:
    table = diphones.TABLES[language]
    assert set(table) == set(phones.PHONES)
    assert all(said and all(alternative for alternative in said) for said in table.values())


@pytest.mark.parametrize("voice", DIPHONE_VOICES, ids=lambda voice: voice.name)
def test_every_first_choice_exists_in_the_voice(voice: Voice) -> None:
    try:
        known = diphones.read_diphones(voice.group_file)
    except RuntimeError as missing:
        pytest.skip(str(missing))
    spoken = {phone for pair in known for phone in pair}
    for phone, alternatives in diphones.TABLES[voice.language].items():
        usable = [said for said in alternatives if set(said) <= spoken]
        assert usable, f"{voice.name} can say none of {alternatives} for {phone}"


def test_an_unknown_phone_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'qq'"):
        phones.code_of("qq")


def test_the_search_takes_the_worse_alternative_only_where_a_diphone_is_missing() -> None:
    table = {"a": (("A",), ("B",)), "k": (("K",),)}
    pairs = {("A", "K"), ("K", "B"), ("B", "K")}
    said, missing = diphones.say(["a", "k", "a"], table, frozenset(pairs))
    assert said == [("A",), ("K",), ("B",)]
    assert missing == 0
    said, missing = diphones.say(["k", "k"], table, frozenset(pairs))
    assert missing == 1


def test_the_search_avoids_a_diphone_missing_inside_an_affricate_and_a_needlessly_worse_vowel() -> None:
    table = {"ch": (("t", "S"), ("T",)), "a": (("A",), ("B",), ("C",)), "o": (("O",), ("P",))}
    everything = frozenset((left, right) for left in "tSTABCOP" for right in "tSTABCOP") - {("t", "S")}
    assert diphones.say(["a", "ch"], table, everything) == ([("A",), ("T",)], 0)
    # Without ("A", "O") and ("B", "O") there are two ways out: A P costs one step of preference, C O two.
    said, missing = diphones.say(["a", "o"], table, everything - {("A", "O"), ("B", "O")})
    assert (said, missing) == ([("A",), ("P",)], 0)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 0.5), min_size=1, max_size=30), st.data())
def test_each_frame_carries_the_phone_at_its_centre(lengths: list[float], data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, 40), min_size=len(lengths), max_size=len(lengths)))
    ends = np.cumsum(lengths)
    frames = int(ends[-1] / 0.01) + 3
    labels = phones.labels_at_frames(codes, list(ends), frames, 0.01)
    for frame, label in enumerate(labels):
        centre = (frame + 0.5) * 0.01
        inside = [code for code, end in zip(codes, ends, strict=True) if centre < end]
        assert label == (inside[0] if inside else 0)


def _plan(lengths: list[float]) -> Segments:
    names = ["pau", *(["dh", "ay", "ch", "er"] * 8)[: len(lengths)], "pau"]
    ends = np.cumsum([0.3, *lengths, 0.4])
    return Segments(tuple(names), tuple(ends), ((0.2, 100.0), (float(ends[-2]), 130.0)))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.02, 0.3), min_size=2, max_size=30))
def test_every_voice_keeps_the_common_timing(lengths: list[float]) -> None:
    timing, frames = common_timing(_plan(lengths))
    assert timing.ends[-1] == pytest.approx(frames * 0.01, abs=1e-9)
    assert np.all(np.diff((0.0, *timing.ends)) > 0)
    for voice in DIPHONE_VOICES:
        spoken = in_voice(timing, voice, frozenset())
        assert set(timing.ends) <= set(spoken.ends) or np.allclose(
            [min(abs(np.array(spoken.ends) - end)) for end in timing.ends], 0.0, atol=1e-9
        )
        assert np.all(np.diff(spoken.ends) > 0)
        # The register is the voice's, within the sentence's own contour.
        median = np.median([f0 for _, f0 in spoken.targets])
        assert 0.65 < median / voice.f0_hz < 1.9
