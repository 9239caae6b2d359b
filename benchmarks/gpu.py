"""The custom ops' CUDA kernels: how exact, and how fast beside PyTorch: `python benchmarks/gpu.py`.

Needs an NVIDIA GPU, PyTorch with CUDA, cmake and nvcc; no TensorRT. `--all --out DIR` is one visit to a GPU:
also the tests on the device, CUDA graphs, live streams and training steps.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gpu_ops
import torch
import typer
from options import Quick, Repository, Results
from report import DEFAULT_RESULTS, ROOT, Aim, Environment, Report, Section, fail, significant, skipped
from roofline import WORK, Device
from speech import find_recordings, load, looped
from timing import time_together

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.engines.onnx_session import available_devices
from autovoice_plugins.geometry import HOP, SAMPLE_RATE
from autovoice_plugins.kernels import KernelLibrary

PACKAGES = ("autovoice", "torch", "triton", "numpy", "onnxruntime", "onnxruntime-gpu")
BUILD = ROOT / "build" / "plugins"
LIBRARY = "libautovoice_kernels.so"

MIN_SPEEDUP = 20.0
MIN_SHARE = 0.5
AIM_BATCH, AIM_SECONDS = 16, 10.0
MAX_F0_OFF = 0.005
"""Share of frames whose F0 may be that of another dip, of equal depth within rounding."""


class GpuError(Exception):
    """The benchmark cannot run here; the message says why and what to do."""


@dataclass(frozen=True)
class Workload:
    """How much is measured.

    Attributes:
        batches: sequences at once.
        lengths_s: audio of each.
        repeats: timed rounds of each cell.
        check_s: length of the correctness table's longest row.
    """

    batches: tuple[int, ...] = (1, 16, 256)
    lengths_s: tuple[float, ...] = (1.0, 10.0, 30.0)
    repeats: int = 20
    check_s: float = 60.0


QUICK = Workload(batches=(1, 16), lengths_s=(1.0,), repeats=3, check_s=2.0)


def require_cuda() -> None:
    """Sees that PyTorch has a GPU to work on.

    Raises:
        GpuError: it has not.
    """
    if not torch.cuda.is_available():
        raise GpuError(
            f"PyTorch {torch.__version__} sees no CUDA device; run on a machine with an NVIDIA GPU, with a "
            "build of PyTorch for CUDA (pip install torch)"
        )


def build_library() -> Path:
    """Compiles the kernels with cmake and nvcc, or brings what was compiled up to date.

    Raises:
        GpuError: cmake is missing, or the compiler fails.
    """
    if shutil.which("cmake") is None:
        raise GpuError("cmake is not installed; pip install cmake, or name a compiled library by --library")
    configure = ["cmake", "-S", str(ROOT / "plugins"), "-B", str(BUILD), "-DAUTOVOICE_REQUIRE=kernels"]
    compile_kernels = ["cmake", "--build", str(BUILD), "--parallel", "--target", "autovoice_kernels"]
    for command in (configure, compile_kernels):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise GpuError(f"the kernels cannot be compiled: {' '.join(lines[-3:])}")
    return BUILD / LIBRARY


def seconds_per_call(call: Callable[[], object], repeats: int) -> float:
    """Median time of a call on the device, by CUDA events around enough calls to fill some milliseconds."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    count, rounds = 1, []
    while True:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            call()
        stop.record()
        stop.synchronize()
        elapsed = start.elapsed_time(stop) / 1e3
        if elapsed < 5e-3 and count < 1000:
            count *= 4
            continue
        rounds.append(elapsed / count)
        if len(rounds) == repeats:
            return statistics.median(rounds)


def measure_device(repeats: int) -> Device:
    """Copy bandwidth and FP32 rate of the device at hand."""
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    copy = seconds_per_call(lambda: target.copy_(source), repeats)
    size = 8192
    left, right = (torch.randn(size, size, device="cuda") for _ in range(2))
    multiply = seconds_per_call(lambda: left @ right, repeats)
    return Device(2 * source.nbytes / copy, 2 * size**3 / multiply)


