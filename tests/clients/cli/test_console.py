"""What the commands print: nothing is cut, in no terminal and no pipe, and every failure is one line."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from autovoice.cli.main import run

COMMAND = [sys.executable, "-m", "autovoice"]


def in_terminal(columns: int, arguments: list[str]) -> str:
    """What a command shows in a terminal of that width, without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen([*COMMAND, *arguments], stdout=theirs, env=environment | {"TERM": "xterm"}) as done:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 1 << 16):
                shown += piece
        except OSError:  # how Linux tells that the other side was closed
            pass
    os.close(ours)
    assert done.returncode == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")


def in_pipe(arguments: list[str], **environment: str) -> str:
    """What a command writes into a pipe."""
    done = subprocess.run(
        [*COMMAND, *arguments], env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def test_tables_in_a_pipe_have_one_line_for_each_row(toy_voices: Path, tmp_path: Path) -> None:
    """However narrow the terminal is that the command was started from, and however long a name."""
    repository = tmp_path / ("[long]" * 30)
    shutil.copytree(toy_voices, repository, symlinks=True)
    written = in_pipe(["info", "--repository", str(repository)], COLUMNS="40")
    lines = written.splitlines()
    assert f"repository  {repository}" in lines
    models = [path.parent.name for path in repository.glob("*/config.pbtxt")]
    table = lines[lines.index(next(line for line in lines if line.startswith("model "))) + 1 :]
    assert sorted(line.split()[0] for line in table) == sorted(models)
    assert all(" -> " in line for line in table)
    assert lines == [line.rstrip() for line in lines]


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_a_narrow_terminal_shows_every_character(columns: int, toy_voices: Path) -> None:
    command = ["info", "--repository", str(toy_voices)]
    shown, whole = in_terminal(columns, command), in_pipe(command)
    assert max(map(len, shown.splitlines())) <= columns
    assert Counter("".join(shown.split())) == Counter("".join(whole.split()))


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_file_names_that_the_terminal_cannot_show(encoding: str, toy: Path, tmp_path: Path) -> None:
    """One in Latin-1 on a system of UTF-8, and one in UTF-8 where only ASCII can be shown."""
    noise = np.random.default_rng(2).uniform(-0.1, 0.1, 1600)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "x.wav", noise, 16_000)
    np.save(tmp_path / "voice.npy", np.full(4, 0.5, np.float32))
    for name in (b"caf\xe9.wav", "fünf.wav".encode()):
        shutil.copy(tmp_path / "x.wav", os.path.join(os.fsencode(tmp_path / "in"), name))
    environment = os.environ | {"PYTHONIOENCODING": encoding, "AUTOVOICE_REPOSITORY": str(toy)}
    command = ["convert", "in", "-t", "voice.npy", "-o", "out", "--profile"]
    done = subprocess.run([*COMMAND, *command], cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"out/caf\\udce9.wav: 0.10 s" in done.stdout
    assert b"2 converted" in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["convert", "in.wav", "-t", "", "-o", "out.wav"], "-t is empty"),
        (["convert", "in.wav", "-t", "voice.npy", "--output="], "--output is empty"),
        (["info", "--server", ""], "--server is empty"),
        (["convert", "", "-o", "out.wav"], "an argument is empty"),
        (["serve", "--repository", "nowhere", "--", ""], "nowhere"),
    ],
)
def test_an_empty_value_is_no_path(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A variable of the shell that was not set must not become the working folder."""
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("autovoice: ")
    assert says in line
    assert list(tmp_path.iterdir()) == []
