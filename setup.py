"""Adds models and recordings to the wheel; everything else about the package stands in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MODELS = ROOT / "model_repository"
RECORDINGS = ROOT / "demo"  # what releases are tried with
# Plans run on one kind of GPU only, and the rest is unfinished work.
NOT_PACKAGED = shutil.ignore_patterns("*.plan", "*.plan.json", "*.timing_cache*", "*.partial")


class BuildWithModels(build_py):
    """Copies model_repository/ and the recordings of demo/ into the package, under the same names.

    Symbolic links become files, since wheels have none. An editable install reads the checkout instead.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        if not (MODELS / "voice_conversion" / "config.pbtxt").is_file():
            raise FileNotFoundError(
                f"{MODELS} holds no models; build from a whole checkout or a source archive"
            )
        target = Path(self.build_lib) / "autovoice" / MODELS.name
        shutil.rmtree(target, ignore_errors=True)  # models that are gone from the checkout
        shutil.copytree(MODELS, target, ignore=NOT_PACKAGED)
        recordings = Path(self.build_lib) / "autovoice" / RECORDINGS.name
        recordings.mkdir(parents=True, exist_ok=True)
        for recording in RECORDINGS.glob("*.flac"):
            shutil.copy2(recording, recordings)


setup(cmdclass={"build_py": BuildWithModels})
