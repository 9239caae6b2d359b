"""What the runtime imports: nothing of building and training, and no engine before it is used."""

from __future__ import annotations

import subprocess
import sys

NOT_AT_RUN_TIME = ("torch", "onnx", "onnxscript", "scipy", "matplotlib", "librosa", "resemblyzer")


def test_every_module_imports_without_the_build_tools() -> None:
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
for name in autovoice.__all__:
    getattr(autovoice, name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


def test_help_does_not_wait_for_the_engine() -> None:
    script = (
        "import sys, autovoice.cli.main; print(sorted({'onnxruntime', 'tritonclient'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
