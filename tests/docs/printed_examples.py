"""Runs the fenced code blocks of a Markdown file, in order, in one folder.

An HTML comment above a block says how: `<!-- not run: REASON -->` leaves it out, except that the options of
its `autovoice` commands are checked; `<!-- dry run: REASON -->` lets make print what it would do, in the
checkout. A block that consists of one `autovoice serve` starts a server that stays until the end. Ports are
replaced by free ones, and nothing else is changed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import typer
from markdown_it import MarkdownIt

from autovoice.cli.main import make_app
from autovoice.server.options import free_ports

ROOT = Path(__file__).resolve().parents[2]
SHELL = ("bash", "sh")
RUN = (*SHELL, "python")
PORTS = {8000: "--http-port", 8001: "--grpc-port", 8002: "--metrics-port"}
SECONDS = 900  # until a block counts as hanging
_SERVE = re.compile(r"autovoice serve( --rollout \S+ --releases \S+)?")
_FIGURES = {
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d": "TIME",
    r"\d+ files, \d+\.\d [kMG]B": "SIZE",
    r"(?m)(?<=  )\d+$": "PID",
}
_COMMENT = re.compile(r"<!-- (not run|dry run): (.+?) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        file: that holds it.
        line: of its fence, from 1.
        language: after the fence.
        code: between the fences.
        how: `"run"`, `"dry run"` or `"not run"`.
        reason: why it is not run.
    """

    file: Path
    line: int
    language: str
    code: str
    how: str = "run"
    reason: str = ""

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    @property
    def serves(self) -> bool:
        """Whether it starts a server."""
        return self.how == "run" and _SERVE.fullmatch(self.code.strip()) is not None


def blocks_of(file: Path) -> list[Block]:
    """All fenced blocks of a Markdown file."""
    blocks: list[Block] = []
    how, reason = "run", ""
    for token in MarkdownIt("commonmark").parse(file.read_text(encoding="utf-8")):
        if token.type == "html_block" and (comment := _COMMENT.fullmatch(token.content.strip())):
            how, reason = comment[1], comment[2]
        elif token.type == "fence":
            assert token.map is not None
            blocks.append(Block(file, token.map[0] + 1, token.info.strip(), token.content, how, reason))
            how, reason = "run", ""
        elif token.type not in ("paragraph_open", "paragraph_close") and how != "run":
            raise AssertionError(f"{file}: '{how}: {reason}' stands above no code")
    return blocks


class Runner:
    """Runs blocks in a folder, as a reader would.

    Args:
        folder: with the files that the blocks name.
        environment: variables besides those of this process.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self.ports = dict(zip(PORTS, free_ports("127.0.0.1", len(PORTS)), strict=True))
        programs = folder.parent / "programs"
        programs.mkdir(exist_ok=True)
        for name, command in (("autovoice", "-m autovoice"), ("python", "")):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
            program.chmod(0o755)
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
            "XDG_CACHE_HOME": str(folder.parent / "cache"),
            "OMP_NUM_THREADS": "1",
            **environment,
        }

    def run(self, block: Block) -> str:
        """Standard output of a block; fails with its error output."""
        code = block.code
        for usual, free in self.ports.items():
            code = re.sub(rf"\b(localhost|127\.0\.0\.1):{usual}\b", rf"\1:{free}", code)
        if block.language == "python":
            command = [sys.executable, "-c", code]
        else:
            command = ["bash", "-euo", "pipefail", "-c", code]
        environment, folder = self._environment, self._folder
        if block.how == "dry run":
            environment, folder = environment | {"MAKEFLAGS": "-n", "PYTHON": sys.executable}, ROOT
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, f"{block.where}\n{code}\n{done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def serving(self, block: Block) -> Iterator[None]:
        """The server that a block starts."""
        options = [str(part) for usual, option in PORTS.items() for part in (option, self.ports[usual])]
        process = subprocess.Popen(
            [*shlex.split(block.code), *options],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            executable=str(self._folder.parent / "programs" / "autovoice"),
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("ready: "), f"{block.where} does not serve"
            yield
        finally:
            process.terminate()
            try:
                assert process.wait(60) == 0, f"{block.where} does not stop in good order"
            finally:
                process.kill()
                process.stdout.close()


def run_all(blocks: list[Block], runner: Runner) -> dict[str, str]:
    """Run what is to be run; standard output by place."""
    printed = {}
    with ExitStack() as servers:
        for block in blocks:
            if block.serves:
                servers.enter_context(runner.serving(block))
            elif block.language in RUN and block.how != "not run":
                printed[block.where] = runner.run(block)
    return printed


def check_output(blocks: list[Block], printed: dict[str, str]) -> int:
    """Hold each block of text to what the block above it printed; how many there were.

    Times, process ids and sizes may differ.
    """
    count = 0
    for block, text in pairwise(blocks):
        if text.language == "text" and block.where in printed:
            assert _without_figures(printed[block.where]) == _without_figures(text.code), text.where
            count += 1
    return count


def _without_figures(text: str) -> list[str]:
    for figure, name in _FIGURES.items():
        text = re.sub(figure, name, text)
    return [" ".join(line.split()) for line in text.splitlines()]


def check_commands(block: Block) -> int:
    """Check the options of the `autovoice` commands of a block that is not run; how many there were."""
    group = typer.main.get_command(make_app())
    assert isinstance(group, typer.core.TyperGroup)
    lines = block.code.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("autovoice ")]
    for _, name, *arguments in commands:
        group.commands[name].make_context(name, arguments)  # raises a usage error on an unknown option
    return len(commands)
