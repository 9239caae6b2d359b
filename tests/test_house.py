"""What no single package can promise: dependencies, sizes, and files that work everywhere."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "autovoice": ROOT / "clients" / "autovoice",
    "autovoice_export": ROOT / "export" / "autovoice_export",
    "autovoice_plugins": ROOT / "plugins" / "autovoice_plugins",
    "autovoice_training": ROOT / "training" / "autovoice_training",
}
# What each package may import of the others; dependencies point one way.
ALLOWED = {
    "autovoice": set(),
    "autovoice_plugins": set(),
    "autovoice_export": {"autovoice_plugins", "autovoice"},
    "autovoice_training": {"autovoice_plugins", "autovoice_export", "autovoice"},
}
MAX_LINES = 400
# Content encoder and synthesizer are there twice, alone and in the converter of live streams: ONNX Runtime
# reads no weights outside a model's own folder, so that two different models cannot share them.
MAX_REPOSITORY_BYTES = 60_000_000
NOT_AT_RUN_TIME = ("torch", "onnx", "onnxscript", "scipy", "matplotlib", "librosa", "resemblyzer")


def tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of tracked files")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_continuous_integration_runs_make_test_and_nothing_else() -> None:
    lines = [
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert [line for line in lines if not line.startswith(("set ", "cd "))] == ["exec make test"]


def test_files_stay_readable_in_one_sitting() -> None:
    long = {
        str(file.relative_to(ROOT)): count
        for folder in PACKAGES.values()
        for file in folder.rglob("*.py")
        if (count := len(file.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long


def test_packages_depend_one_way() -> None:
    wrong = []
    for package, folder in PACKAGES.items():
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom) and node.level == 0
                    else []
                )
                for name in names:
                    other = name.split(".")[0]
                    if other in PACKAGES and other != package and other not in ALLOWED[package]:
                        wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_no_tracked_file_names_a_machine() -> None:
    # Paths of the computer something was made on, and hosts of package mirrors, work nowhere else.
    private = re.compile(
        r"(?<![\w.])/(?:home|Users|root|work|mnt)/[\w.]|\b(?:pypi|files)\.[\w-]+\.(?:org|com|io)\b|index-url|find-links"
    )
    found = []
    for file in tracked():
        if file == Path(__file__).resolve():
            continue
        data = file.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if private.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found


def test_models_stay_small_enough_to_clone() -> None:
    models = [file for file in tracked() if file.suffix == ".onnx" and not file.is_symlink()]
    assert models
    assert sum(file.stat().st_size for file in models) < MAX_REPOSITORY_BYTES


def test_dependencies_of_the_runtime_are_those_it_imports() -> None:
    """Import every module of the runtime with all that belongs to building and training out of reach."""
    script = f"""
import importlib, pkgutil, sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {NOT_AT_RUN_TIME!r}:
            raise ImportError("the runtime imports " + name)

sys.meta_path.insert(0, Forbidden())
try:
    import torch
except ImportError:
    pass
else:
    raise SystemExit("the guard does not work")
import autovoice
for module in pkgutil.walk_packages(autovoice.__path__, "autovoice."):
    if module.name != "autovoice.__main__":
        importlib.import_module(module.name)
from autovoice import (PipelineConfig, VoiceConversionPipeline)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


def test_help_does_not_wait_for_the_engine() -> None:
    script = (
        "import sys, autovoice.cli.main; print(sorted({'onnxruntime', 'tritonclient'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
