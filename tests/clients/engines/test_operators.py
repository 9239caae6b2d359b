"""What operators cost, as ONNX Runtime's own profiler counts it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from toy_repository import MODELS

from autovoice import PipelineConfig, VoiceConversionPipeline, read_audio, write_audio
from autovoice.cli.main import run
from autovoice.engines.local import LocalEngine
from autovoice.engines.operators import _added_up, _runs
from autovoice.errors import ConfigurationError
from autovoice.repository.reader import ModelRepository

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "demo" / "source_rms.flac"
STEPS = {"pad_source", "pitch_extractor", "content_encoder", "synthesizer", "trim_output"}
RATE = 24_000


def test_every_model_of_a_conversion_and_what_it_computes_most(repository: Path) -> None:
    audio, rate = read_audio(SOURCE)
    with VoiceConversionPipeline(PipelineConfig(repository=repository, device="cpu")) as pipeline:
        voice = pipeline.embed(audio, rate)
        seen: list[str] = []
        profile = pipeline.profile_conversion(
            audio[: 2 * rate],
            voice,
            None,
            rate,
            operators=True,
            progress_callback=lambda step: seen.append(step.stage),
        )
        assert pipeline.stats.total == 1
    assert seen.count("finish") == 1
    assert {each.model for each in profile.operators} == STEPS
    assert [each.total_ms for each in profile.operators] == sorted(
        (each.total_ms for each in profile.operators), reverse=True
    )
    assert sum(each.share for each in profile.operators) == pytest.approx(1.0)
    assert {each.calls for each in profile.operators} == {1}  # one request, in which each node ran once
    assert not any(each.is_kernel for each in profile.operators)
    types = {(each.model, each.operator) for each in profile.operators}
    assert {("synthesizer", "MatMul"), ("content_encoder", "MatMul"), ("pitch_extractor", "Concat")} <= types
    assert len(json.loads(json.dumps(profile.to_dict()))["operators"]) == len(profile.operators)


def test_calls_are_counted_over_the_blocks_of_a_long_source(toy: Path, voice: np.ndarray) -> None:
    config = PipelineConfig(repository=toy, device="cpu", block_seconds=1.0)
    with VoiceConversionPipeline(config, record_operators=True) as pipeline:
        pipeline.convert(np.full(3 * RATE, 0.1, np.float32), voice, None, RATE)
        found = pipeline.operator_times()
        assert pipeline.operator_times() == found
    streams = [each for each in found if each.model.endswith("_stream")]
    assert {each.model for each in streams} == {
        "pitch_extractor_stream",
        "delay_stream",
        "synthesizer_stream",
    }
    assert {each.calls for each in streams} == {4}  # three blocks, and what the look-ahead holds back


def test_a_recording_changes_no_sample_and_no_other_pipeline(toy: Path, voice: np.ndarray) -> None:
    config = PipelineConfig(repository=toy, device="cpu")
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, RATE).astype(np.float32)
    with VoiceConversionPipeline(config) as plain:
        expected = plain.convert(audio, voice, None, RATE)
        with VoiceConversionPipeline(config, record_operators=True) as recording:
            made = recording.convert(audio, voice, None, RATE)
            plain.convert(audio, voice, None, RATE)
            calls = Counter(each.calls for each in recording.operator_times())
    np.testing.assert_array_equal(made, expected)
    assert set(calls) == {1}


def test_what_cannot_be_recorded_is_refused(toy: Path, voice: np.ndarray) -> None:
    served = PipelineConfig(backend="grpc://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="not seen in a server"):
        VoiceConversionPipeline(served, record_operators=True)
    engine = LocalEngine(ModelRepository(toy))
    with pytest.raises(ConfigurationError, match="not seen in a given engine"):
        VoiceConversionPipeline(engine=engine, record_operators=True)
    with VoiceConversionPipeline(engine=engine) as pipeline:
        with pytest.raises(ConfigurationError, match="only where this process runs the models"):
            pipeline.profile_conversion(np.ones(480), voice, None, RATE, operators=True)
        with pytest.raises(ConfigurationError, match="record_operators=True"):
            pipeline.operator_times()
        assert pipeline.stats.total == 0


def test_kernels_of_a_gpu_are_apart_from_nodes() -> None:
    """Events as ONNX Runtime writes them with CUDA; each kind's shares are of its own total."""
    events = [
        {"cat": "Session", "name": "model_run", "dur": 9000, "args": {}},
        {"cat": "Node", "name": "conv_kernel_time", "dur": 30, "args": {"op_name": "Conv"}},
        {"cat": "Node", "name": "conv_kernel_time", "dur": 30, "args": {"op_name": "Conv"}},
        {"cat": "Node", "name": "add_kernel_time", "dur": 40, "args": {"op_name": "Add"}},
        {"cat": "Kernel", "name": "sm80_xmma_fprop", "dur": 500, "args": {"op_name": "Conv"}},
    ]
    kernel, conv, add = _added_up(_runs("synthesizer", events))
    assert (kernel.is_kernel, kernel.name, kernel.total_ms, kernel.share) == (
        True,
        "sm80_xmma_fprop",
        0.5,
        1.0,
    )
    assert (conv.name, conv.operator, conv.calls, conv.share) == ("conv", "Conv", 2, pytest.approx(0.6))
    assert (add.name, add.calls, add.share) == ("add", 1, pytest.approx(0.4))


def test_the_command_prints_tables_on_stderr(
    toy: Path, voice: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_audio(tmp_path / "in.wav", np.full(8000, 0.1, np.float32), 8000)
    np.save(tmp_path / "voice.npy", voice)
    command = ["convert", str(tmp_path / "in.wav"), "--target", str(tmp_path / "voice.npy")]
    command += ["-o", str(tmp_path / "out.wav"), "--repository", str(toy), "--device", "cpu"]
    command += ["--overwrite", "--profile-operators"]
    assert run(command) == 0
    tables = capfd.readouterr().err.split("\n\n")
    assert [table.split("\n")[0].split() for table in tables if table.strip()] == [
        ["model", what, "calls", "ms", "share"] for what in ("operator", "node")
    ]
    assert {line.split()[0] for line in tables[0].split("\n")[1:]} <= set(MODELS)
    assert run([*command, "--json", "--profile"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    report = json.loads(out)
    assert {each["model"] for each in report["operators"]} >= {"pitch_extractor", "synthesizer"}
    assert isinstance(report["gpus"], list)
