"""What an evaluation writes: figures, floor, JSON, Markdown; and the jury on the demo's recordings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy import signal

from autovoice_training.evaluate import floor as floors
from autovoice_training.evaluate import judging, speaker
from autovoice_training.evaluate.conditions import PLAIN
from autovoice_training.evaluate.dataset import JUDGE_RATE, Audio, open_dataset
from autovoice_training.evaluate.floor import FloorLine, check_floor
from autovoice_training.evaluate.judging import (
    COPY,
    RESULT,
    SOURCE,
    SYSTEMS,
    TARGET,
    WORLD,
    Jury,
    Scores,
    Verdict,
)
from autovoice_training.evaluate.naturalness import Naturalness
from autovoice_training.evaluate.pairs import Pair, choose_pairs
from autovoice_training.evaluate.pitch import f0_track
from autovoice_training.evaluate.plots import draw_pair, draw_similarity
from autovoice_training.evaluate.report import environment, write_json, write_markdown
from autovoice_training.evaluate.summary import mean_with_interval, summarise
from autovoice_training.evaluate.systems import world_shift

pytestmark = pytest.mark.heavy

DEMO = Path(__file__).resolve().parents[2] / "demo"
PNG = b"\x89PNG\r\n\x1a\n"

GOOD = Scores(
    similarity_target=0.8,
    similarity_source=0.6,
    nearer_target=True,
    identified=True,
    similarities={"ann": 0.6, "bob": 0.8, "eve": 0.5},
    mcd=6.0,
    f0_correlation=0.975,
    gross_error=0.01,
    voicing_error=0.05,
    word_errors=2,
    naturalness=Naturalness(20.0, 3.0, -5.0, -22.0, 15.0, -80.0, -8.0),
)
UNCONVERTED = dataclasses.replace(GOOD, nearer_target=False, identified=False, mcd=9.0, word_errors=1)
NATURAL = {"f0_roughness": (10.0, 30.0), "cepstral_delta": (2.0, 4.0)}


def verdict(
    number: int, result: Scores = GOOD, source: Scores = UNCONVERTED, condition: str = PLAIN.name
) -> Verdict:
    pair = Pair("ann", "bob", f"e{number}", ("r",), number % 4 < 2, number % 2 == 0, False)
    scores = dict.fromkeys(SYSTEMS, GOOD) | {SOURCE: source, WORLD: UNCONVERTED, RESULT: result}
    return Verdict(pair, condition, -3.0, 10, scores)


def verdicts(count: int = 64, **change: object) -> list[Verdict]:
    return [verdict(number, dataclasses.replace(GOOD, **change)) for number in range(count)]


# Figures


def test_figures_are_means_by_condition() -> None:
    mixed = [verdict(n, dataclasses.replace(GOOD, mcd=4.0 if n % 2 == 0 else 7.0)) for n in range(6)]
    summaries = summarise(mixed)
    assert summaries["all"].figures[RESULT]["mcd"].value == pytest.approx(5.5)
    assert summaries["seen target"].figures[RESULT]["mcd"].value == pytest.approx(4.0)
    assert summaries["unseen target"].figures[RESULT]["mcd"].value == pytest.approx(7.0)
    assert summaries["unseen source, unseen target, cross sex"].pairs == 1
    assert "same sex" not in summaries
    figure = summaries["all"].figures[RESULT]["mcd"]
    assert figure.low < figure.value < figure.high
    assert figure.pairs == 6


def test_the_interval_shrinks_with_the_number_of_pairs() -> None:
    values = np.random.default_rng(1).standard_normal(400)
    few, many = mean_with_interval(list(values[:20])), mean_with_interval(list(values))
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert many.low < values.mean() < many.high
    assert many.high - many.low == pytest.approx(2 * 1.96 / 20, rel=0.2)


def test_word_error_rate_is_errors_over_words_where_the_speaker_is_understood() -> None:
    unheard = dataclasses.replace(GOOD, word_errors=None)
    mixed = [
        verdict(0, dataclasses.replace(GOOD, word_errors=4)),
        verdict(1, dataclasses.replace(GOOD, word_errors=1)),
        verdict(2, unheard, dataclasses.replace(UNCONVERTED, word_errors=None)),
    ]
    rates = summarise(mixed)["all"].word_error_rates
    assert (rates[RESULT].value, rates[RESULT].pairs) == (pytest.approx(5 / 20), 2)
    assert (rates[SOURCE].value, rates[SOURCE].pairs) == (pytest.approx(2 / 20), 2)
    assert rates[COPY].pairs == 3


def test_equal_error_rates_pool_the_pairs_of_a_condition() -> None:
    taken = dataclasses.replace(GOOD, similarities={"ann": 0.9, "bob": 0.8, "eve": 0.9})
    assert summarise([verdict(0), verdict(1)])["all"].equal_error_rates[RESULT] == 0.0
    assert summarise([verdict(0, taken), verdict(1, taken)])["all"].equal_error_rates[RESULT] == 1.0


def test_a_harder_condition_stands_by_itself() -> None:
    noisy = dataclasses.replace(GOOD, mcd=60.0)
    summaries = summarise([verdict(0), verdict(1), verdict(0, noisy, condition="noise")])
    assert (summaries["all"].pairs, summaries["noise"].pairs) == (2, 1)
    assert summaries["all"].figures[RESULT]["mcd"].value == 6.0
    assert summaries["noise"].figures[RESULT]["mcd"].value == 60.0


def test_what_a_pair_has_not_is_left_out() -> None:
    """A target that has not said the sentence leaves copy-synthesis, the target itself and MCD unmeasured."""
    bare = dataclasses.replace(GOOD, mcd=None)
    one = dataclasses.replace(verdict(0), scores={SOURCE: bare, WORLD: bare, RESULT: bare})
    summary = summarise([one])["all"]
    assert "mcd" not in summary.figures[RESULT]
    assert summary.figures[COPY] == {}
    assert COPY not in summary.equal_error_rates
    mixed = summarise([one, verdict(1)])["all"]
    assert mixed.figures[RESULT]["mcd"].pairs == 1
    assert mixed.figures[RESULT]["identified"].pairs == 2


# Floor


def floor_of(judged: list[Verdict]) -> list[FloorLine]:
    return check_floor(judged, summarise(judged), NATURAL)


def test_a_good_voice_passes() -> None:
    assert [line for line in floor_of(verdicts()) if not line.passed] == []


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"f0_correlation": 0.969}, ["log-F0"]),
        ({"gross_error": 0.02}, ["gross"]),
        ({"voicing_error": 0.081}, ["voicing"]),
        ({"nearer_target": False}, ["nearer", "nearer"]),
        ({"identified": False}, ["rank-1", "rank-1"]),
        ({"similarity_target": 0.77}, ["similarity"]),
        ({"similarity_target": 0.69}, ["similarity", "similarity"]),
        ({"mcd": 6.31}, ["mel-cepstral"]),
        ({"mcd": 7.66}, ["mel-cepstral", "mel-cepstral"]),
        ({"word_errors": 3}, ["word error"]),
        ({"naturalness": dataclasses.replace(GOOD.naturalness, f0_roughness=31.0)}, ["F0 roughness"]),
        ({"naturalness": dataclasses.replace(GOOD.naturalness, cepstral_delta=1.9)}, ["cepstral delta"]),
        ({"naturalness": dataclasses.replace(GOOD.naturalness, click=91.0)}, ["no click"]),
        ({"naturalness": dataclasses.replace(GOOD.naturalness, offset=-59.0)}, ["no DC"]),
        ({"naturalness": dataclasses.replace(GOOD.naturalness, peak=0.0)}, ["peak"]),
    ],
)
def test_each_requirement_fails_by_itself(change: dict[str, object], failing: list[str]) -> None:
    good = dataclasses.replace(GOOD, word_errors=1)
    judged = [verdict(number, dataclasses.replace(good, **change)) for number in range(64)]
    missed = [line for line in floor_of(judged) if not line.passed]
    assert [line.requirement.startswith(start) for line, start in zip(missed, failing, strict=True)] == [
        True
    ] * len(failing)


def test_targets_heard_in_training_must_do_better() -> None:
    judged = [verdict(number, dataclasses.replace(GOOD, identified=number % 8 > 1)) for number in range(64)]
    seen, unseen = (line for line in floor_of(judged) if line.requirement.startswith("rank-1"))
    assert seen.measured == unseen.measured == "75.0% of 32 pairs"
    assert (seen.passed, unseen.passed) == (False, True)


def test_one_click_is_heard_among_many_pairs() -> None:
    clicked = dataclasses.replace(GOOD, naturalness=dataclasses.replace(GOOD.naturalness, click=150.0))
    lines = floor_of([*verdicts(), verdict(1, clicked)])
    assert [line.measured for line in lines if not line.passed] == ["10.00 times at most"]


def test_what_was_not_measured_is_not_passed() -> None:
    assert not floor_of(verdicts(floors.MIN_PAIRS - 1))[0].passed
    deaf = [
        dataclasses.replace(
            one,
            scores={name: dataclasses.replace(score, word_errors=None) for name, score in one.scores.items()},
        )
        for one in verdicts()
    ]
    words = next(line for line in floor_of(deaf) if line.requirement.startswith("word error"))
    assert (words.measured, words.passed) == ("not measured", False)
    seen_only = floor_of([one for one in verdicts() if one.pair.target_seen])
    assert "not measured" in [line.measured for line in seen_only]


# Files


def test_json_says_where_and_with_what_it_was_measured(tmp_path: Path) -> None:
    judged = verdicts(8)
    summaries = summarise(judged)
    facts = environment(DEMO)
    floor = floor_of(judged)
    write_json(tmp_path / "a.json", facts, judged, summaries, floor, NATURAL)
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["hardware"]["processor"]
    assert read["hardware"]["cores"] >= 1
    assert {"python", "onnxruntime", "resemblyzer", "swift-f0", "pocketsphinx"} <= set(read["versions"])
    assert all(read["versions"].values())
    assert read["command"].startswith("python -m autovoice_training.evaluate")
    assert read["number_of_conversions"] == len(read["conversions"]) == 8
    assert read["conversions"][3]["scores"][RESULT]["mcd"] == 6.0
    assert read["conversions"][3]["scores"][RESULT]["naturalness"]["peak"] == -8.0
    assert read["conversions"][3]["pair"]["sentence"] == "e3"
    assert read["summaries"]["all"]["figures"][SOURCE]["mcd"]["value"] == 9.0
    assert read["natural"]["cepstral_delta"] == [2.0, 4.0]
    assert [line["passed"] for line in read["floor"]].count(False) == 1


def test_a_repository_is_named_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"weights")
    first = environment(tmp_path)["repository_sha256"]
    assert first == environment(tmp_path)["repository_sha256"]
    (tmp_path / "model.onnx").write_bytes(b"other weights")
    assert environment(tmp_path)["repository_sha256"] != first


def test_markdown_puts_the_baselines_beside_the_result(tmp_path: Path) -> None:
    judged = verdicts(8)
    summaries = summarise(judged)
    write_markdown(tmp_path / "a.md", environment(None), summaries, floor_of(judged), ["similarity.png"])
    text = (tmp_path / "a.md").read_text()
    first_table = text.partition("## All (8 pairs)")[2].partition("##")[0]
    header, _, *rows = [line for line in first_table.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in header.split("|")[2:-1]] == list(SYSTEMS.values())
    mcd = next(row for row in rows if row.startswith("| MCD"))
    assert [float(cell.split()[0]) for cell in mcd.split("|")[2:-1]] == [9.0, 9.0, 6.0, 6.0, 6.0]
    words = next(row for row in rows if row.startswith("| word error"))
    assert [cell.strip() for cell in words.split("|")[3:5]] == ["10.0 (n = 8)", "20.0 (n = 8)"]
    assert "| EER, % | 0.0 | 0.0 | 0.0 | 0.0 | 0.0 |" in first_table
    assert "| peak, dBFS | -8.00 (-8.00 to -8.00) |" in first_table
    assert "| at least 60 conversions | 8 | FAIL |" in text
    assert "](similarity.png)" in text


# Jury


class Unconverted:
    """The known answer: a conversion that changes nothing."""

    def embed(self, reference: Audio, rate: int) -> Audio:
        return np.zeros(256, dtype=np.float32)

    def convert(self, audio: Audio, rate: int, embedding: Audio, shift_semitones: float) -> Audio:
        return audio


def test_the_jury_is_not_taken_in_by_an_unconverted_source(
    evaluation_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "PROBE_SENTENCES", 1)
    opened = open_dataset(evaluation_set)
    pair = next(pair for pair in choose_pairs(opened, 9, 0) if pair.target == "target_slt")
    jury = Jury(opened, Unconverted, tmp_path / "cache")
    found = jury.judge(pair)
    source, result, world, copy, target = (found.scores[s] for s in (SOURCE, RESULT, WORLD, COPY, TARGET))
    assert found.shift_semitones > 3
    assert not result.nearer_target
    assert not result.identified
    assert (result.similarity_target, result.similarity_source) == (
        source.similarity_target,
        source.similarity_source,
    )
    assert result.similarity_source > 0.75
    assert result.mcd == source.mcd > 4.0
    assert result.f0_correlation == pytest.approx(1.0)
    assert result.gross_error > 0.9, "the melody was not transposed"
    assert copy == target
    assert copy.mcd == 0.0
    assert copy.f0_correlation == pytest.approx(1.0)
    assert copy.nearer_target
    assert world.gross_error < 0.2
    assert world.similarity_source < source.similarity_source
    # The texts are wrong on purpose, so nobody is understood and words are not counted.
    assert result.word_errors is None

    # Asked again about the same samples, also in a new process's place, no judge is called.
    monkeypatch.setattr(speaker, "_encoder", None)
    assert Jury(opened, Unconverted, tmp_path / "cache").judge(pair) == found

    draw_pair(jury.render(pair), found, tmp_path / "pair.png")
    draw_similarity([found], tmp_path / "similarity.png")
    for name in ("pair.png", "similarity.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)
    assert not list(tmp_path.glob("*.partial"))


def test_the_world_baseline_moves_pitch() -> None:
    audio, rate = soundfile.read(DEMO / "target_awb.flac", dtype="float32", frames=32000)
    shifted = world_shift(audio, rate, 7.0)
    assert shifted.shape == audio.shape
    before, after = f0_track(audio), f0_track(shifted)
    both = (before > 0) & (after > 0)
    assert np.median(12 * np.log2(after[both] / before[both])) == pytest.approx(7.0, abs=0.3)


def test_the_world_baseline_moves_formants_less_than_pitch() -> None:
    noise = np.random.default_rng(0).standard_normal(4 * JUDGE_RATE)
    resonance = 0.05 * signal.lfilter([1.0], np.poly(0.97 * np.exp([0.6j, -0.6j])).real, noise)

    def peak(samples: Audio) -> float:
        hertz, power = signal.welch(samples, JUDGE_RATE, nperseg=256)
        return float((hertz * power).sum() / power.sum())

    shifted = world_shift(resonance.astype(np.float32), JUDGE_RATE, 12.0)
    assert peak(shifted) / peak(resonance) == pytest.approx(2.0**0.3, rel=0.06)
