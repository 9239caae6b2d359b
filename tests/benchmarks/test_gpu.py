"""What of the GPU benchmark needs no GPU: the roofline, the aims, the errors, and the calls into the kernels.

The calls are made for real: the kernels are compiled for the CPU, where their source runs thread by thread.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu
import gpu_all
import gpu_ops
import pytest
import roofline
import torch
from report import Environment, Report
from roofline import Device, Work

from autovoice_plugins import kernels

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins" / "autovoice_plugins"
HEADER = PLUGINS / "kernels.h"


def test_roofline_is_the_higher_limit() -> None:
    device = Device(bandwidth=1e12, rate=1e13)
    slow_to_move, slow_to_compute = Work(2e9, 1e9), Work(1e6, 5e10)
    assert device.least_seconds(slow_to_move) == pytest.approx(2e-3)
    assert device.least_seconds(slow_to_compute) == pytest.approx(5e-3)
    assert device.limit(slow_to_move) == "bandwidth"
    assert device.limit(slow_to_compute) == "operations"
    assert device.share(slow_to_move, 4e-3) == pytest.approx(0.5)
    assert device.least_seconds(slow_to_move.times(3)) == pytest.approx(6e-3)
    with pytest.raises(ValueError, match="bandwidth 0 and rate 1 must be positive"):
        Device(0, 1)


def test_work_counts_what_must_move() -> None:
    """One read of every input and one write of every output, states left out, which do not grow."""
    samples, envelope = 240 * 4, 80 * 4
    assert roofline.pitch_yin().bytes == samples + 4 + 4
    assert roofline.harmonic_source().bytes == 4 + samples
    assert roofline.spectral_synth().bytes == 3 * samples + 2 * envelope
    assert set(roofline.WORK) == set(gpu_ops.OPS)


def test_real_fft_counts_known_sizes() -> None:
    # Split radix, complex: 4 N log2 N - 6 N + 8 (Sorensen, Heideman and Burrus, 1986); a real one takes half.
    assert roofline.real_fft(1024) == (4 * 1024 * 10 - 6 * 1024 + 8) / 2


def row(**changes: Any) -> dict[str, Any]:
    return {"op": "pitch_yin", "batch": 16, "audio_s": 10.0, "vs_eager": 30.0, "of_roofline": 0.6, **changes}


def test_aims_are_judged_at_the_agreed_size_only() -> None:
    met = gpu.kernel_aims([row(), row(batch=1, vs_eager=1.0), row(audio_s=1.0, of_roofline=0.0)])
    assert [(aim.measured, aim.met) for aim in met] == [("30 times", True), ("60%", True)]
    missed = gpu.kernel_aims([row(vs_eager=19.0, of_roofline=0.4)])
    assert [aim.met for aim in missed] == [False, False]
    assert len(gpu.kernel_aims([row(vs_eager=None)])) == 1  # PyTorch ran out of memory


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"PyTorch {torch.__version__} sees no CUDA device" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_missing_compiler_and_failing_build_are_one_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if cmake is None:
        pytest.skip("cmake is neither in this environment nor on the PATH")
    monkeypatch.setattr(gpu, "BUILD", tmp_path / "build")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDACXX", raising=False)
    with pytest.raises(gpu.GpuError, match="cmake is not installed"):
        gpu.build_library()
    (tmp_path / "cmake").symlink_to(cmake)  # alone on the PATH: there is no nvcc beside it
    with pytest.raises(gpu.GpuError, match="the kernels cannot be compiled: ") as failure:
        gpu.build_library()
    assert len(str(failure.value).splitlines()) == 1


def declarations() -> dict[str, list[str]]:
    """Parameter types of every function in the header."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"AUTOVOICE_API\s+[\w\s*]+?[\s*](\w+)\(([^)]*)\);", text)
    return {
        name: [
            re.sub(r"\w+$", "", item.strip()).replace("const", "").replace(" ", "")
            for item in body.split(",")
        ]
        for name, body in found
    }


