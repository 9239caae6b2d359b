"""The comparison by which a plan is judged, on outputs made up to differ in one way each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autovoice_export.build_errors import ParityError
from autovoice_export.config_types import EnsembleStep
from autovoice_export.onnx.graph import load_model
from autovoice_export.parity import Arrays, Run, Tolerance, cases, chain_run, compare, session_run
from autovoice_export.tensorrt import parity
from autovoice_export.tensorrt.plan_config import PlanConfig

FRAMES = 400
EXPECTED = {
    "F0": np.full((1, FRAMES), 200.0, np.float32),
    "PERIODICITY": np.full((1, FRAMES), 0.9, np.float32),
    "AUDIO": np.sin(np.arange(960, dtype=np.float32))[None],
}
TIED = parity.TOLERANCES["fp32"]
FEED = {"X": np.zeros((1, 1), np.float32)}


def judge(**outputs: np.ndarray) -> dict[str, float]:
    found = {**EXPECTED, **outputs}
    return dict(compare("profile short", lambda feed: found, [(FEED, EXPECTED)], TIED, "the plan").shares)


def changed(name: str, index: int, value: float) -> np.ndarray:
    array = EXPECTED[name].copy()
    array[0, index] = value
    return array


def test_equal_outputs_deviate_by_nothing() -> None:
    assert judge() == {"F0": 0, "PERIODICITY": 0, "AUDIO": 0}


def test_ties_of_the_pitch_may_fall_the_other_way_with_their_periodicity() -> None:
    share = judge(F0=changed("F0", 7, 100.0), PERIODICITY=changed("PERIODICITY", 7, 0.5))
    assert share["F0"] == pytest.approx(1 / FRAMES / TIED.ties)
    assert share["PERIODICITY"] == 0


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"F0": EXPECTED["F0"] + 0.2}, "profile short: F0 is 100 times as far"),
        ({"PERIODICITY": changed("PERIODICITY", 3, 0.8)}, "PERIODICITY is .* times as far"),
        ({"AUDIO": changed("AUDIO", 3, np.nan)}, "profile short: AUDIO is not finite"),
        (
            {"AUDIO": EXPECTED["AUDIO"][:, :720]},
            r"AUDIO has the shape \[1, 720\] where .* \[1, 960\]",
        ),
        (
            {"AUDIO": EXPECTED["AUDIO"] + 0.01},
            r"AUDIO is .* with inputs of the shapes \{'X': \[1, 1\]\}",
        ),
    ],
)
def test_deviations_are_named(outputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ParityError, match=message):
        judge(**outputs)


def test_feeds_fill_every_profile_and_go_on_from_a_state(
    exported: Callable[[str], Path], engines: dict[str, PlanConfig]
) -> None:
    for name in ("pitch_extractor_stream", "synthesizer"):
        file = exported(name.removesuffix("_stream"))
        model, run = load_model(file), session_run(file)
        for profile in engines[name].profiles[:1]:
            made = cases(parity.example_feeds(model, profile), run, parity.states_of(model))
            feeds = [feed for feed, _ in made]
            assert len(feeds) == 6
            for feed in feeds:
                assert all(profile.shapes[key].holds(value.shape) for key, value in feed.items())
                assert all(np.isfinite(value).all() for value in run(feed).values())
            assert [bool(feed["STATE_IN"].any()) for feed in feeds] == [False, True] * 3


def test_model_compared_with_itself_agrees(
    exported: Callable[[str], Path], engines: dict[str, PlanConfig]
) -> None:
    file = exported("pitch_extractor")
    profile = engines["pitch_extractor_stream"].profiles[0]
    run, reference = session_run(file), session_run(file.read_bytes())
    expected = cases(parity.example_feeds(load_model(file), profile), reference)
    assert set(compare("itself", run, expected, TIED, "itself").shares.values()) == {0.0}


@pytest.mark.parametrize(
    ("tolerance", "allowed"),
    [
        (Tolerance(0.5, 0.1, scale="value"), [0.8, 0.9]),
        (Tolerance(0.5, 0.1, scale="peak"), 0.9),
        (Tolerance(0.5, 0.1, scale="rms"), 0.5 + 0.1 * np.sqrt(12.5)),
    ],
)
def test_tolerances_follow_their_scale(tolerance: Tolerance, allowed: object) -> None:
    np.testing.assert_allclose(tolerance.allowed(np.array([3.0, -4.0])), allowed)
    assert np.all(np.asarray(tolerance.allowed(np.zeros(3))) > 0)


def test_silence_may_differ_by_the_tolerance_of_a_peak_of_one() -> None:
    silence, tolerance = np.zeros((1, 8), np.float32), Tolerance(0.0, 1e-3, scale="peak")
    expected = [({}, {"AUDIO": silence})]
    agreement = compare("model", lambda feed: {"AUDIO": silence + 5e-4}, expected, tolerance, "it")
    assert agreement.shares["AUDIO"] == pytest.approx(0.5)
    with pytest.raises(ParityError, match="AUDIO is 2 times as far"):
        compare("model", lambda feed: {"AUDIO": silence + 2e-3}, expected, tolerance, "it")


def test_every_feed_is_followed_by_the_state_that_it_left() -> None:
    def count(feed: Arrays) -> Arrays:
        return {"Y": feed["X"] + feed["IN"], "OUT": feed["IN"] + 1}

    feeds = [{"X": np.array([x]), "IN": np.array([0])} for x in (10, 20)]
    made = [int(outputs["Y"][0]) for _, outputs in cases(feeds, count, {"IN": "OUT"})]
    assert made == [10, 11, 20, 21]


def test_a_chain_gives_every_tensor_by_its_name_there() -> None:
    runs: dict[str, Run] = {
        "double": lambda feed: {"Y": 2 * feed["X"], "UNUSED": feed["X"]},
        "add": lambda feed: {"SUM": feed["A"] + feed["B"]},
    }
    steps = (
        EnsembleStep("double", {"X": "IN"}, {"Y": "TWICE"}),
        EnsembleStep("add", {"A": "TWICE", "B": "IN"}, {"SUM": "OUT"}),
    )
    assert chain_run(steps, runs)({"IN": np.array(5)}) == {"IN": 5, "TWICE": 10, "OUT": 15}
