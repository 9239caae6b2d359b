"""`autovoice build` as the runtime knows it: an entry that finds the build tools, or says how to get them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autovoice.cli.main import run

WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
from autovoice.cli.main import run
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("absent", "arguments"),
    [
        ("autovoice_export", ["build"]),
        ("autovoice_export", ["build", "--engine", "tensorrt"]),
        ("torch", ["build"]),
        ("onnx", ["build", "--engine", "tensorrt"]),
        ("autovoice_export", ["import", "rvc", "voice.pth", "--name", "one"]),
        ("torch", ["import", "rvc", "voice.pth", "--name", "one"]),
    ],
)
def test_missing_tools_are_named_with_the_remedy(absent: str, arguments: list[str]) -> None:
    command = [sys.executable, "-c", WITHOUT, absent, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("autovoice: the build tools are not installed")
    assert f"'{absent}" in done.stderr
    assert "pip install 'autovoice[export]'" in done.stderr


def test_help_and_options_are_those_of_the_tools(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "build" in capsys.readouterr().out
    assert run(["build", "--help"]) == 0
    assert "--hardware-compat" in capsys.readouterr().out
    for arguments, message in (
        (["--nonsense"], "No such option: --nonsense"),
        (["--engine", "tensorflow"], "Invalid value for '--engine'"),
        (["--model", "x"], "--model does not belong to --engine onnx"),
        (["--engine", "tensorrt", "--seed", "3"], "--seed does not belong to --engine tensorrt"),
    ):
        assert run(["build", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.endswith("see autovoice build --help\n")


def test_mistakes_of_the_tools_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["build", "--checkpoint", str(tmp_path / "no.safetensors"), "--out", str(tmp_path / "out")]) == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "does not exist" in error
    assert list(tmp_path.iterdir()) == []
