"""TensorRT for imported voices: profiles, the parser's rules, FP16, and plans."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import published
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from imported_voices import Files

from autovoice.repository.reader import ModelRepository
from autovoice_export.build_errors import ParityError
from autovoice_export.config_types import Instances
from autovoice_export.onnx.graph import element_types, holds_half
from autovoice_export.parity import compare, session_run
from autovoice_export.rvc import plans, wiring
from autovoice_export.rvc.faiss_index import FeatureIndex
from autovoice_export.rvc.geometry import GRID, SOURCE_RATE
from autovoice_export.rvc.importing import ImportRequest, import_voice
from autovoice_export.rvc.retrieval import Retrieval
from autovoice_export.tensorrt import parity, plan_config
from autovoice_export.tensorrt.buckets import AXIS_RATES, profiles
from autovoice_export.tensorrt.graph_rules import check_models
from autovoice_export.tensorrt.plan_config_check import models_for_plans
from autovoice_export.tensorrt.plans import Precision, half_model, plan_jobs

SUNG = ("contentvec", "rvc_pitch_yin", "sung_retrieval", "sung_synthesizer")
MODELS = {*SUNG, "contentvec_v1", "plain_synthesizer", "rmvpe", "tracked_synthesizer"}
LONGEST = wiring.MAX_INPUT_BYTES // 4


@pytest.fixture(scope="session")
def half_repository(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a voice of version v1 in FP16, with RMVPE for its pitch and bridged gaps."""
    folder = files.repository.parent / "half"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            sources = tmp_path_factory.mktemp("half")
            voice = published.save_voice(sources / "voice.pth", version="v1", sample_rate=32000, seed=3)
            torch.save(published.rmvpe(), sources / "rmvpe.pt")
            request = ImportRequest(
                voice,
                "half",
                sources / "models",
                contentvec=files.contentvec_v1,
                pitch="rmvpe",
                rmvpe=sources / "rmvpe.pt",
                unvoiced="interpolate",
                half=True,
            )
            import_voice(request)
            shutil.move(sources / "models", folder)
    return folder


def test_models_with_weights_have_profiles(files: Files, half_repository: Path) -> None:
    assert set(models_for_plans(ModelRepository(files.repository))) == MODELS
    assert set(models_for_plans(ModelRepository(half_repository))) == {
        "contentvec_v1_fp16",
        "half_synthesizer",
        "rmvpe",
    }


def test_every_exported_file_holds_to_the_rules(files: Files, half_repository: Path) -> None:
    for root in (files.repository, half_repository):
        assert len(list(root.rglob("*.onnx"))) > 6
        assert not [str(violation) for violation in check_models(root)]


