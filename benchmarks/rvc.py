"""Imported RVC voices: speed beside PyTorch, memory, import time, windows: `python benchmarks/rvc.py`.

Without --voice it makes files of the published layout and size with random weights: apart from the window
curve, what is measured does not depend on the weights.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from options import Quick, Results
from report import DEFAULT_RESULTS, ROOT, Aim, Environment, Report, Section, significant
from timing import cores, time_together
from torch import nn

from autovoice.engines.local import LocalEngine
from autovoice.engines.onnx_session import make_session
from autovoice.repository.reader import ModelRepository
from autovoice_export.examples import voice as example_voice
from autovoice_export.onnx.graph import load_model
from autovoice_export.onnx.half import measure_ranges, to_half
from autovoice_export.parity import session_run
from autovoice_export.rvc.geometry import GRID, SOURCE_RATE
from autovoice_export.rvc.hubert_weights import load_hubert
from autovoice_export.rvc.importing import ImportRequest, import_voice
from autovoice_export.rvc.voice import PitchedVoice
from autovoice_export.rvc.voice_checkpoint import load_voice
from autovoice_export.rvc.wiring import CONTEXT_LEFT_SAMPLES, CONTEXT_RIGHT_SAMPLES

# PyTorch's exporter would take triton.py of this folder for the compiler of that name.
sys.path.pop(0)
sys.path.insert(0, str(ROOT / "tests" / "export" / "rvc"))

import published
import reference

PACKAGES = ("autovoice", "onnxruntime", "torch", "onnx", "numpy")
STATED = CONTEXT_LEFT_SAMPLES / SOURCE_RATE, CONTEXT_RIGHT_SAMPLES / SOURCE_RATE
MIN_SPEEDUP = 1.5
MAX_IMPORT_S = 60.0
CHILD = """
import sys, psutil
from autovoice.engines.onnx_session import make_session
kept, before = [], psutil.Process().memory_info().rss
for path in sys.argv[1:]:
    kept.append(make_session(path))
    now = psutil.Process().memory_info().rss
    print((now - before) / 1e6)
    before = now
