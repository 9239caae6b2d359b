"""`autovoice publish` and `autovoice verify`: what they print, and in one line what is wrong."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from keys import write_certificates, write_key_pair

from autovoice.cli.main import run
from autovoice.releases.release import release_numbers


@pytest.fixture
def repository(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy repository; the working folder is empty."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return toy


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("autovoice: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_a_release_is_published_and_verified(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        assert run(["publish", "--repository", str(repository)]) == 0
        assert capsys.readouterr().out.startswith(
            f"published release {number} to releases/{number}: 30 files, "
        )
    assert release_numbers("releases") == [1, 2]
    assert run(["verify", "releases/2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("release 2 is as it was published: 30 files, ")
    assert out.endswith(", not signed, without a report of the gate\n")


def test_what_differs_is_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["publish", "--repository", str(repository), "--number", "5"]) == 0
    shutil.rmtree("releases/5/delay")
    line = error_of(["verify", "releases/5"], capsys)
    assert "delay/5/model.onnx is missing, delay/config.pbtxt is missing" in line
    assert "release 5 exists" in error_of(
        ["publish", "--repository", str(repository), "--number", "5"], capsys
    )
    assert "nowhere/release.json is missing" in error_of(["verify", "nowhere"], capsys)


@pytest.mark.parametrize("kind", ["key pair", "certificates"])
def test_a_signed_release_is_verified_by_its_key(
    repository: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    private, public = write_key_pair(tmp_path)
    signing = ["--signing-key", str(private)]
    trusted = ["--public-key", str(public)]
    if kind == "certificates":
        private, certificate, between, root = write_certificates(tmp_path)
        signing = [
            "--signing-key", str(private), "--certificate", str(certificate), "--certificate", str(between)
        ]  # fmt: skip
        trusted = ["--certificate-chain", str(root)]
    assert run(["publish", "--repository", str(repository), *signing]) == 0
    capsys.readouterr()
    assert run(["verify", "releases/1", *trusted]) == 0
    assert f", signed by {trusted[1]}, " in capsys.readouterr().out
    assert run(["verify", "releases/1"]) == 0
    assert ", its signature was not checked: no key was given, " in capsys.readouterr().out
    _, other = write_key_pair(tmp_path, "other")
    assert "is not signed by" in error_of(["verify", "releases/1", "--public-key", str(other)], capsys)
    assert run(["publish", "--repository", str(repository)]) == 0
    assert "2 is not signed: there is no release.sig" in error_of(["verify", "releases/2", *trusted], capsys)


def test_options_that_contradict_each_other_are_refused(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish = ["publish", "--repository", str(repository)]
    assert "--certificate a signs nothing" in error_of([*publish, "--certificate", "a"], capsys)
    assert "contradict each other" in error_of(
        ["verify", "x", "--public-key", "a", "--certificate-chain", "b"], capsys
    )


def test_what_is_missing_is_named(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    private, _ = write_key_pair(tmp_path)
    publish = ["publish", "--repository", str(repository)]
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("boto3", "model_signing", "model_signing.signing"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install 'autovoice[s3]'" in error_of([*publish, "--to", "s3://a/b"], capsys)
    assert "apt-get install skopeo" in error_of([*publish, "--to", "oci://a/b"], capsys)
    assert "pip install 'autovoice[release]'" in error_of([*publish, "--signing-key", str(private)], capsys)
    assert run(publish) == 0
    assert run(["verify", "releases/1"]) == 0
