"""What `python benchmarks/gpu.py --all` runs beside the kernels' own tables, in one visit to a GPU."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import gpu_ops
import numpy as np
import torch
from report import ROOT, Aim, Report, Section, significant, skipped
from speech import find_recordings, load, looped

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.engines.onnx_session import available_devices
from autovoice_export.base.stages.sizes import IDENTITY_SIZE, KEY_SIZE, TOKENS
from autovoice_export.base.stages.synthesizer import Synthesizer
from autovoice_plugins.geometry import HOP
from autovoice_plugins.kernels import KernelLibrary
from autovoice_training.train.config import ContentConfig, StageConfig, SynthesizerTraining
from autovoice_training.train.content import ContentTraining, KeyedEncoder
from autovoice_training.train.data import Batch
from autovoice_training.train.loop import TrainingLoop
from autovoice_training.train.synthesizer import SynthesizerLoop

TEST_SECONDS = 240
LIVE_MS = 20
MELS = 80


def run_device_tests(report: Report, out: Path) -> None:
    """Kernels against the reference, plugins through the harness, compute-sanitizer: the tests marked `gpu`.

    Their output lies in `device_tests.txt`, the outcome of each in `device_tests.xml`.
    """
    out.mkdir(parents=True, exist_ok=True)
    junit = out / "device_tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/plugins",
        "-m",
        "gpu",
        "-q",
        "-rs",
        f"--junitxml={junit}",
    ]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TEST_SECONDS
        )
        text = done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        text = f"{error.stdout or ''}\nnot done after {TEST_SECONDS} s"
    (out / "device_tests.txt").write_text(text, encoding="utf-8")
    rows = outcomes(junit)
    report.add("device_tests", Section("tests on the device", rows, "pytest tests/plugins -m gpu"))
    failed = sum(row["failed"] for row in rows)
    passed = sum(row["passed"] for row in rows)
    report.aims.append(
        Aim("tests on the device", "none fails", f"{passed} passed, {failed} failed", passed > 0 == failed)
    )


def outcomes(junit: Path) -> list[dict[str, Any]]:
    """Passed, failed and skipped tests of each file in a report of pytest; nothing where there is none."""
    if not junit.is_file():
        return []
    rows: dict[str, dict[str, Any]] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        name = case.get("classname", "").split(".")[2:3] or ["?"]
        row = rows.setdefault(name[0], {"file": name[0], "passed": 0, "failed": 0, "skipped": 0})
        kinds = {child.tag for child in case}
        row["failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"] += 1
    return list(rows.values())


def measure_graphs(report: Report, library: KernelLibrary, seconds_per_call: Any, repeats: int) -> None:
    """Every kernel captured in a CUDA graph: the same results as launched, and the time of a replay."""
    rows = []
    for op in gpu_ops.OPS:
        for frames in (2, 1000):
            case = gpu_ops.make_case(library, op, 1, frames, "cuda")
            stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            with torch.cuda.stream(stream):
                gpu_ops.launch(library, case, stream.cuda_stream)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, stream=stream):
                gpu_ops.launch(library, case, stream.cuda_stream)
            for output in case.outputs:
                output.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            found = gpu_ops.deviations(case, [0])
            launched = seconds_per_call(
                lambda case=case: gpu_ops.launch(library, case, torch.cuda.current_stream().cuda_stream),
                repeats,
            )
            replayed = seconds_per_call(graph.replay, repeats)
            rows.append(
                {
                    "op": op,
                    "frames": frames,
                    "launch_us": significant(launched * 1e6),
                    "replay_us": significant(replayed * 1e6),
                    "deviation": max(value for name, value in found.items() if name != "f0_off"),
                }
            )
    report.add(
        "graphs", Section("kernels in CUDA graphs, batch 1", rows, "Outputs are cleared before a replay.")
    )
    worst = max(row["deviation"] for row in rows)
    report.aims.append(
        Aim("replayed kernels", f"within {gpu_ops.TOLERANCE:g}", f"{worst:.1g}", worst <= gpu_ops.TOLERANCE)
    )


def measure_streams(report: Report, repository: Path | None, chunks: int) -> None:
    """Live streams that a GPU keeps up with, one after another in one process: chunks of 20 ms."""
    if "cuda" not in available_devices():
        skipped(report.console, "live streams", "this ONNX Runtime has no CUDA; pip install onnxruntime-gpu")
        return
    config = PipelineConfig(repository=repository, device="cuda", fallback="raise")
    with VoiceConversionPipeline(config) as pipeline:
        rate = pipeline.sample_rate
        speech = load(find_recordings(None, 1)[0], rate)
        voice, size = pipeline.embed(speech, rate), rate * LIVE_MS // 1000
        source = looped(speech, chunks * size)
        times = []
        with pipeline.stream(voice, sample_rate=rate) as stream:
            for start in range(0, source.size, size):
                began = time.perf_counter()
                stream.push(source[start : start + size])
                times.append(time.perf_counter() - began)
    median, slow = np.percentile(times[chunks // 10 :], [50, 99])
    row = {
        "chunk_ms": LIVE_MS,
        "p50_ms": significant(median * 1e3),
        "p99_ms": significant(slow * 1e3),
        "streams": int(LIVE_MS / 1e3 / median),
    }
    report.add(
        "streams", Section("live streams, ONNX Runtime on CUDA", [row], "Streams: 20 ms over the median.")
    )


def measure_training(report: Report, device: str, steps: int, *, small: bool = False) -> None:
    """Seconds of an optimiser step of both parts of the voice, on batches of noise of the usual shapes."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for loop in training_loops(Path(folder), torch.device(device), small=small):
            loop.update()
            _synchronize(device)
            began = time.perf_counter()
            for _ in range(steps):
                loop.update()
            _synchronize(device)
            rows.append({"part": loop.name, "s_per_step": significant((time.perf_counter() - began) / steps)})
    report.add("training", Section("optimiser steps, discriminators included", rows, "Batches of noise."))