"""


@dataclass(frozen=True)
class Workload:
    """How much is measured.

    Attributes:
        full: whether networks have their published sizes.
        lengths_s: audio of the speed table.
        repeats: runs of each cell.
        contexts_s: of the window curve, before and after its core.
        recording_s: of the window curve; its core is 2 s in the middle.
    """

    full: bool = True
    lengths_s: tuple[float, ...] = (1, 4)
    repeats: int = 3
    contexts_s: tuple[tuple[float, float], ...] = (
        (0, 0),
        (0.2, 0.2),
        (0.5, 0.5),
        (1, 1),
        STATED,
        (2, 2),
        (3, 3),
    )
    recording_s: float = 10.0


QUICK = Workload(False, (1,), 1, ((0.2, 0.2), STATED), 8.0)


def prepare(folder: Path, workload: Workload) -> tuple[Path, Path]:
    """A voice and a content encoder of random weights."""
    widths = published.FULL if workload.full else published.NARROW
    voice = published.save_voice(folder / "voice.pth", widths=widths, speakers=109)
    sizes = published.HUBERT_BASE if workload.full else published.HubertSizes()
    return voice, published.save_hubert(folder / "contentvec", sizes)


def measure_import(report: Report, voice: Path, contentvec: Path, repository: Path) -> None:
    """Time of a first import, which brings the content encoder, and of a second, which shares it."""
    rows = []
    for name, encoder in (("first", contentvec), ("second", None)):
        wall, cpu = time.perf_counter(), time.process_time()
        result = import_voice(ImportRequest(voice, name, repository, contentvec=encoder))
        rows.append(
            {
                "voice": name,
                "wall_s": significant(time.perf_counter() - wall),
                "cpu_s": significant(time.process_time() - cpu),
                "models_written": len(result.written),
                "worst_share_of_tolerance": significant(max(line.worst for line in result.parity)),
            }
        )
    size = voice.stat().st_size / 1e6
    report.add("import", Section(f"import of a checkpoint of {size:.0f} MB, with the check", rows))
    second = float(str(rows[1]["wall_s"]))
    report.aims.append(Aim("import", f"under {MAX_IMPORT_S:g} s", f"{second:.1f} s", second < MAX_IMPORT_S))


def measure_speed(
    report: Report, workload: Workload, voice: Path, contentvec: Path, repository: Path
) -> None:
    """RTF of the two networks in ONNX Runtime and in PyTorch, one thread each, in turns."""
    torch.set_num_threads(1)
    checkpoint = load_voice(voice)
    modules: dict[str, nn.Module] = {
        "contentvec": load_hubert(contentvec, checkpoint.version),
        "first_synthesizer": PitchedVoice(checkpoint.synthesizer, bridges_gaps=False).eval(),
    }
    published_form = _published_form(voice, contentvec)
    rows = []
    totals: dict[float, list[float]] = {seconds: [0.0, 0.0] for seconds in workload.lengths_s}
    for model, module in modules.items():
        session = make_session(repository / model / "1" / "model.onnx")
        for seconds in workload.lengths_s:
            inputs = _inputs(
                model, round(seconds * SOURCE_RATE) // GRID, checkpoint.synthesizer.config.content
            )
            feeds = {name: value.numpy() for name, value in inputs.items()}
            arguments = list(inputs.values())

            def in_pytorch(module: nn.Module = module, arguments: list[Any] = arguments) -> None:
                with torch.inference_mode():
                    module(*arguments)

            def in_onnxruntime(session: Any = session, feeds: dict[str, Any] = feeds) -> None:
                session.run(None, feeds)

            def plainly(inputs: dict[str, torch.Tensor] = inputs, model: str = model) -> None:
                with torch.inference_mode():
                    _plain(model, published_form, inputs)

            with cores(1):
                calls = {"plain": plainly, "modules": in_pytorch, "onnxruntime": in_onnxruntime}
                times = time_together(calls, workload.repeats)
            mine, theirs = times["onnxruntime"].median, times["plain"].median
            totals[seconds][0] += mine
            totals[seconds][1] += theirs
            rows.append(
                {
                    "model": model.removeprefix("first_"),
                    "audio_s": seconds,
                    "onnxruntime_rtf": significant(mine / seconds),
                    "pytorch_rtf": significant(theirs / seconds),
                    "speedup": significant(theirs / mine),
                    "exported_modules_rtf": significant(times["modules"].median / seconds),
                }
            )
    report.add(
        "speed",
        Section(
            "ONNX Runtime beside PyTorch (eager) on the same network, 1 thread",
            rows,
            "RTF = median time / audio time. PyTorch runs networks as published: convolutions of one axis, "
            "weight normalisation undone on the way. In the last column it runs the exported modules.",
        ),
    )
    mine, theirs = totals[workload.lengths_s[-1]]
    ratio = theirs / mine
    report.aims.append(
        Aim("speed over PyTorch", f"at least {MIN_SPEEDUP:g}", f"{ratio:.2f}", ratio >= MIN_SPEEDUP)
    )


def measure_memory(report: Report, repository: Path) -> None:
    """What loading the encoder, a voice and a second voice adds to a process."""
    models = ("contentvec", "first_synthesizer", "second_synthesizer")
    paths = [repository / model / "1" / "model.onnx" for model in models]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths)], capture_output=True, text=True, check=True
    )
    rows = [
        {
            "model": model,
            "file_mb": significant(path.stat().st_size / 1e6),
            "adds_mb": significant(float(line)),
        }
        for model, path, line in zip(models, paths, done.stdout.split(), strict=True)
    ]
    report.add("memory", Section("resident memory that each model adds when it is loaded", rows))


def measure_half(report: Report, repository: Path) -> None:
    """Deviation of the float16 files, ONNX Runtime on the CPU."""
    rows = []
    for name in ("contentvec", "first_synthesizer"):
        model = load_model(repository / name / "1" / "model.onnx")
        feed = {key: value.numpy() for key, value in _inputs(name, 50, 768).items()}
        halved = to_half(model, measure_ranges(model, [feed]), ())
        output = "CONTENT" if name == "contentvec" else "AUDIO"
        whole, half = (session_run(item.SerializeToString())(feed)[output] for item in (model, halved))
        error = float(np.square(half - whole).mean() / np.square(whole).mean())
        rows.append(
            {
                "model": name.removeprefix("first_"),
                "snr_db": significant(-10 * float(np.log10(error))),
                "worst_over_peak": significant(float(np.abs(half - whole).max() / np.abs(whole).max())),
            }
        )
    report.add("half", Section("float16 against float32, 1 s", rows))


def measure_context(report: Report, workload: Workload, repository: Path) -> None:
    """How far the core of a window is from the uncut recording, by the context around it."""
    engine = LocalEngine(ModelRepository(repository), threads=1)
    samples = round(workload.recording_s * SOURCE_RATE) // GRID * GRID
    audio = example_voice((1, samples), SOURCE_RATE, np.random.default_rng(7))
    settings: dict[str, Any] = {
        "SPEAKER_ID": np.int64([[0]]),
        "PITCH_SHIFT": np.float32([[0]]),
        "INDEX_RATE": np.float32([[0]]),
        "PROTECT": np.float32([[0.5]]),
        "RMS_MIX": np.float32([[1]]),
    }
    hop = int(engine.spec("first").parameters["output_sample_rate"]) // 100
    frames = audio.shape[1] // 160
    first, last = frames // 2 - min(100, frames // 8), frames // 2 + min(100, frames // 8)
    first, last = first // 2 * 2, last // 2 * 2
    whole = _window(engine, audio, settings, 0, 0, 0.0)
    expected = whole["CONVERTED_AUDIO"][0, first * hop : last * hop]
    steps = np.round(whole["F0"][0, :first].astype(np.float64) * 0.01 * 2**24)
    phase = float((steps.sum() / 2**24) % 1.0)
    rows = []
    for left_s, right_s in workload.contexts_s:
        left, right = (round(context * 50) * 2 for context in (left_s, right_s))
        start, stop = max(0, first - left), min(last + right, frames)
        piece = audio[:, start * 160 : stop * 160]
        part = _window(engine, piece, settings, start, first - start, phase)["CONVERTED_AUDIO"]
        core = part[0, (first - start) * hop : (last - start) * hop]
        error = np.sqrt(np.mean((core - expected) ** 2) / np.mean(expected**2))
        rows.append({"left_s": left_s, "right_s": right_s, "error": significant(float(error))})
    report.add(
        "context",
        Section(
            f"core of a window beside the recording of {workload.recording_s:g} s it is cut from",
            rows,
            f"RMS of the difference over RMS; clients take {STATED[0]:g} s and {STATED[1]:g} s. Attention "
            "and the normalisation over time see all that they are given, so the difference falls but "
            "never to nothing.",
        ),
    )


def _window(
    engine: LocalEngine,
    audio: Any,
    settings: dict[str, Any],
    first_frame: int,
    anchor: int,
    phase: float,
) -> dict[str, Any]:
    place = {
        "FIRST_FRAME": np.int64([[first_frame]]),
        "ANCHOR_FRAME": np.int64([[anchor]]),
        "ANCHOR_PHASE": np.float32([[phase]]),
    }
    return engine.infer("first_window", {"SOURCE_AUDIO": audio, **settings, **place})


def _published_form(voice: Path, contentvec: Path) -> dict[str, Any]:
    """Weights for the plain form of both networks, float32."""
    from safetensors.torch import load_file

    content = torch.load(voice, map_location="cpu", weights_only=True)
    content["weight"] = {name: tensor.float() for name, tensor in content["weight"].items()}
    layers = json.loads((contentvec / "config.json").read_text())
    return {"voice": content, "hubert": load_file(contentvec / "model.safetensors"), "settings": layers}


def _plain(model: str, form: dict[str, Any], inputs: dict[str, torch.Tensor]) -> None:
    """Runs a network written out from its description, as the tests hold the exported one to."""
    if model == "contentvec":
        settings = form["settings"]
        audio = torch.nn.functional.pad(inputs["AUDIO"], (0, 80))
        layers, heads = settings["num_hidden_layers"], settings["num_attention_heads"]
        reference.encode(form["hubert"], heads, audio, layers, projected=False)
        return
    f0, config = inputs["F0"], form["voice"]["config"]
    noise = torch.randn(1, f0.shape[1], config[2]), torch.randn(1, f0.shape[1] * config[-1] // 100)
    reference.synthesise(form["voice"], inputs["CONTENT"], f0, 0, *noise)


def _inputs(model: str, steps: int, content: int) -> dict[str, torch.Tensor]:
    if model == "contentvec":
        audio = example_voice((1, steps * GRID), SOURCE_RATE, np.random.default_rng(7))
        return {"AUDIO": torch.from_numpy(audio)}
    generator = torch.Generator().manual_seed(5)
    zero = torch.zeros(1, 1)
    return {
        "CONTENT": torch.randn(1, steps, content, generator=generator),
        "F0": 150.0 + 50.0 * torch.rand(1, 2 * steps, generator=generator),
        "PITCH_SHIFT": zero,
        "ANCHOR_FRAME": zero.long(),
        "ANCHOR_PHASE": zero,
        "SPEAKER_ID": zero.long(),
        "FIRST_FRAME": zero.long(),
    }


def main(
    quick: Quick = False,
    results: Results = DEFAULT_RESULTS,
    voice: Annotated[
        Path | None, typer.Option(help="RVC v2 checkpoint with pitch; random if left out.")
    ] = None,
    contentvec: Annotated[Path | None, typer.Option(help="Its encoder, a transformers folder.")] = None,
) -> None:
    """Measures an imported voice and writes rvc.json."""
    workload = QUICK if quick else Workload()
    settings = {
        "quick": quick,
        "weights": "given"
        if voice
        else "random, of the published sizes"
        if workload.full
        else "random, small",
        "threads": 1,
        "lengths_s": workload.lengths_s,
        "repeats": workload.repeats,
    }
    report = Report("rvc", Environment.here(PACKAGES), settings)
    report.print_head()
    folder = Path(tempfile.mkdtemp(prefix="autovoice-rvc-"))
    try:
        made_voice, made_contentvec = prepare(folder, workload)
        voice, contentvec = voice or made_voice, contentvec or made_contentvec
        repository = folder / "repository"
        measure_import(report, voice, contentvec, repository)
        measure_speed(report, workload, voice, contentvec, repository)
        measure_memory(report, repository)
        measure_half(report, repository)
        measure_context(report, workload, repository)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report.print_aims()
    report.save(results)


if __name__ == "__main__":
    typer.run(main)
