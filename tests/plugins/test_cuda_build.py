"""The CMake build: what it makes, what it exports, and what it says when something is missing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from native import ROOT, cuda_build, find_cmake, options_of, require_gpu

from autovoice_plugins.kernels import KernelLibrary, Samples
from autovoice_plugins.onnx_export import OPS


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [find_cmake(), "-S", str(ROOT / "plugins"), "-B", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.gpu
def test_kernels_compile_and_load_without_a_device() -> None:
    library = KernelLibrary(cuda_build() / "libautovoice_kernels.so")
    for name, op in OPS.items():
        library.check(op.torch_name, options_of(name, {}))
    if torch.cuda.is_available():
        return
    with pytest.raises(ValueError, match=r"the kernel could not be launched: .*cuda"):
        library.launch(
            "harmonic_source",
            options_of("HarmonicSource", {}),
            1,
            1,
            16,
            16,
            Samples(None, 0),
            Samples(16, 0),
            16,
            workspace=16,
        )


@pytest.mark.gpu
def test_kernels_export_the_interface_and_nothing_else() -> None:
    listing = subprocess.run(
        ["nm", "--dynamic", "--defined-only", str(cuda_build() / "libautovoice_kernels.so")],
        capture_output=True,
        text=True,
        check=True,
    )
    header = (ROOT / "plugins" / "autovoice_plugins" / "kernels.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"\b(autovoice_\w+)\(", header))
    assert {line.split()[-1] for line in listing.stdout.splitlines()} == declared


def test_every_architecture_and_ptx_are_the_default() -> None:
    text = (ROOT / "plugins" / "CMakeLists.txt").read_text(encoding="utf-8")
    (architectures,) = re.findall(r"set\(CMAKE_CUDA_ARCHITECTURES (75[^)]*)\)", text)
    # A number without a suffix is machine code and PTX.
    assert architectures.split() == ["75-real", "80-real", "86-real", "89-real", "90-real", "100-real", "120"]


@pytest.mark.gpu
def test_missing_headers_are_said_and_may_be_an_error(tmp_path: Path) -> None:
    wrong = configure(tmp_path / "a", f"-DAUTOVOICE_TENSORRT_INCLUDE={tmp_path}")
    if "nvcc was not found" in wrong.stdout:
        pytest.skip("nvcc is not here")
    assert wrong.returncode != 0
    assert "which has no NvInferVersion.h; name the folder" in re.sub(r"\s+", " ", wrong.stderr)
    (tmp_path / "NvInferVersion.h").write_text("#define NV_TENSORRT_MAJOR 8\n")
    old = configure(tmp_path / "a", f"-DAUTOVOICE_TENSORRT_INCLUDE={tmp_path}")
    assert old.returncode != 0
    assert "is of TensorRT 8; the plugins need 10 or later" in re.sub(r"\s+", " ", old.stderr)
    if not any(Path("/usr/include").glob("**/NvInferVersion.h")):
        nothing = configure(tmp_path / "a", "-DAUTOVOICE_TENSORRT_INCLUDE=")
        assert nothing.returncode == 0
        assert "plugins left out: TensorRT's headers were not found" in nothing.stdout
        (summary,) = (tmp_path / "a" / "summary.txt").read_text().splitlines()
        assert summary.startswith("built libautovoice_kernels_host.so, libautovoice_kernels.so in ")
        assert "; plugins left out: TensorRT's headers were not found" in summary
        needed = configure(tmp_path / "a", "-DAUTOVOICE_TENSORRT_INCLUDE=", "-DAUTOVOICE_REQUIRE=plugins")
        assert needed.returncode != 0
        assert "plugins cannot be built: TensorRT's headers" in re.sub(r"\s+", " ", needed.stderr)


@pytest.mark.gpu
def test_compute_sanitizer_finds_nothing() -> None:
    require_gpu()
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not on the PATH")
    tests = Path(__file__).parent
    script = (
        f"import sys; sys.path[:0] = [{str(tests)!r}]\n"
        "from native import CudaMemory, cuda_build, run_kernels\n"
        "from test_kernels import CLOCKS, KernelLibrary, inputs\n"
        "from autovoice_plugins.onnx_export import OPS\n"
        "library = KernelLibrary(cuda_build() / 'libautovoice_kernels.so')\n"
        "for name, options in [*((name, {}) for name in OPS), *CLOCKS]:\n"
        "    run_kernels(library, CudaMemory(), name, *inputs(name, 2, 23, **options), **options)\n"
    )
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        done = subprocess.run(
            [sanitizer, f"--tool={tool}", "--error-exitcode=9", sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (tool, done.stdout[-4000:], done.stderr[-4000:])