def training_loops(folder: Path, device: torch.device, *, small: bool) -> list[TrainingLoop]:
    """Both parts with weights of chance, whose sampler gives batches of noise."""
    size = {"batch_size": 4, "crop_frames": 60} if small else {}
    content = ContentConfig(**size)
    history = 20 if small else SynthesizerTraining().history_frames
    synthesizer = SynthesizerTraining(**size, history_frames=history, adversarial_from=0)
    encoders = KeyedEncoder()
    return [
        ContentTraining("content", KeyedEncoder(), Noise(content, 0), content, 1, folder, device),  # type: ignore[arg-type]
        SynthesizerLoop(encoders, Synthesizer(), Noise(synthesizer, history), synthesizer, 1, folder, device),  # type: ignore[arg-type]
    ]


class Noise:
    """Stands for a sampler where there is no corpus: what a step costs does not depend on what is in it."""

    def __init__(self, config: StageConfig, history: int) -> None:
        self.history, self._items, self._frames = history, config.batch_size, config.crop_frames
        self._reference = TOKENS if history else 320

    def batch(self, step: int, split: str) -> Batch:
        """Log mel power and audio of noise."""
        del split
        generator = torch.Generator().manual_seed(step)
        items, frames, history = self._items, self._frames, self.history

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        pitch = torch.stack([noise(items, frames).abs() * 50 + 120, torch.full((items, frames), 0.9)], dim=2)
        melody = torch.stack(
            [torch.full((items, history + frames), 150.0), torch.full((items, history + frames), 0.9)], dim=2
        )
        identity = torch.nn.functional.normalize(noise(2 * items, IDENTITY_SIZE), dim=1)
        return Batch(
            source=noise(items, history + frames + 1, MELS) - 5,
            past=torch.full((items,), history),
            perturb=torch.arange(items) % 2 == 0,
            reverse=torch.arange(items) % 3 == 0,
            melody=melody,
            usual_f0=torch.full((items,), 150.0),
            phones=torch.randint(0, 20, (items, frames), generator=generator),
            target=noise(items, frames, MELS) - 5,
            audio=noise(items, frames * HOP) * 0.1,
            pitch=pitch,
            identity=identity[:items],
            reference=noise(items, self._reference, MELS) - 5,
            keys=torch.nn.functional.normalize(noise(items, TOKENS, KEY_SIZE), dim=2),
            reference_phones=torch.randint(0, 20, (items, self._reference), generator=generator),
            source_identity=identity[items:],
            native_rate=torch.full((items,), 24000.0),
            paired=torch.arange(items) > 0,
        )


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
