"""Nonsense as the value of every option of every command: one line on stderr, and never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import soundfile
import typer

from autovoice.cli.main import make_app, run

pytestmark = pytest.mark.heavy

RATE = 16_000
NUMBERS = ["nonsense", "-1", "nan", "9" * 5000]
WORDS = [
    "",
    " ",
    "nonsense",
    "a\nb",
    "x" * 300,  # longer than a file name may be
    "x/" * 3000,  # longer than a path may be
    "/dev/null",
    "out.raw",  # a format that soundfile knows and cannot write unasked
    "grpc://h:99999",
]


@pytest.fixture
def folder(tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source and a voice of the toy repository, in the working directory."""
    noise = np.random.default_rng(2).uniform(-0.1, 0.1, RATE // 10)
    soundfile.write(tmp_path / "in.wav", noise, RATE)
    np.save(tmp_path / "voice.npy", np.full(4, 0.5, np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOVOICE_REPOSITORY", str(toy))
    return tmp_path


# What each command needs; an option given again later takes the place of the one here. Those that would start
# a server, import PyTorch's models or ask a server find nothing to work on, which is refused in one line too.
COMMANDS: dict[str, list[str]] = {
    "convert": ["in.wav", "-t", "voice.npy", "-o", "out.wav", "--overwrite"],
    "embed": ["in.wav", "-o", "made.npy", "--overwrite"],
    "stream": ["--simulate", "in.wav", "-t", "voice.npy"],
    "voices": [],
    "info": [],
    "serve": ["--repository", "nowhere"],
    "rollout promote": ["2", "--rollout", "nowhere"],
    "rollout rollback": ["--rollout", "nowhere"],
    "rollout status": ["--rollout", "nowhere"],
    "rollout history": ["--rollout", "nowhere"],
    "publish": ["--repository", "nowhere"],
    "verify": ["nowhere"],
    "gate": ["1", "--releases", "nowhere"],
    "build": ["--checkpoint", "nowhere.safetensors", "--out", "models"],
    "import rvc": ["nowhere.pth", "--name", "anna", "--repository", "models"],
}


def parameters() -> list[Any]:
    """Every command with each of its options and arguments that take a value."""
    root: Any = typer.main.get_command(make_app())
    found = []
    for name, basis in COMMANDS.items():
        group, _, rest = name.partition(" ")
        command = root.commands[group]
        if rest:
            command = command.commands[rest]
        elif group == "build":
            command = command.make_context("build", list(basis)).command
        hints = get_type_hints(command.callback)
        for parameter in command.params:
            if parameter.name in hints and not getattr(parameter, "is_flag", False):
                flag = parameter.opts[0] if parameter.param_type_name == "option" else None
                number = hints[parameter.name] in (int, float, int | None, float | None)
                values = NUMBERS if number else WORDS
                found.append(pytest.param(name, flag, values, id=f"{name} {flag or parameter.name}"))
    return found


@pytest.mark.parametrize(("command", "flag", "values"), parameters())
def test_every_wrong_value_is_one_line(
    command: str, flag: str | None, values: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a command takes all the same it does; what it does not take it refuses with exit code 2."""
    wrong, refused = {}, 0
    for value in values:
        arguments = [*command.split(), *COMMANDS[command], *([flag, value] if flag else ["--", value])]
        if flag is None and command == "import rvc":
            arguments.remove("nowhere.pth")
        try:
            code = run(arguments)
        except Exception as error:
            wrong[value[:40]] = repr(error)[:200]
            continue
        captured = capsys.readouterr()
        unreachable = flag == "--server" and code == 1  # a host that does not answer
        line = captured.err.startswith("autovoice: ") and captured.err.count("\n") == 1
        refused += code != 0
        if code != 0 and not (line and captured.out == "" and (code == 2 or unreachable)):
            wrong[value[:40]] = f"exit code {code}: {captured.out[:200]} {captured.err[:200]}"
    assert not wrong
    assert refused
