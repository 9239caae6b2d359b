"""What an import makes, refuses and leaves alone."""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from imported_voices import Files, contents, make_index

from autovoice.cli.main import run
from autovoice.repository.model_config import read_config
from autovoice_export.build_errors import ImportFailure
from autovoice_export.repository_check import check_repository
from autovoice_export.rvc.hubert_weights import load_hubert
from autovoice_export.rvc.importing import ImportRequest, import_voice
from autovoice_export.rvc.voice_checkpoint import load_voice


class Payload:
    """A pickle that writes a file when it is opened carelessly."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.proof}",)


def changed(**changes: Any) -> Callable[[Path, Files], None]:
    """Writes a voice with entries of the file replaced."""

    def write(path: Path, files: Files) -> None:
        torch.save({**torch.load(files.sung, weights_only=True), **changes}, path)

    return write


def reweighted(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path, Files], None]:
    """Writes a voice with its tensors edited."""

    def write(path: Path, files: Files) -> None:
        voice = torch.load(files.sung, weights_only=True)
        edit(voice["weight"])
        torch.save(voice, path)

    return write


def truncated(path: Path, files: Files) -> None:
    path.write_bytes(files.sung.read_bytes()[:-2000])


def text(path: Path, files: Files) -> None:
    path.write_text("not a voice")


def training_checkpoint(path: Path, files: Files) -> None:
    torch.save({"model": {}, "iteration": 3, "optimizer": {}, "learning_rate": 1e-4}, path)


def miss_two_and_add_one(weight: dict[str, torch.Tensor]) -> None:
    del weight["dec.conv_post.weight"], weight["enc_p.emb_pitch.weight"]
    weight["surplus"] = torch.zeros(3)
    weight["emb_g.weight"] = weight["emb_g.weight"][:, :5]


BAD_VOICES = {
    "missing file": (lambda path, files: None, "does not exist"),
    "truncated": (truncated, "is no RVC voice, it is truncated"),
    "text": (text, "is no RVC voice, it is a text file"),
    "training": (training_checkpoint, r"holds iteration, learning_rate, model, optimizer: .*'weight'"),
    "version": (changed(version="v3"), "is of version 'v3': v1 and v2"),
    "other version": (
        changed(version="v1"),
        r"enc_p.emb_phone.weight is \[16, 768\] and should be \[16, 256\]",
    ),
    "no f0": (changed(f0=0), "enc_p.emb_pitch.weight is unknown"),
    "short config": (changed(config=[1, 2, 3]), "'config' should be 18 values"),
    "rate": (changed(config=[*published.voice()["config"][:-1], 44100]), "speaks at 44100 Hz"),
    "tensors": (
        reweighted(miss_two_and_add_one),
        r"emb_pitch.weight is missing; dec.conv_post.weight is missing; "
        r".*emb_g.weight is \[3, 5\] and should be \[3, 8\]; surplus is unknown",
    ),
    "not finite": (
        reweighted(lambda weight: weight["dec.conv_pre.bias"].fill_(float("nan"))),
        "dec.conv_pre.bias holds values that are not finite",
    ),
}


@pytest.mark.parametrize("case", BAD_VOICES)
def test_bad_voices_are_refused_in_one_line(
    case: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, message = BAD_VOICES[case]
    path, before = tmp_path / "bad.pth", contents(files.repository)
    write(path, files)
    with pytest.raises(ImportFailure, match=message):
        import_voice(ImportRequest(path, "bad", files.repository))
    assert run(["import", "rvc", str(path), "--name", "bad", "--repository", str(files.repository)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("autovoice: ")
    assert contents(files.repository) == before


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_never_run(files: Files, tmp_path: Path, legacy: bool) -> None:
    path, proof, before = tmp_path / "evil.pth", tmp_path / "proof", contents(files.repository)
    voice = {**torch.load(files.sung, weights_only=True), "info": Payload(proof)}
    torch.save(voice, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ImportFailure, match=r"asks for \w+\.system, .* nothing in it was run"):
        import_voice(ImportRequest(path, "evil", files.repository))
    assert not proof.exists()
    path.write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(ImportFailure, match=r"evil\.pth"):
        load_voice(path)
    assert not proof.exists()
    assert contents(files.repository) == before
    # The payload is a real one.
    pickle.loads(path.read_bytes())
    assert proof.exists()


def test_other_bad_input_is_refused(files: Files, tmp_path: Path) -> None:
    make_index(tmp_path / "narrow.index", 256)
    (tmp_path / "broken.index").write_bytes(files.index.read_bytes()[:5000])
    other = published.save_hubert(tmp_path / "other", seed=99)
    (tmp_path / "empty").mkdir()
    without = tmp_path / "without"
    (without / "contentvec").mkdir(parents=True)
    before, empty = contents(files.repository), tmp_path / "new"
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"index": tmp_path / "narrow.index"},
            "holds features of 256 values, the voice has 768: .* version v1",
        ),
        ({"index": tmp_path / "broken.index"}, "is no faiss index, or is truncated"),
        ({"index": tmp_path / "none.index"}, "does not exist"),
        ({"speaker": 3}, "speaker 3 does not exist: .* has 3"),
        ({"name": "Sung"}, "'Sung' must be lower case"),
        ({"name": "sung"}, "already holds the voice sung: .*--replace"),
        ({"name": "contentvec_v1"}, "'contentvec_v1' is that of a shared model"),
        (
            {"name": "sung_window", "replace": True},
            "holds sung_window, which is no part of a voice sung_window",
        ),
        ({"contentvec": other}, "contentvec has other weights than those given"),
        ({"contentvec": tmp_path / "empty"}, "holds no config.json: pass --contentvec"),
        ({"contentvec": tmp_path / "none.pt"}, "does not exist"),
        ({"contentvec": files.contentvec_v1}, "makes features of 32 values, voices of version v2 need 768"),
        ({"repository": without, "pitch": "rmvpe"}, "holds no rmvpe yet: pass --rmvpe"),
        ({"rmvpe": files.sung}, "--pitch is yin"),
        ({"pitch": "rmvpe", "rmvpe": files.sung}, "is no complete RMVPE model"),
        ({"repository": empty}, "holds no contentvec yet: pass --contentvec"),
    ]
    for changes, message in cases:
        options: dict[str, Any] = {"name": "third", "repository": files.repository, **changes}
        with pytest.raises(ImportFailure, match=message):
            import_voice(ImportRequest(files.sung, **options))
        assert contents(files.repository) == before
        assert not empty.exists()


def test_import_without_the_package_for_indexes_says_which(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ImportFailure, match=r"faiss-cpu, which is missing: pip install 'autovoice\[rvc\]'"):
        import_voice(ImportRequest(files.sung, "third", files.repository, index=files.index))


def test_a_new_version_replaces_the_voice(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(files.repository, repository)
    before = contents(repository)
    newer = published.save_voice(
        tmp_path / "newer.pth", version="v1", sample_rate=48000, f0=False, widths=published.NARROW, seed=5
    )
    options = ["--name", "plain", "--repository", str(repository), "--speaker", "2"]
    assert run(["import", "rvc", str(newer), *options, "--replace"]) == 0
    out = capsys.readouterr().out
    assert "plain, version 2: RVC v1, 48000 Hz, without pitch, 3 speakers" in out
    assert "plain_synthesizer" in out
    after = contents(repository)
    # Nothing else was written, and what was served before is still there.
    written = {name for name in after if after[name] != before.get(name)}
    assert {name.split("/")[0] for name in written} == {"plain", "plain_window", "plain_synthesizer"}
    assert after["plain_synthesizer/1/model.onnx"] == before["plain_synthesizer/1/model.onnx"]
    config = read_config(repository / "plain" / "config.pbtxt")
    assert config.parameters["default_speaker"].string_value == "2"
    assert list(config.version_policy.specific.versions) == [2]
    # What voices share stays at the version that they were made for.
    versions = {step.model_name: step.model_version for step in config.ensemble_scheduling.step}
    assert versions.pop("plain_synthesizer") == 2
    assert set(versions.values()) == {1}
    check_repository(repository)


@pytest.mark.parametrize("model", ["contentvec", "rvc_loudness_40000", "rvc_pitch_yin"])
def test_models_of_an_earlier_revision_are_not_shared(model: str, files: Files, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(files.repository, repository)
    config = repository / model / "config.pbtxt"
    config.write_text(config.read_text().replace("rvc_revision", "something"))
    before = contents(repository)
    with pytest.raises(
        ImportFailure, match=rf"{model} was written by an earlier AutoVoice, .* another repository"
    ):
        import_voice(ImportRequest(files.sung, "third", repository, index=files.index))
    assert contents(repository) == before


def test_the_repository_is_what_configs_say(files: Files) -> None:
    check_repository(files.repository)
    for name, has_f0, has_index in (("sung", "1", "1"), ("plain", "0", "0"), ("tracked", "1", "0")):
        for ensemble in (name, f"{name}_window"):
            config = read_config(files.repository / ensemble / "config.pbtxt")
            facts = {key: value.string_value for key, value in config.parameters.items()}
            assert facts["family"] == "rvc"
            assert (facts["has_f0"], facts["has_index"]) == (has_f0, has_index)
            assert facts["sample_rate"] == "16000"
            assert len(facts["checkpoint_sha256"]) == 64
            for side in ("left", "right"):
                assert int(facts[f"context_{side}_samples"]) % 320 == 0
            assert not config.response_cache.enable
            read = {tensor for step in config.ensemble_scheduling.step for tensor in step.input_map.values()}
            made = {tensor for step in config.ensemble_scheduling.step for tensor in step.output_map.values()}
            # Triton refuses an ensemble with an input or a tensor that nothing reads.
            assert {tensor.name for tensor in config.input} <= read
            assert made <= read | {tensor.name for tensor in config.output}
            ready = {tensor.name for tensor in config.input}
            for step in config.ensemble_scheduling.step:  # one step at a time
                assert set(step.input_map.values()) <= ready
                ready |= set(step.output_map.values())
        steps = read_config(files.repository / name / "config.pbtxt").ensemble_scheduling.step
        for step in steps:
            model = read_config(files.repository / step.model_name / "config.pbtxt")
            assert model.HasField("dynamic_batching")
            assert not model.response_cache.enable


class TestFairseq:
    """The checkpoint that RVC ships, with fairseq's names and its settings beside the weights."""

    NAMES = (
        (".conv_layers.0.layer_norm.", ".conv_layers.0.2."),
        (".conv.weight", ".0.weight"),
        ("feature_projection.layer_norm.", "layer_norm."),
        ("feature_projection.projection.", "post_extract_proj."),
        ("encoder.pos_conv_embed.conv.", "encoder.pos_conv.0."),
        (".attention.", ".self_attn."),
        (".feed_forward.intermediate_dense.", ".fc1."),
        (".feed_forward.output_dense.", ".fc2."),
        ("masked_spec_embed", "mask_emb"),
    )

    def write(self, path: Path, **beside: Any) -> None:
        model = {}
        for name, tensor in published.hubert(published.HubertSizes()).items():
            fairseq = name
            if ".layers." in name and ".layer_norm." in name and "conv_layers" not in name:
                fairseq = name.replace(".layer_norm.", ".self_attn_layer_norm.")
            for newer, older in self.NAMES:
                if newer.endswith(".weight") and "conv_layers" not in fairseq:
                    continue
                fairseq = fairseq.replace(newer, older)
            model[fairseq] = tensor
        model["label_embs_concat"] = torch.zeros(504, 256)
        torch.save({"args": None, "model": model, **beside}, path)

    def test_is_the_same_encoder(self, files: Files, tmp_path: Path) -> None:
        settings = argparse.Namespace(layers=2, task=argparse.Namespace(data="train"))
        self.write(tmp_path / "hubert_base.pt", args=settings)
        one, other = (load_hubert(p, "v2") for p in (tmp_path / "hubert_base.pt", files.contentvec))
        for (name, tensor), (_, same) in zip(
            one.state_dict().items(), other.state_dict().items(), strict=True
        ):
            assert torch.equal(tensor, same), name

    def test_code_in_it_is_never_run(self, tmp_path: Path) -> None:
        self.write(tmp_path / "evil.pt", cfg=Payload(tmp_path / "proof"))
        with pytest.raises(ImportFailure, match="nothing in it was run"):
            load_hubert(tmp_path / "evil.pt", "v2")
        assert not (tmp_path / "proof").exists()


def test_newer_weight_normalisation_is_the_same(files: Files, tmp_path: Path) -> None:
    voice = torch.load(files.sung, weights_only=True)
    voice["weight"] = {
        name.replace(".weight_g", ".parametrizations.weight.original0").replace(
            ".weight_v", ".parametrizations.weight.original1"
        ): tensor
        for name, tensor in voice["weight"].items()
    }
    # Labels that tools get wrong, training leftovers, and a rate in words.
    voice |= {"sr": "48k", "author": "somebody"}
    voice["weight"]["enc_q.pre.weight"] = torch.zeros(2)
    voice["config"][-1] = "40k"
    torch.save(voice, tmp_path / "newer.pth")
    one, other = load_voice(tmp_path / "newer.pth"), load_voice(files.sung)
    assert one.synthesizer.config == other.synthesizer.config
    for name, tensor in one.synthesizer.state_dict().items():
        assert torch.equal(tensor, other.synthesizer.state_dict()[name]), name
