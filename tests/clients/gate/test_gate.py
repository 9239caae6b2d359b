"""What the gate refuses, and what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_releases
import numpy as np
import psutil
import pytest
from bad_releases import copy_models, publish_changed
from keys import write_key_pair
from serve_processes import ended, family
from triton_calls import PATIENCE, find_repository, until

from autovoice.cli.main import run
from autovoice.engines.local import LocalEngine
from autovoice.errors import ReleaseError
from autovoice.gate import checks
from autovoice.gate.converter import Converter, open_converters
from autovoice.gate.gate import NAMES, SPEED, GateOptions, run_gate
from autovoice.gate.judging import MARGINS, compare
from autovoice.gate.report import Check, Report
from autovoice.gate.serving import ServedRelease
from autovoice.gate.speed import P99, RTF, Figure, speed_checks
from autovoice.gate.suite import Suite, conditions, long_source
from autovoice.releases.publishing import publish
from autovoice.releases.release import read_release
from autovoice.releases.signing import SigningKey, TrustedKey
from autovoice.releases.verifying import verify
from autovoice.repository.reader import ModelRepository

RATE = 24000
Change = Callable[[Path], None]

# A fifth of the models: what is refused when it is loaded needs to answer nothing.
LOADED = (
    "content_encoder",
    "pad_source",
    "pitch_extractor",
    "synthesizer",
    "trim_output",
    "voice_conversion",
)


def quick(cache: Path | None = None, **changes: Any) -> GateOptions:
    """Options of a gate that looks once."""
    small = {"judges": False, "loads": 1, "rounds": 3, "requests": 10, "long_seconds": 6.0}
    return GateOptions(cache=cache, **(small | changes))


def refused(found: Report | list[Check]) -> dict[str, str]:
    """Reasons by the names of the checks that refuse."""
    made = found.checks if isinstance(found, Report) else found
    return {check.name: check.reason for check in made if check.verdict == "refused"}


def embedded(repository: Path, suite: Suite) -> tuple[LocalEngine, dict[str, Converter]]:
    """The base voice of a repository in this process."""
    engine = LocalEngine(ModelRepository(repository))
    target = suite.targets[0]
    return engine, open_converters(engine, ["voice_conversion"], target.audio, target.sample_rate)


def changed(models: Path, folder: Path, change: Change) -> Path:
    """A copy of the models with a change."""
    shutil.copytree(models, folder / "models")
    change(folder / "models")
    return folder / "models"


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a server is started: what was changed must never be loaded."""

    def start(self: ServedRelease) -> None:
        raise AssertionError("a server was started")

    monkeypatch.setattr(ServedRelease, "start", start)


def test_good_release_passes_and_keeps_its_report(
    models: Path, releases: Path, in_service: ServedRelease, suite: Suite, cache: Path
) -> None:
    path = publish_changed(models, releases).path
    seen: list[Check] = []
    report = run_gate(path, in_service, suite, quick(cache), seen.append)
    # How long a request takes is for the machine to say; that figures are compared has a test of its own.
    assert refused(report).keys() <= set(SPEED), refused(report)
    assert [check.name for check in report.checks] == list(NAMES)
    assert [check.name for check in seen] == list(NAMES)
    assert not report.judges
    left_out = {check.name for check in report.checks if check.verdict == "left out"}
    assert left_out >= {"signature", "words", "identity", "melody", "naturalness"}


