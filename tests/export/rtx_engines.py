"""Runs ``autovoice build --engine tensorrt-rtx`` and reads what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Builder = Callable[..., subprocess.CompletedProcess[str]]


def run_builder(root: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Builds in a process of its own: Polygraphy takes one of the two TensorRT for the life of a process."""
    command = [sys.executable, "-m", "autovoice", "build", "--engine", "tensorrt-rtx"]
    command += ["--repository", str(root), "--output", str(output), *options]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def manifests(folder: Path) -> list[dict[str, Any]]:
    """What the files beside the engines say."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def shapes_of(manifest: dict[str, Any]) -> dict[str, tuple[list[int], list[int], list[int]]]:
    """Smallest, a typical and largest shape of every input over all profiles of an engine."""
    found: dict[str, list[list[list[int]]]] = {}
    for text in manifest["profiles"]:
        for item in text.partition(": ")[2].split(","):
            name, _, ranges = item.partition("=")
            found.setdefault(name, []).append(
                [[int(size) for size in shape.split("x")] for shape in ranges.split(":")]
            )
    return {
        name: (
            [min(sizes) for sizes in zip(*(item[0] for item in ranges), strict=True)],
            ranges[0][1],
            [max(sizes) for sizes in zip(*(item[2] for item in ranges), strict=True)],
        )
        for name, ranges in found.items()
    }
