# ruff: noqa: RUF001 (IPA)
"""The plan of Kokoro's units, their rendering, and the corpus that is made of what has been rendered."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from autovoice_training.corpus import build, kokoro, store, units
from autovoice_training.corpus.config import CorpusConfig, HeldOut
from autovoice_training.corpus.phones import PHONES
from autovoice_training.corpus.reader import Corpus

NAMES = [f"{prefix}_{number}" for prefix in ("af", "am", "bf", "zm") for number in range(5)]
PACKS = {name: np.full((510, 256), index, np.float32) for index, name in enumerate(NAMES)}
HELD_OUT = HeldOut(frozenset(), {"development": ("af_0",), "evaluation": ("am_1", "bf_2")})
CONFIG = CorpusConfig(seed=0, groups=130, free=190, blends=20)


@pytest.fixture(scope="module")
def voices() -> dict[str, NDArray[np.float32]]:
    return units.voices(PACKS, HELD_OUT, CONFIG)


@pytest.fixture(scope="module")
def pitch(voices: dict[str, NDArray[np.float32]]) -> dict[str, float]:
    return {name: 90.0 + 7.0 * number for number, name in enumerate(sorted(voices))}


@pytest.fixture(scope="module")
def planned(pitch: dict[str, float]) -> list[units.Unit]:
    return list(units.plan(CONFIG, pitch))


class FakeKokoro:
    """Says every phoneme for 100 ms: its voice's number as the pitch of a tone."""

    def phonemes(self, text: str, british: bool = False) -> str:
        return "sˈO"

    def speak(
        self,
        phonemes: str,
        timbre: NDArray[np.float32],
        prosody: NDArray[np.float32],
        speed: float = 1.0,
        f0_scale: float = 1.0,
    ) -> kokoro.Speech:
        durations = np.full(len(phonemes) + 2, 4 + int(prosody[0, 0]) % 3)
        time = np.arange(600 * durations.sum()) / 24000
        audio = np.sin(2 * np.pi * (100 + 20 * timbre[0, 0]) * time).astype(np.float32)
        audio[: len(audio) // 5] = 0.0
        return kokoro.Speech(audio, durations)


def test_training_hears_no_voice_that_is_held_out_not_even_in_a_blend(
    voices: dict[str, NDArray[np.float32]],
) -> None:
    assert len(voices) == 17 + 20
    assert {part for name in voices for part in name.split("+")} == set(NAMES) - {"af_0", "am_1", "bf_2"}
    first, second = next(name for name in voices if "+" in name).split("+")
    np.testing.assert_allclose(voices[f"{first}+{second}"], (PACKS[first] + PACKS[second]) / 2)


def test_the_committed_sets_and_settings_give_the_voices_they_promise() -> None:
    folder = Path(__file__).parents[2] / "training"
    config, held_out = (
        kind.from_toml(folder / name)
        for kind, name in ((CorpusConfig, "corpus.toml"), (HeldOut, "sets.toml"))
    )
    assert config.blends >= 80
    assert len(held_out.readers) == 30
    assert {kind: len(names) for kind, names in held_out.packs.items()} == {"evaluation": 8, "development": 4}


def test_a_voice_to_hold_out_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="'af_none'"):
        units.voices(PACKS, HeldOut(frozenset(), {"development": ("af_none",)}), CONFIG)


def test_more_blends_than_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="blends = 4: 3 voices have 3 pairs"):
        units.blends(["a", "b", "c"], 4, 0)


def test_every_beginning_of_the_plan_is_balanced(
    planned: list[units.Unit], voices: dict[str, NDArray[np.float32]]
) -> None:
    assert len(planned) == 320
    for count in (80, 160, 320):
        taken = planned[:count]
        groups = [unit for unit in taken if len(unit.voices) > 1]
        assert len(groups) == pytest.approx(count * 130 / 320, abs=1)
        assert {len(unit.voices) for unit in groups} == {3, 4}
        said = Counter(voice for unit in taken for voice in unit.voices)
        for kind in (True, False):
            often = [said[name] for name in voices if ("+" in name) == kind]
            assert min(often) >= 0.5 * np.mean(often)
            assert max(often) <= 1.5 * np.mean(often) + 1