@given(st.integers(1, LONGEST), st.integers(1, wiring.MAX_BATCH_SIZE))
def test_every_request_has_a_profile(samples: int, batch: int) -> None:
    steps = -(-samples // GRID)
    made = profiles((wiring._AUDIO,), AXIS_RATES, plans.WINDOWS, wiring.MAX_BATCH_SIZE)
    assert any(profile.shapes["AUDIO"].holds((batch, GRID * steps)) for profile in made)


def test_first_profile_is_made_for_live_windows(files: Files) -> None:
    samples = wiring.CONTEXT_LEFT_SAMPLES + wiring.CONTEXT_RIGHT_SAMPLES + 24 * SOURCE_RATE // 100
    for model in SUNG[:2]:
        window, *_ = plan_config.read_profiles(plan_config.read_plan_config(files.repository / model))
        assert window.shapes["AUDIO"].typical == (4, samples)


@pytest.mark.parametrize(("vectors", "taken"), [(500, True), (50_000, False)])
def test_large_searches_stay_with_onnx_runtime(vectors: int, taken: bool) -> None:
    index = FeatureIndex(
        torch.zeros(1, 2), torch.zeros(vectors, 2), torch.zeros(vectors, dtype=torch.int64), 1
    )
    models = wiring.VoiceModels("voice", "contentvec", None, True, 40000)
    stage = wiring.retrieval_stage(models, Retrieval(index), 2)
    config = wiring.model_config(stage, Instances(), {})
    assert (plans.plan_config(stage, config) is not None) == taken


@pytest.mark.parametrize("model", ["contentvec", "sung_retrieval", "sung_synthesizer"])
def test_conversion_to_half_precision(files: Files, model: str) -> None:
    (job,) = plan_jobs(ModelRepository(files.repository), [model])
    run = session_run(job.onnx_path)
    half, shares = half_model(job, run)
    assert all(share < 0.7 for share in shares.values())
    assert holds_half(half)
    kinds = element_types(half)
    # What is decided is decided on exact values.
    decided = [node for node in half.graph.node if node.op_type in ("TopK", "Round", "Less", "Greater")]
    assert all(kinds[name] != onnx.TensorProto.FLOAT16 for node in decided for name in node.input)
    if model == "sung_synthesizer":
        *_, feed = parity.example_feeds(job.model, plan_config.read_profiles(job.config)[0])
        expected, found = (item(feed) for item in (run, session_run(half.SerializeToString())))
        np.testing.assert_array_equal(found["SOURCE_F0"], expected["SOURCE_F0"])
        assert np.abs(found["AUDIO"] - expected["AUDIO"]).max() < 5e-3 * np.abs(expected["AUDIO"]).max()


def test_voice_in_half_precision_can_be_converted_again(half_repository: Path) -> None:
    (job,) = plan_jobs(ModelRepository(half_repository), ["half_synthesizer"])
    assert holds_half(job.model)
    _, shares = half_model(job, session_run(job.onnx_path))
    assert all(share < 0.5 for share in shares.values())


def test_near_neighbours_may_change_places() -> None:
    want = np.zeros((1, 1000, 4), np.float32)
    have = want.copy()
    have[0, :5] = 1.0
    tolerance = parity.TOLERANCES["fp32"]
    agreement = compare(
        "plan", lambda feed: {"RETRIEVED": have}, [({}, {"RETRIEVED": want})], tolerance, "it"
    )
    assert agreement.shares == {"RETRIEVED": pytest.approx(0.5)}
    with pytest.raises(ParityError, match=r"plan: CONTENT is 1e\+03 times as far from that of it as allowed"):
        compare("plan", lambda feed: {"CONTENT": have}, [({}, {"CONTENT": want})], tolerance, "it")


def test_command_builds_a_voice(
    files: Files, build_plans: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    root = tmp_path / "models"
    shutil.copytree(files.repository, root)
    done = build_plans(root, *(f"--model={name}" for name in SUNG))
    assert done.returncode == 0, done.stderr
    for name in SUNG:
        assert f"{name:24} fp32 for NVIDIA A10" in done.stderr
        plan = json.loads((root / name / "1" / "sm_86.plan").read_text())
        longest = {shape[0]: shape[1] for _, _, shape in (next(iter(p.values())) for p in plan["profiles"])}
        assert len(plan["profiles"]) == 3
        assert list(longest) == [wiring.MAX_BATCH_SIZE]
    layers = json.loads((root / "sung_synthesizer" / "1" / "sm_86.plan").read_text())["layers"]
    assert "HarmonicSource" in {layer["LayerType"] for layer in layers}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_plan_agrees_with_onnx_runtime(
    build_real_plan: Callable[[Path, str, Precision], None],
    files: Files,
    tmp_path: Path,
    model: str,
    precision: Precision,
) -> None:
    shutil.copytree(files.repository, tmp_path / "models")
    build_real_plan(tmp_path / "models", model, precision)


@pytest.mark.parametrize("model", ["contentvec_v1_fp16", "half_synthesizer", "rmvpe"])
def test_plan_of_a_voice_in_half_precision(
    build_real_plan: Callable[[Path, str, Precision], None], half_repository: Path, tmp_path: Path, model: str
) -> None:
    shutil.copytree(half_repository, tmp_path / "models")
    build_real_plan(tmp_path / "models", model, "fp32")
