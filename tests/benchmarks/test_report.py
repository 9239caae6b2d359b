"""Reports hold what makes a figure worth anything, and hold it as JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
import timing
from report import Aim, Environment, Report, Section, significant


def make_report(**settings: object) -> Report:
    return Report("example", Environment.here(["onnxruntime", "no-such-package"]), settings)


def test_environment_names_machine_and_versions() -> None:
    here = make_report().environment
    assert here.python == platform.python_version()
    assert here.packages == {"onnxruntime": onnxruntime.__version__, "no-such-package": None}
    assert here.usable_cores <= here.cores
    if platform.system() == "Linux":
        assert here.memory_gb > 0.1
        assert here.cpu


def test_file_holds_everything_that_was_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = make_report(quick=False, threads=(1, 2))
    report.print_head()
    rows = [{"name": "a", "rtf": 0.25}, {"name": "b", "extra": None}]
    report.add("speed", Section("how fast", rows, "a note"))
    report.aims.append(Aim("rtf", "<= 0.1", "0.25", False))
    report.print_aims()
    content = json.loads(report.save(tmp_path).read_text())
    assert content["environment"]["packages"]["onnxruntime"] == onnxruntime.__version__
    assert content["settings"] == {"quick": False, "threads": [1, 2]}
    assert content["results"]["speed"]["rows"] == rows
    assert content["aims"] == [{"name": "rtf", "wanted": "<= 0.1", "measured": "0.25", "met": False}]
    shown = capsys.readouterr().out
    for text in ("how fast", "a note", "0.25", onnxruntime.__version__, "no-such-package none"):
        assert text in shown


def test_quick_runs_do_not_replace_whole_ones(tmp_path: Path) -> None:
    assert make_report(quick=False).save(tmp_path) != make_report(quick=True).save(tmp_path)


def test_figures_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    report = make_report()
    report.add("speed", Section("how fast", [{"rtf": float("nan")}]))
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.save(tmp_path)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.0123456, 0.0123), (98765.0, 98800.0), (0.0, 0.0), (-1.2345, -1.23)]
)
def test_significant_digits(value: float, rounded: float) -> None:
    assert significant(value) == rounded


def test_calls_are_timed_in_turns_after_one_call_each(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"wall": 0.0, "cpu": 0.0}
    monkeypatch.setattr(time, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(time, "process_time", lambda: clock["cpu"])
    order: list[str] = []

    def call(name: str, wall: float, cpu: float) -> None:
        order.append(name)
        clock["wall"] += wall * len(order)
        clock["cpu"] += cpu

    calls = {"a": lambda: call("a", 1.0, 0.5), "b": lambda: call("b", 10.0, 0.25)}
    times = timing.time_together(calls, 2)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert times["a"].wall == (3.0, 5.0)
    assert times["a"].median == 4.0
    assert times["b"].cpu == (0.25, 0.25)
    assert times["b"].cpu_median == 0.25


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds no process to cores")
@pytest.mark.parametrize(("first", "chosen"), [(False, max), (True, min)])
def test_every_thread_is_bound_to_cores_inside_the_block_only(
    first: bool, chosen: Callable[[set[int]], int]
) -> None:
    def cores_of_threads() -> set[frozenset[int]]:
        return {frozenset(os.sched_getaffinity(thread.id)) for thread in psutil.Process().threads()}

    allowed = os.sched_getaffinity(0)
    np.ones((300, 300)) @ np.ones((300, 300))  # starts the threads of BLAS
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(time.sleep, [0.01, 0.01]))
        with timing.cores(1, first=first):
            assert cores_of_threads() == {frozenset({chosen(allowed)})}
        assert cores_of_threads() == {frozenset(allowed)}
