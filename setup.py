"""Adds the model repository to the wheel; everything else about the package stands in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MODELS = Path(__file__).resolve().parent / "model_repository"
# Plans run on one kind of GPU only, and the rest is unfinished work.
NOT_PACKAGED = shutil.ignore_patterns("*.plan", "*.plan.json", "*.timing_cache*", "*.partial")


class BuildWithModels(build_py):
    """Copies model_repository/ into the package as autovoice/model_repository/.

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


setup(cmdclass={"build_py": BuildWithModels})
