"""The comparison by which a plan is judged, on outputs made up to differ in one way each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autovoice_export.build_errors import ParityError
from autovoice_export.onnx.graph import load_model
from autovoice_export.parity import cases, compare, session_run
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
