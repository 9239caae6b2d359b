"""Scripts of benchmarks/ import each other by name, as they do when they are run."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The model repository that the benchmarks would find themselves."""
    from autovoice import PipelineConfig

    folder = PipelineConfig().repository_path()
    if not (folder / "voice_conversion" / "config.pbtxt").is_file():
        pytest.fail(f"no models in {folder}; build them or set AUTOVOICE_REPOSITORY")
    return folder
