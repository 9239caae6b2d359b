"""A corpus of tones and recordings to judge, once for all tests of the training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_corpus import make_corpus

DEMO = Path(__file__).resolve().parents[2] / "demo"


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `toy_corpus`."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def people_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same corpus, said to be of people."""
    root = make_corpus(tmp_path_factory.mktemp("people"))
    index = json.loads((root / "index.json").read_text())
    for speaker in index["speakers"]:
        speaker["engine"] = "people"
    (root / "index.json").write_text(json.dumps(index))
    return root


@pytest.fixture(scope="session")
def evaluation_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's recordings cut in four; texts.json is wrong about them, the same for all."""
    root = tmp_path_factory.mktemp("eval")
    described = {}
    for name in ("source_rms", "target_slt", "target_awb"):
        audio, rate = soundfile.read(DEMO / f"{name}.flac", dtype="float32")
        (root / name).mkdir()
        for number, part in enumerate(np.array_split(audio, 4)):
            soundfile.write(root / name / f"e{number}.flac", part, rate)
        described[name] = {"sex": "female" if name == "target_slt" else "male", "seen": False}
    (root / "voices.json").write_text(json.dumps(described))
    (root / "texts.json").write_text(json.dumps({f"e{number}": "some other words" for number in range(4)}))
    return root