def check_kernels(report: Report, library: KernelLibrary, workload: Workload, device: str = "cuda") -> None:
    """Holds every kernel to the float64 reference, up to a minute of audio."""
    rows = []
    for op in gpu_ops.OPS:
        for batch, seconds in ((3, 0.01), (3, 1.0), (2, workload.check_s)):
            frames = max(1, round(seconds * SAMPLE_RATE / HOP))
            case = gpu_ops.make_case(library, op, batch, frames, device)
            gpu_ops.launch(library, case, _stream(device))
            _synchronize(device)
            found = gpu_ops.deviations(case, range(batch))
            correct = found.get("f0_off", 0.0) <= MAX_F0_OFF and all(
                value <= gpu_ops.TOLERANCE for name, value in found.items() if name != "f0_off"
            )
            figures = {name: _finite(value) for name, value in found.items()}
            rows.append({"op": op, "batch": batch, "audio_s": seconds, **figures, "correct": correct})
    report.add(
        "correctness",
        Section(
            "largest deviation from the float64 reference",
            rows,
            f"f0 off: share of frames further than {gpu_ops.F0_TOLERANCE_HZ} Hz off, where rounding may pick "
            f"another dip of the same depth; allowed {MAX_F0_OFF:.1%}. All else at most "
            f"{gpu_ops.TOLERANCE:g}, samples in parts of the largest where that exceeds 1.",
        ),
    )
    report.aims.append(
        Aim(
            "every kernel, up to a minute",
            f"within {gpu_ops.TOLERANCE:g}",
            "all" if all(row["correct"] for row in rows) else "not all",
            all(row["correct"] for row in rows),
        )
    )


def measure_kernels(report: Report, library: KernelLibrary, device: Device, workload: Workload) -> None:
    """Time of every kernel beside PyTorch and the roofline."""
    compiled = gpu_ops.compiled()
    rows: list[dict[str, Any]] = []
    for op in gpu_ops.OPS:
        for batch in workload.batches:
            for seconds in workload.lengths_s:
                frames = round(seconds * SAMPLE_RATE / HOP)
                try:
                    rows.append(
                        _kernel_row(library, compiled[op], op, batch, frames, device, workload.repeats)
                    )
                except torch.cuda.OutOfMemoryError:
                    skipped(report.console, f"{op}, batch {batch}, {seconds:g} s", "too little GPU memory")
                torch.cuda.empty_cache()
    report.add(
        "kernels",
        Section(
            "time of each op, float32",
            rows,
            "Median of rounds on the device by CUDA events; inputs of short cases stay in the cache. "
            "Roofline: bytes that must move over measured copy bandwidth, or operations over the measured "
            "FP32 rate.",
        ),
    )
    report.aims += kernel_aims(rows)


def kernel_aims(rows: list[dict[str, Any]]) -> list[Aim]:
    """The aims of a kernel table, judged at batch 16 of 10 s; none where it was not measured."""
    aims = []
    for row in rows:
        if (row["batch"], row["audio_s"]) != (AIM_BATCH, AIM_SECONDS):
            continue
        name = f"{row['op']}, batch {AIM_BATCH} of {AIM_SECONDS:g} s"
        if row["vs_eager"] is not None:
            speedup = f"{row['vs_eager']:.0f} times"
            aims.append(
                Aim(f"{name}, vs eager", f">= {MIN_SPEEDUP:g} times", speedup, row["vs_eager"] >= MIN_SPEEDUP)
            )
        share = row["of_roofline"]
        aims.append(Aim(f"{name}, roofline", f">= {MIN_SHARE:.0%}", f"{share:.0%}", share >= MIN_SHARE))
    return aims


