"""RMVPE from a file in its published layout: what it finds, and which files are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import published
import pytest
import reference
import torch
from imported_voices import Files, contents, voice_like

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.cli.main import run
from autovoice.repository.model_config import read_config
from autovoice_export.build_errors import ParityError
from autovoice_export.config_types import VARIABLE, EnsembleConfig, EnsembleStep, TensorConfig
from autovoice_export.onnx.export import export_stage
from autovoice_export.parity import session_run, stage_run
from autovoice_export.rvc import parity, wiring
from autovoice_export.rvc.rmvpe import Rmvpe, Salience, SalienceSizes, load_rmvpe
from autovoice_export.stage import Stage

RATE = 16000


def log_mel(audio: np.ndarray[Any, Any]) -> torch.Tensor:
    """Frames [B, F, 128] as RMVPE was trained on."""
    mel = librosa.feature.melspectrogram(
        y=audio, sr=RATE, n_fft=1024, hop_length=160, n_mels=128, fmin=30, fmax=8000, htk=True,
        power=1.0, center=True, pad_mode="reflect", window="hann",
    )  # fmt: skip
    return torch.from_numpy(np.log(np.maximum(mel, 1e-5)).transpose(0, 2, 1))


@pytest.mark.parametrize("steps", [4, 16, 150])  # 9, 33 and 301 frames: under, over and far from 32
def test_exported_pitch_is_the_reference(files: Files, steps: int) -> None:
    audio = voice_like(2, 320 * steps).numpy()
    weights = {name: tensor.float() for name, tensor in torch.load(files.rmvpe, weights_only=True).items()}
    with torch.no_grad():
        salience = reference.rate_pitches(weights, log_mel(audio)).numpy()[:, : 2 * steps]
        in_torch, passed = load_rmvpe(files.rmvpe)(torch.from_numpy(audio))
    expected = reference.decode_pitch(salience)
    found = files.run("rmvpe", {"AUDIO": audio})
    np.testing.assert_array_equal(found["PASSED_AUDIO"], audio)
    assert torch.equal(passed, torch.from_numpy(audio))
    assert found["F0"].shape == expected.shape == (2, 2 * steps)
    # Where the largest is a near tie, or near the threshold, rounding decides.
    two, one = np.sort(salience, axis=2)[..., -2:].transpose(2, 0, 1)
    clear = (one - two > 1e-5) & (np.abs(one - 0.03) > 1e-4)
    assert clear.mean() > 0.9
    if steps == 150:
        assert 0.1 < (expected > 0).mean() < 0.9
        assert len(np.unique(salience[expected > 0].argmax(axis=1))) > 2
    for f0 in (found["F0"], in_torch.numpy()):
        np.testing.assert_allclose(f0[clear], expected[clear], rtol=1e-3)


def ties(tensors: dict[str, Any]) -> None:
    """All pitches are rated alike: rounding alone decides."""
    tensors["fc.1.weight"].mul_(1e-6)
    tensors["fc.1.bias"].zero_()


def steep(tensors: dict[str, Any]) -> None:
    """Many are rated 1."""
    tensors["fc.1.weight"].mul_(20)


@pytest.mark.parametrize("edit", [ties, pytest.param(steep, marks=pytest.mark.slow)])
def test_ill_conditioned_weights_are_imported(
    edit: Callable[[dict[str, Any]], object], files: Files, tmp_path: Path
) -> None:
    tensors = published.rmvpe()
    edit(tensors)
    torch.save(tensors, tmp_path / "rmvpe.pt")
    stage = wiring.pitch_stage("rmvpe", load_rmvpe(tmp_path / "rmvpe.pt"))
    export_stage(stage, tmp_path / "rmvpe.onnx", {})
    check(stage, tmp_path / "rmvpe.onnx")
    # F0 itself would have refused them.
    audio = voice_like(2, 320 * 40).numpy()
    f0 = [run({"AUDIO": audio})["F0"] for run in (session_run(tmp_path / "rmvpe.onnx"), stage_run(stage))]
    assert np.abs(f0[0] - f0[1]).max() > 10


def test_the_check_sees_other_weights_and_another_decoding(tmp_path: Path, files: Files) -> None:
    stage = wiring.pitch_stage("rmvpe", load_rmvpe(files.rmvpe))
    tensors = {name: tensor.float() for name, tensor in torch.load(files.rmvpe, weights_only=True).items()}
    tensors["fc.1.bias"] += 0.02
    torch.save(tensors, tmp_path / "other.pt")
    other = wiring.pitch_stage("rmvpe", load_rmvpe(tmp_path / "other.pt"))
    export_stage(other, tmp_path / "other.onnx", {})
    with pytest.raises(ParityError, match="SALIENCE"):
        check(stage, tmp_path / "other.onnx")

    class Sharp(Rmvpe):
        def forward(self, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            f0, passed = super().forward(audio)
            return 1.01 * f0, passed

    sharp = Sharp(SalienceSizes.of(tensors))
    sharp.load_state_dict(stage.module.state_dict())
    export_stage(wiring.pitch_stage("rmvpe", sharp.eval()), tmp_path / "sharp.onnx", {})
    with pytest.raises(ParityError, match="F0"):
        check(stage, tmp_path / "sharp.onnx")


def check(stage: Stage, file: Path) -> None:
    step = EnsembleStep("rmvpe", {"AUDIO": "SOURCE_AUDIO"}, {"F0": "F0", "PASSED_AUDIO": "PASSED_AUDIO"})
    source = TensorConfig("SOURCE_AUDIO", (VARIABLE,))
    ensemble = EnsembleConfig("voice", (source,), (TensorConfig("F0", (VARIABLE,)),), (step,), 4, {})
    parity.check_parity(ensemble, {"rmvpe": stage}, {"rmvpe": file}, parity.TOLERANCE)


def test_the_published_sizes_are_the_default() -> None:
    with torch.device("meta"):
        network = Salience(SalienceSizes()).state_dict()
    file = published.rmvpe(published.RMVPE_FULL)
    assert {name: tensor.shape for name, tensor in network.items()} == {
        name: tensor.shape for name, tensor in file.items()
    }
    assert SalienceSizes.of(file) == SalienceSizes()
    assert 180e6 < sum(2 * tensor.numel() for tensor in file.values()) < 182e6


def test_a_voice_sings_what_rmvpe_hears(files: Files) -> None:
    config = read_config(files.repository / "tracked" / "config.pbtxt")
    assert [step.model_name for step in config.ensemble_scheduling.step].count("rmvpe") == 1
    audio = voice_like(1, 24000)[0].numpy()
    with VoiceConversionPipeline(
        PipelineConfig(repository=files.repository, threads=1), voice="tracked"
    ) as pipeline:
        converted = pipeline.convert(audio, source_sample_rate=RATE)
        assert len(converted) == len(audio)
        assert np.abs(converted).max() > 0.01
        higher = pipeline.convert(audio, source_sample_rate=RATE, pitch_shift_semitones=7.0)
    assert np.abs(higher - converted).max() > 0.01


def edited(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path, Files], None]:
    """Writes the tracker with its tensors edited."""

    def write(path: Path, files: Files) -> None:
        tensors = torch.load(files.rmvpe, weights_only=True)
        edit(tensors)
        torch.save(tensors, path)

    return write


def of_another_layout(tensors: dict[str, Any]) -> None:
    tensors["cnn.weight"] = tensors["cnn.weight"][..., 0]
    del tensors["unet.intermediate.layers.2.conv.0.conv.3.weight"]
    tensors["cnn.scale"] = torch.ones(3)


class Command:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return print, ("never",)


BAD_FILES: dict[str, tuple[Callable[[Path, Files], object], str]] = {
    "missing": (lambda path, files: None, "does not exist"),
    "a voice": (lambda path, files: shutil.copy(files.sung, path), "is no complete RMVPE model: "),
    "text": (lambda path, files: path.write_text("not a tracker"), "is no RMVPE model, it is a text file"),
    "truncated": (
        lambda path, files: path.write_bytes(files.rmvpe.read_bytes()[:-5000]),
        "is no RMVPE model, it is truncated",
    ),
    "a list": (lambda path, files: torch.save([torch.zeros(3)], path), "holds a list"),
    "no weights": (lambda path, files: torch.save({"model": 3}, path), "holds no weights: pass --rmvpe"),
    "code": (lambda path, files: torch.save({"model": Command()}, path), "nothing in it was run"),
    "layout": (
        edited(of_another_layout),
        "layers.2.conv.0.conv.3.weight is missing; cnn.weight is [3, 2, 3] and should be [3, 2, 3, 3]",
    ),
    "no sizes": (
        edited(lambda tensors: tensors.update({"cnn.weight": torch.zeros(3), "fc.1.weight": None})),
        "is no complete RMVPE model: ",
    ),
    "recurrence": (
        edited(lambda tensors: tensors.update({"fc.0.gru.weight_hh_l0": torch.zeros(36, 11)})),
        "fc.0.gru.weight_hh_l0 is [36, 11] and should be [36, 12]",
    ),
    "not finite": (
        edited(lambda tensors: tensors["cnn.bias"].fill_(float("inf"))),
        "cnn.bias holds values that are not finite",
    ),
    "other weights": (
        edited(lambda tensors: tensors["cnn.bias"].add_(1.0)),
        "rmvpe has other weights than those given",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_in_one_line(
    case: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, message = BAD_FILES[case]
    path, before = tmp_path / "bad.pt", contents(files.repository)
    write(path, files)
    options = ["--name", "another", "--repository", str(files.repository), "--pitch", "rmvpe"]
    assert run(["import", "rvc", str(files.tracked), *options, "--rmvpe", str(path)]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("autovoice: ")
    assert message in line
    assert "never" not in out
    assert contents(files.repository) == before