@pytest.mark.parametrize(
    "change",
    [
        bad_releases.truncated_file,
        bad_releases.another_models_file,
        bad_releases.wrong_shape,
        bad_releases.nan_at_warm_up,
        bad_releases.crash_on_load,
    ],
    ids=lambda change: change.__name__,
)
def test_what_does_not_load_is_refused_with_the_servers_reason(
    models: Path, tmp_path: Path, suite: Suite, cache: Path, change: Change
) -> None:
    few = copy_models(models, tmp_path / "few", LOADED)
    release = publish_changed(few, tmp_path / "releases", change)
    before = family(os.getpid())
    report = run_gate(release.path, None, suite, quick(cache))
    reasons = {
        "truncated_file": "content_encoder did not load",
        "another_models_file": "content_encoder did not load",
        "wrong_shape": "trim_output did not load",
        "nan_at_warm_up": "not a number",
        "crash_on_load": "SIGSEGV",
    }
    assert list(refused(report)) == ["loads"]
    assert reasons[change.__name__] in refused(report)["loads"]
    assert not report.passed
    until(lambda: ended(family(os.getpid()) - before))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (bad_releases.nan_on_speech, {"answers"}),
        (bad_releases.silence, {"level", "speech"}),
        (bad_releases.wrong_rate, {"speech"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_sound_is_refused(
    models: Path, tmp_path: Path, suite: Suite, change: Change, names: set[str]
) -> None:
    """In process, where nobody refuses what is not finite, as with the native backend."""
    _, voices = embedded(changed(models, tmp_path, change), suite)
    answers = checks.ask(voices, {RATE: conditions(suite, RATE, 5.0)})
    found = list(checks.sound_checks(answers))
    assert names <= set(refused(found))
    assert ("answers" in refused(found)) == ("answers" in names)
    silent = next(answer for answer in answers if answer.condition.name == "silent")
    assert np.isfinite(silent.audio).all()


def test_wrong_rate_moves_the_pitch(models: Path, tmp_path: Path, suite: Suite) -> None:
    right, right_voices = embedded(models, suite)
    _, wrong_voices = embedded(changed(models, tmp_path, bad_releases.wrong_rate), suite)
    speech = {"voice_conversion": long_source(suite, RATE, 5.0)}
    assert checks.pitch_check(right_voices, speech, [right]).verdict == "passed"
    found = checks.pitch_check(wrong_voices, speech, [right])
    assert found.verdict == "refused"
    assert found.values["semitones"] > 4


def test_slow_release_is_refused(models: Path, tmp_path: Path, suite: Suite) -> None:
    """Many times as slow, so that a busy machine cannot hide it."""
    _, usual = embedded(models, suite)
    _, slow = embedded(changed(models, tmp_path, bad_releases.many_times_as_slow), suite)
    speech = {"voice_conversion": long_source(suite, RATE, 2.0)}
    found = {check.name: check for check in speed_checks(slow, usual, speech, rounds=2)}
    assert list(found) == list(SPEED)
    assert found["RTF, whole"].verdict == "refused"
    assert found["RTF, whole"].values["ratio"] > 2


@pytest.mark.parametrize(
    ("measure", "mine", "other", "verdict"),
    [
        (RTF, 0.11, 0.1, "passed"),
        (RTF, 0.2, 0.1, "refused"),
        (P99, 0.14, 0.1, "passed"),
        (P99, 0.2, 0.1, "refused"),
        (RTF, 0.9, None, "passed"),
        (RTF, 1.1, None, "refused"),
        (P99, 9.0, None, "left out"),
    ],
)
def test_speed_is_a_ratio_where_there_is_another_release(
    measure: str, mine: float, other: float | None, verdict: str
) -> None:
    assert Figure(measure, "whole", "voice", mine, other).check().verdict == verdict


class TrimOnly:
    """Stands for a voice over a server that has nothing but `trim_output`."""

    def __init__(self, served: ServedRelease, voice: Any) -> None:
        self.served, self.voice = served, voice

    def whole(self, audio: np.ndarray) -> None:
        padded = np.zeros((1, (audio.size + 839) // 240 * 240), np.float32)
        self.served.engine.infer("trim_output", {"AUDIO": padded, "SOURCE_AUDIO": audio[None]})

    live = whole


@pytest.mark.parametrize("leaks", [False, True])
def test_memory_that_grows_is_refused(
    models: Path, tmp_path: Path, suite: Suite, cache: Path, leaks: bool
) -> None:
    copy_models(models, tmp_path / "models", ["trim_output"])
    if leaks:
        bad_releases.leaking_memory(tmp_path / "models")
    _, voices = embedded(models, suite)
    speech = {"voice": long_source(suite, RATE, 5.0)}
    with ServedRelease(tmp_path / "models", cache=cache) as served:
        served.start()
        stub: Any = {"voice": TrimOnly(served, voices["voice_conversion"].voice)}
        found = checks.memory_check(served, stub, speech, 25)
    assert found.verdict == ("refused" if leaks else "passed"), found
    assert (found.values["bytes_a_request"] > checks.GROWTH_BYTES) == leaks


def test_other_contract_is_refused_unloaded(
    models: Path, releases: Path, tmp_path: Path, suite: Suite, no_server: None
) -> None:
    folder = tmp_path / "releases"
    shutil.copytree(releases / "1", folder / "1")
    path = publish_changed(models, folder, bad_releases.other_contract).path
    report = run_gate(path, ServedRelease(folder / "1"), suite, quick())
    assert refused(report) == {"contract": "voice_conversion has other parameters"}


def test_changed_file_is_refused_unloaded(
    models: Path, tmp_path: Path, suite: Suite, no_server: None
) -> None:
    path = publish_changed(copy_models(models, tmp_path / "few", LOADED), tmp_path / "releases").path
    file = path / "synthesizer" / "1" / "model.onnx"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    report = run_gate(path, None, suite, quick())
    assert refused(report) == {"files": "synthesizer/1/model.onnx was changed"}
    assert {check.verdict for check in report.checks[2:]} == {"not run"}


def test_command_reports_refusals_and_mistakes(
    models: Path, tmp_path: Path, no_server: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "releases"
    path = publish_changed(copy_models(models, tmp_path / "few", LOADED), folder).path
    (path / "MODEL_CARD.md").write_text("added")
    arguments = ["gate", "1", "--releases", str(folder), "--no-judges"]
    assert run(arguments) == 1
    assert "MODEL_CARD.md was added" in capsys.readouterr().out
    (path / "MODEL_CARD.md").unlink()
    assert verify(path).number == 1  # the report is about this release, and whole
    assert run(["gate", "7", "--releases", str(folder)]) == 2
    assert run([*arguments, "--against", "1"]) == 2
    assert run([*arguments, "--suite", str(tmp_path)]) == 2


def test_interrupted_gate_leaves_no_server_and_no_report(models: Path, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "releases"
    path = publish_changed(copy_models(models, tmp_path / "few", LOADED), folder).path
    command = [sys.executable, "-m", "autovoice", "gate", "1", "--releases", str(folder), "--no-judges"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        until(lambda: any("tritonserver" in child.name() for child in psutil.Process(process.pid).children()))
        children = family(process.pid) - {process.pid}
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, log
    assert "Traceback" not in log
    until(lambda: ended(children))
    assert not (path / "gate.json").exists()
    assert list(tmp_path.glob("autovoice-*")) == []
    assert read_release(path).check() == []


def test_signed_report_is_that_of_the_release(models: Path, tmp_path: Path, no_server: None) -> None:
    pytest.importorskip("model_signing")
    private, public = write_key_pair(tmp_path)
    folder = tmp_path / "releases"
    few = copy_models(models, tmp_path / "few", LOADED)
    path = publish(few, folder, key=SigningKey(private)).path
    publish(few, folder)
    unsigned = ["gate", "2", "--releases", str(folder), "--no-judges", "--public-key", str(public)]
    assert run(unsigned) == 1
    (card := path / "MODEL_CARD.md").write_text("added")
    gate = ["gate", "1", "--releases", str(folder), "--no-judges", "--public-key", str(public)]
    assert run([*gate, "--signing-key", str(private)]) == 1
    card.unlink()
    assert verify(path, TrustedKey(public)).number == 1
    report = json.loads((path / "gate.json").read_text())
    assert [check["verdict"] for check in report["checks"][:2]] == ["refused", "refused"]
    assert "was altered after it was signed" in report["checks"][0]["reason"]
    card.write_text("added")
    assert run(gate) == 1  # an unsigned report takes the place of the signed one, with its signature
    assert not (path / "gate.sig").exists()
    (folder / "2" / "gate.json").write_bytes((path / "gate.json").read_bytes())
    with pytest.raises(ReleaseError, match="report of another release"):
        verify(folder / "2")


@pytest.mark.parametrize(
    ("mine", "refusing"),
    [
        ({"words": 0.12, "identity": 0.49, "melody": 0.89, "naturalness": 2.95}, set()),
        ({"words": 0.13}, {"words"}),
        ({"identity": 0.47}, {"identity"}),
        ({"melody": 0.87}, {"melody"}),
        ({"naturalness": 2.8}, {"naturalness"}),
        ({"words": 0.0, "identity": 0.9, "melody": 1.0, "naturalness": 4.0}, set()),
    ],
)
def test_what_the_judges_hear_may_be_worse_by_a_margin(mine: dict[str, float], refusing: set[str]) -> None:
    before = {"words": 0.105, "identity": 0.5, "melody": 0.9, "naturalness": 3.0}
    found = compare({"voice": (before | mine, before)})
    assert set(refused(list(found))) == refusing


BAD = (
    (bad_releases.truncated_file, "loads"),
    (bad_releases.another_models_file, "loads"),
    (bad_releases.wrong_shape, "loads"),
    (bad_releases.nan_at_warm_up, "loads"),
    (bad_releases.nan_on_speech, "answers"),
    (bad_releases.silence, "level"),
    (bad_releases.twice_as_slow, "RTF, whole"),
    (bad_releases.leaking_memory, "memory"),
    (bad_releases.wrong_rate, "pitch"),
    (bad_releases.other_contract, "contract"),
    (bad_releases.crash_on_load, "loads"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("change", "check"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_bad_release_is_refused_beside_the_one_in_service(
    models: Path,
    releases: Path,
    in_service: ServedRelease,
    suite: Suite,
    cache: Path,
    change: Change,
    check: str,
) -> None:
    in_service.start()
    served = in_service.engine
    options = quick(cache, rounds=25 if check in SPEED else 3, requests=50 if check == "memory" else 10)
    report = run_gate(publish_changed(models, releases, change).path, in_service, suite, options)
    assert check in refused(report)
    assert all(refused(report).values())
    in_service.start()
    assert in_service.engine is served
    assert in_service.ending is None


@pytest.mark.slow
def test_whole_gate_with_its_judges(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped models beside themselves, as the command does it, but for fewer loads."""
    pytest.importorskip("distillmos")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for _ in range(2):
        publish(find_repository(), tmp_path)
    run(["gate", "2", "--releases", str(tmp_path), "--loads", "2"])
    report = json.loads((tmp_path / "2" / "gate.json").read_text())
    found = {check["name"]: check for check in report["checks"]}
    assert {name for name, check in found.items() if check["verdict"] == "refused"} <= set(SPEED)
    if report["passed"]:
        assert all(abs(found[name]["values"]["worse"]) < 1e-6 for name in MARGINS)
