"""A single write of any length: libsndfile's Vorbis encoder puts what it is given on the stack."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import soundfile

SECONDS = 120
RATE = 48_000
WRITE = f"""
import sys
import numpy as np
from autovoice import write_audio
noise = np.random.default_rng(0).standard_normal({SECONDS * RATE}).astype(np.float32)
write_audio(sys.argv[1], 0.1 * noise, {RATE})
"""


def test_a_long_write_does_not_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "long.ogg"
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"
    assert soundfile.info(path).frames == SECONDS * RATE