def test_units_keep_to_the_register_and_repeat_no_sentence(
    planned: list[units.Unit], pitch: dict[str, float]
) -> None:
    for unit in planned:
        assert unit.scales == pytest.approx([pitch[voice] / pitch[unit.voices[0]] for voice in unit.voices])
        assert 0.6 < min(unit.scales) <= 1.0 <= max(unit.scales) <= 1.6
        assert len(set(unit.voices)) == len(unit.voices)
        assert 0.85 <= unit.speed <= 1.15
        assert unit.british == unit.voices[0].startswith("b")
    assert len({unit.text for unit in planned}) == len(planned)
    assert Counter(unit.split for unit in planned) == {"train": 317, "valid": 3}


def test_the_plan_depends_on_the_settings_alone(planned: list[units.Unit], pitch: dict[str, float]) -> None:
    assert list(islice(units.plan(CONFIG, pitch), 40)) == planned[:40]
    assert next(units.plan(CorpusConfig(seed=1), pitch)) != planned[0]


def test_a_folder_begun_with_other_settings_is_refused(tmp_path: Path, pitch: dict[str, float]) -> None:
    units.write_plan(tmp_path, CONFIG, pitch)
    assert len(units.write_plan(tmp_path, CONFIG, pitch)) == 320
    with pytest.raises(ValueError, match="begun with other settings"):
        units.write_plan(tmp_path, CorpusConfig(seed=3, groups=1, free=1), pitch)


def test_a_corpus_is_made_of_what_has_been_rendered(
    tmp_path: Path, planned: list[units.Unit], voices: dict[str, NDArray[np.float32]]
) -> None:
    cache, root = tmp_path / "units", tmp_path / "corpus"
    cache.mkdir()
    for unit in planned[:6]:
        units.render(unit, FakeKokoro(), voices, cache)  # type: ignore[arg-type]
    (cache / "u00006.npz.part").write_bytes(b"what a kill between two writes leaves")
    rendered = units.rendered(planned, cache)
    assert rendered == planned[:6]
    store.write_index(root, build.gather_units(root, rendered, cache), 0)
    corpus = Corpus(root)
    assert set(corpus.speakers) == {voice for unit in rendered for voice in unit.voices}
    aligned = next(unit for unit in rendered if len(unit.voices) > 1)
    renditions = [u for u in corpus.utterances if u.group == aligned.name]
    assert {u.speaker for u in renditions} == set(aligned.voices)
    spans = {u.speaker: slice(u.start_frame, u.start_frame + u.frames) for u in renditions}
    labels = [corpus.phones(speaker)[span] for speaker, span in spans.items()]
    assert all(np.array_equal(labels[0], one) for one in labels)
    said = [PHONES[code] for code in labels[0]]
    assert [a for a, b in zip(said, [None, *said], strict=False) if a != b] == ["pau", "s", "ow", "pau"]
    audio = [corpus.audio(s)[240 * span.start : 240 * span.stop].astype(float) for s, span in spans.items()]
    assert not np.array_equal(audio[0], audio[1])
    assert all(abs(one[: len(one) // 6]).max() < 400 < abs(one).max() for one in audio)
    index = json.loads((root / "index.json").read_text())
    assert [(source["name"], source["licence"]) for source in index["sources"]] == [
        ("Kokoro-82M v1.0", "Apache-2.0")
    ]


def test_a_long_silence_inside_a_sound_is_labelled_as_a_pause() -> None:
    audio = np.full(240 * 40, 8000, np.int16)
    audio[240 * 10 : 240 * 20] = 1
    audio[240 * 30 : 240 * 33] = 1
    labels = units._with_pauses(np.full(40, 5, np.int16), audio)
    assert labels.tolist() == [5] * 10 + [0] * 10 + [5] * 20


def test_labels_that_do_not_fit_the_audio_are_refused(tmp_path: Path) -> None:
    writer = store.SpeakerWriter(tmp_path, store.Speaker("a", "a", "male", "kokoro", 24000, "train"))
    with pytest.raises(ValueError, match="a/s1"):
        writer.add("s1", "text", np.zeros(480, np.int16), np.zeros(3, np.int16), "train", None)
