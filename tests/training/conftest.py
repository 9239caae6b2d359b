"""The corpus of tones, once for all tests of the trainer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode puts no test folder on the path

from toy_corpus import make_corpus


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `toy_corpus`."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))
