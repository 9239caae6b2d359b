"""Model repositories for the runtime's tests: the real one, and a toy one whose conversions are known in
closed form."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from toy_repository import build_toy_repository
from toy_voices import build_toy_voices

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository of the checkout when its models are there, else the one in $AUTOVOICE_REPOSITORY."""
    committed = ROOT / "model_repository"
    if (committed / "voice_conversion" / "config.pbtxt").is_file():
        return committed
    configured = os.environ.get("AUTOVOICE_REPOSITORY")
    if not configured:
        pytest.fail(f"no models in {committed}; build them or set AUTOVOICE_REPOSITORY")
    return Path(configured)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `toy_repository`."""
    return build_toy_repository(tmp_path_factory.mktemp("toy") / "models")


@pytest.fixture
def voice() -> np.ndarray:
    """A unit embedding of the toy's size; its first entry is the gain the toy applies."""
    return np.array([0.5, 0.5, 0.5, 0.5], np.float32)


@pytest.fixture(scope="session")
def toy_voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base voice and three imported ones; see `toy_voices`."""
    root = build_toy_repository(tmp_path_factory.mktemp("voices") / "models")
    return build_toy_voices(root, {"anna": 40_000, "bert": 32_000, "cleo": 48_000})