def test_python_calls_the_functions_as_the_header_declares_them() -> None:
    declared = declarations()
    assert len(declared) == 11
    for op, (options, arrays) in kernels._OPS.items():
        pointer = f"autovoice_{op}_options*"
        kinds = {kernels.Samples: "autovoice_samples", kernels.c_void_p: "float*"}
        expected = [
            pointer,
            "int64_t",
            "int64_t",
            *(kinds[kind] for kind in arrays),
            "void*",
            "autovoice_stream",
        ]
        assert declared[f"autovoice_{op}"] == expected
        assert declared[f"autovoice_{op}_check"] == [pointer]
        assert declared[f"autovoice_{op}_workspace"] == [pointer, "int64_t", "int64_t"]
        body = re.search(rf"typedef struct {{([^}}]*)}} autovoice_{op}_options;", HEADER.read_text())
        assert body is not None
        fields = re.findall(r"(\w+) (\w+);", body[1])
        c_types = {"int32_t": kernels.c_int32, "float": kernels.c_float}
        assert [(name, c_types[kind]) for kind, name in fields] == list(options._fields_)


@pytest.fixture(scope="module")
def host_library(tmp_path_factory: pytest.TempPathFactory) -> kernels.KernelLibrary:
    """The kernels for the CPU."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the kernels for the CPU with")
    folder = tmp_path_factory.mktemp("kernels")
    sources = [PLUGINS / "device" / "launch.cu", *(PLUGINS / op / "kernel.cu" for op in gpu_ops.OPS)]
    (folder / "host.cpp").write_text("".join(f'#include "{source}"\n' for source in sources))
    library = folder / "libautovoice_kernels_host.so"
    flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-o", str(library)]
    subprocess.run([compiler, *flags, str(folder / "host.cpp")], check=True)
    return kernels.KernelLibrary(library)


def test_kernels_are_called_and_judged(host_library: kernels.KernelLibrary, tmp_path: Path) -> None:
    report = Report("gpu", Environment.here(["torch"]), {"quick": True})
    gpu.check_kernels(report, host_library, gpu.Workload(check_s=1.5), device="cpu")
    rows = report.sections["correctness"].rows
    assert [row["op"] for row in rows] == [op for op in gpu_ops.OPS for _ in range(3)]
    assert all(row["correct"] for row in rows), rows
    assert [aim.met for aim in report.aims] == [True]
    assert report.save(tmp_path).name == "gpu-quick.json"


@pytest.mark.parametrize("op", gpu_ops.OPS)
def test_wrong_results_are_noticed(host_library: kernels.KernelLibrary, op: str) -> None:
    case = gpu_ops.make_case(host_library, op, 2, 30, "cpu")
    untouched = gpu_ops.deviations(case, [0, 1])
    assert any(value > gpu_ops.TOLERANCE for value in untouched.values())
    gpu_ops.launch(host_library, case)
    right = gpu_ops.deviations(case, [0, 1])
    assert all(value <= gpu_ops.TOLERANCE for value in right.values())
    for output, name in zip(case.outputs, right, strict=True):
        output[1, -1] += 1.0
        changed = gpu_ops.deviations(case, [0, 1])
        assert changed[name] > gpu_ops.TOLERANCE
        assert gpu_ops.deviations(case, [0])[name] == right[name] or name != "state"
        output[1, -1] -= 1.0


def test_torch_ops_take_the_same_inputs(host_library: kernels.KernelLibrary) -> None:
    for op in gpu_ops.OPS:
        case = gpu_ops.make_case(host_library, op, 2, 7, "cpu")
        assert [tuple(item.shape) for item in gpu_ops.eager(case)] == [
            tuple(item.shape) for item in case.outputs
        ]
        assert case.frames == 7


def test_training_steps_are_measured_on_noise(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("gpu", Environment.here(("torch",)), {})
    gpu_all.measure_training(report, "cpu", 1, small=True)
    rows = report.sections["training"].rows
    assert [row["part"] for row in rows] == ["content", "synthesizer"]
    assert all(row["s_per_step"] > 0 for row in rows)


def test_outcomes_of_the_tests_on_the_device(tmp_path: Path) -> None:
    tests = tmp_path / "tests" / "plugins"
    tests.mkdir(parents=True)
    (tests / "test_some.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert False\n"
        "def test_c(): pytest.skip('no')\n@pytest.fixture\ndef f(): raise ValueError\ndef test_d(f): pass\n"
    )
    junit = tmp_path / "out.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    subprocess.run([*command, "tests", f"--junitxml={junit}"], cwd=tmp_path, capture_output=True, check=False)
    assert gpu_all.outcomes(junit) == [{"file": "test_some", "passed": 1, "failed": 2, "skipped": 1}]
    assert gpu_all.outcomes(tmp_path / "nothing.xml") == []
