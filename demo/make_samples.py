"""Remakes the demo's speech samples with flite (Debian package `flite`): python demo/make_samples.py.

The samples are synthetic speech so that they carry no person's recording and a free licence.
flite renders the same bytes every time, so a rerun changes nothing unless a sentence changes.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import soundfile

FOLDER = Path(__file__).resolve().parent

# file name -> (flite voice, text). The source speaker is one the base voice was not trained on.
SAMPLES = {
    "source_rms.flac": (
        "rms",
        "The ferry leaves the harbour at seven in the morning, before the fog has lifted. "
        "If you miss it, there is another one after lunch.",
    ),
    "target_slt.flac": (
        "slt",
        "My grandmother kept her recipes in a tin box by the window. Most of them were written in pencil.",
    ),
    "target_awb.flac": (
        "awb",
        "My grandmother kept her recipes in a tin box by the window. Most of them were written in pencil.",
    ),
}


def main() -> None:
    for name, (voice, text) in SAMPLES.items():
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder) / "speech.wav"
            subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(wav)], check=True)
            audio, rate = soundfile.read(wav, dtype="int16")
        soundfile.write(FOLDER / name, audio, rate, subtype="PCM_16")
        print(f"{name}: {len(audio) / rate:.2f} s at {rate} Hz")


if __name__ == "__main__":
    main()