def _kernel_row(
    library: KernelLibrary,
    compiled: Callable[..., Any],
    op: str,
    batch: int,
    frames: int,
    device: Device,
    repeats: int,
) -> dict[str, Any]:
    case = gpu_ops.make_case(library, op, batch, frames, "cuda")
    stream = _stream("cuda")
    ours = seconds_per_call(lambda: gpu_ops.launch(library, case, stream), repeats)
    work = WORK[op]().times(batch * frames)
    row: dict[str, Any] = {
        "op": op,
        "batch": batch,
        "audio_s": frames * HOP / SAMPLE_RATE,
        "us": significant(ours * 1e6),
        "rtf": significant(ours / (batch * frames * HOP / SAMPLE_RATE)),
        "of_roofline": significant(device.share(work, ours)),
        "limit": device.limit(work),
    }
    calls = {"eager": lambda: gpu_ops.eager(case), "compiled": lambda: compiled(*case.inputs)}
    for name, call in calls.items():
        try:
            row[f"vs_{name}"] = significant(seconds_per_call(call, repeats) / ours)
        except torch.cuda.OutOfMemoryError:
            row[f"vs_{name}"] = None
    return row


def measure_pipeline(report: Report, repository: Path | None, workload: Workload) -> None:
    """RTF of whole conversions in ONNX Runtime on the GPU, where its CUDA provider is installed."""
    if "cuda" not in available_devices():
        skipped(
            report.console, "the whole pipeline", "this ONNX Runtime has no CUDA; pip install onnxruntime-gpu"
        )
        return
    rows = []
    config = PipelineConfig(repository=repository, device="cuda", fallback="raise")
    with VoiceConversionPipeline(config) as pipeline:
        rate = pipeline.sample_rate
        speech = load(find_recordings(None, 1)[0], rate)
        voice = pipeline.embed(speech, rate)
        for seconds in workload.lengths_s:
            source = looped(speech, round(seconds * rate))
            calls = {"ours": lambda source=source: pipeline.convert(source, voice, source_sample_rate=rate)}
            timing = time_together(calls, workload.repeats)["ours"]  # type: ignore[arg-type]
            rows.append({"audio_s": seconds, "rtf": significant(timing.median / seconds)})
    report.add("pipeline", Section("whole conversions, ONNX Runtime on CUDA", rows, "Median of the runs."))


def _stream(device: str) -> int:
    return int(torch.cuda.current_stream().cuda_stream) if device == "cuda" else 0


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _finite(value: float) -> float | None:
    return significant(value) if value < float("inf") else None


def main(
    quick: Quick = False,
    library: Annotated[
        Path | None, typer.Option(help=f"A compiled {LIBRARY}; compiled here if left out.")
    ] = None,
    repository: Repository = None,
    results: Results = DEFAULT_RESULTS,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Also tests on the device, CUDA graphs, live streams, training steps."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of all that is written; --results if left out.")
    ] = None,
) -> None:
    """Measures the CUDA kernels of the custom ops, and conversions on the GPU."""
    results = out or results
    workload = QUICK if quick else Workload()
    try:
        require_cuda()
        kernels = KernelLibrary(library or build_library())
    except (GpuError, OSError) as error:
        raise typer.Exit(fail(f"benchmark: {error}")) from error
    environment = Environment.here(PACKAGES)
    device = measure_device(workload.repeats)
    settings = {
        "quick": quick,
        "device": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "copy_gb_per_s": significant(device.bandwidth / 1e9, 4),
        "fp32_tflops": significant(device.rate / 1e12, 4),
        "batches": workload.batches,
        "lengths_s": workload.lengths_s,
        "repeats": workload.repeats,
    }
    report = Report("gpu", environment, settings)
    report.print_head()
    check_kernels(report, kernels, workload)
    measure_kernels(report, kernels, device, workload)
    measure_pipeline(report, repository, workload)
    if everything:
        import gpu_all  # which needs what training needs

        gpu_all.measure_graphs(report, kernels, seconds_per_call, workload.repeats)
        gpu_all.measure_streams(report, repository, 100 if quick else 1000)
        gpu_all.measure_training(report, "cuda", 3 if quick else 20, small=quick)
        report.save(results)  # the tests come last: nothing is lost if their time runs out
        gpu_all.run_device_tests(report, results)
    report.print_aims()
    report.save(results)


if __name__ == "__main__":
    # torch.compile would take triton.py of this folder for the compiler of that name.
    sys.path.pop(0)
    typer.run(main)
