"""What the runtime imports: nothing of building and training, and no engine before it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_a_conversion_loads_only_what_it_uses(tmp_path: Path) -> None:
    """The progress bar is for terminals, and each other command has modules of its own."""
    demo = Path(__file__).resolve().parents[1] / "demo"
    source, target = str(demo / "source_rms.flac"), str(demo / "target_slt.flac")
    script = f"""
import sys
from autovoice.cli.main import run
code = run(["convert", {source!r}, "--target", {target!r}, "-o", "out.wav"])
unused = ["rich.console", "rich.progress", "tritonclient", "urllib3", "grpc"]
unused += ["autovoice.server", "autovoice.cli.serve", "autovoice.cli.stream", "autovoice.cli.build"]
print(code, [name for name in unused if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 []"
