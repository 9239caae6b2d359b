"""Files as people have them: what can be imported is, and what cannot is refused for its true reason."""

from __future__ import annotations

import argparse
import datetime
import io
import pathlib
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import published
import pytest
import torch
from imported_voices import Files, contents, make_index

from autovoice.cli.main import run
from autovoice_export.build_errors import ImportFailure
from autovoice_export.rvc import archive
from autovoice_export.rvc.archive import unpacked
from autovoice_export.rvc.content_encoders import CONTENTVEC, encoder_of
from autovoice_export.rvc.faiss_index import load_index
from autovoice_export.rvc.importing import ImportRequest, import_voice
from autovoice_export.rvc.safe_loading import load_pickle
from autovoice_export.rvc.voice_checkpoint import load_voice

Make = Callable[[Path], object]


def voice(**beside: Any) -> dict[str, Any]:
    return {**published.voice(widths=published.NARROW), **beside}


def saved(content: object) -> Make:
    return lambda path: torch.save(content, path)


def written(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def weights(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(3) for name in names}


def trained(*names: str) -> Make:
    return saved({"model": weights(*names), "iteration": 9, "optimizer": {}, "learning_rate": 1e-4})


def decoder_of(*names: str) -> Make:
    """A voice by Applio whose decoder is another, and whose file does not say so."""
    content = voice()
    content["weight"] = {
        name: tensor for name, tensor in content["weight"].items() if not name.startswith("dec.")
    } | weights(*names)
    return saved(content)


def safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in voice()["weight"].items()}, path)


def zipped(**members: bytes) -> Make:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as made:
            for name, content in members.items():
                made.writestr(name, content)

    return write


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as made:
        made.addfile(tarfile.TarInfo("voice.pth"))


def half(path: Path) -> None:
    torch.save(voice(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as made:
        for name in ("voice/data.pkl", "voice/constants.pkl", "voice/code/net.py"):
            made.writestr(name, b"x")


ONLY_HIFIGAN = "only HiFi-GAN, the vocoder of RVC itself, can be imported, not MRF HiFi-GAN or RefineGAN"
NETWORK = "holds the network of an RVC voice without the voice's settings, as training checkpoints (G_*.pth)"
SMALL = "give the voice, which RVC writes to assets/weights/NAME.pth"
REFUSED: dict[str, tuple[Make, str]] = {
    "MRF": (saved(voice(vocoder="MRF HiFi-GAN")), f"vocoder 'MRF HiFi-GAN': {ONLY_HIFIGAN}"),
    "RefineGAN": (saved(voice(vocoder="RefineGAN")), f"vocoder 'RefineGAN': {ONLY_HIFIGAN}"),
    "another vocoder": (saved(voice(vocoder="RingFormer_v2")), f"vocoder 'RingFormer_v2': {ONLY_HIFIGAN}"),
    "layers of MRF": (decoder_of("dec.mrfs.0.0.layers.0.conv1.weight_v"), f"'MRF HiFi-GAN': {ONLY_HIFIGAN}"),
    "layers of RefineGAN": (
        decoder_of("dec.upsample_conv_blocks.0.input_conv.weight"),
        f"'RefineGAN': {ONLY_HIFIGAN}",
    ),
    "layer of the encoder": (
        saved(voice(embedder_name="contentvec", embedder_output_layer=9)),
        "was trained on layer 9 of its content encoder",
    ),
    "discriminator": (trained("discriminators.0.convs.0.bias"), f"is a discriminator (D_*.pth), .*{SMALL}"),
    "training": (
        trained("enc_p.emb_phone.weight", "enc_q.pre.weight"),
        f"{NETWORK}.*{SMALL}, or extract one",
    ),
    "wrapped": (trained("module.enc_p.emb_phone.weight"), NETWORK),
    "pretrained": (saved({"model": weights("enc_p.emb_phone.weight")}), NETWORK),
    "tensors alone": (saved(weights("enc_p.emb_phone.weight", "dec.conv_pre.weight")), NETWORK),
    "so-vits-svc": (trained("enc_p.proj.weight", "enc_q.pre.weight", "emb_uv.weight"), "is of so-vits-svc"),
    "GPT-SoVITS": (
        saved({"weight": weights("enc_p.ssl_proj.weight", "ref_enc.fc.fc.weight"), "config": {"model": {}}}),
        "is of GPT-SoVITS",
    ),
    "RMVPE": (saved(published.rmvpe()), "is RMVPE: pass it with --rmvpe"),
    "HuBERT": (
        saved({"model": weights("feature_extractor.conv_layers.0.0.weight")}),
        "pass it with --contentvec",
    ),
    "another dictionary": (
        saved({"state": 1, "other": 2}),
        "holds other, state: an RVC voice holds 'weight'",
    ),
    "safetensors": (safetensors, "is a safetensors file, .*give the .pth file"),
    "web page": (written(b"\n <!DOCTYPE html><html>Sign in"), "is a web page .*download it again, signed in"),
    "LFS": (written(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "is a Git LFS pointer"),
    "half": (half, "is truncated, its end is missing"),
    "empty": (written(b""), "is empty: download it again"),
    "text": (written("weights as words, é".encode()), "is a text file"),
    "index": (make_index, "is a faiss index: pass it with --index"),
    "ONNX": (written(b"\x08\x07\x12\x07pytorch" + bytes(90)), "is an ONNX model: give the file that it was"),
    "NumPy": (lambda path: np.save(path.open("wb"), np.zeros(3)), "is a NumPy array"),
    "NumPy archive": (lambda path: np.savez(path.open("wb"), np.zeros(3)), "is a NumPy archive"),
    "RAR": (written(b"Rar!\x1a\x07\x01\0"), "is a RAR archive: unpack it"),
    "7z": (written(b"7z\xbc\xaf\x27\x1c\0\x04"), "is a 7z archive: unpack it"),
    "gzip": (written(b"\x1f\x8b\x08\0"), "is compressed: unpack it"),
    "tar": (tar, "is a tar archive: unpack it"),
    "recording": (written(b"RIFF\0\0\0\0WAVE"), "is a recording"),
    "TorchScript": (torchscript, "is a TorchScript program"),
    "pickle of Python": (
        lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=5)),
        "is no RVC voice, or is truncated",
    ),
    "garbage": (written(bytes(range(255, 100, -1))), "is no RVC voice, or is truncated"),
    "folder": (Path.mkdir, "is a folder: name the file inside"),
    "zip without a voice": (
        zipped(**{"readme.txt": b"hello"}),
        "is a ZIP archive without a checkpoint (.pth)",
    ),
    "zip with two voices": (
        zipped(**{"a/one.pth": b"1", "b/two.pth": b"2"}),
        "holds more than one checkpoint .*'a/one.pth', 'b/two.pth': unpack it and give one",
    ),
    "zip with a web page": (
        zipped(**{"in/voice.pth": b"<html>"}),
        "zip: voice.pth is no RVC voice, it is a web",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_true_reason_is_one_line(
    case: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = REFUSED[case]
    path, before = tmp_path / ("bad.zip" if case.startswith("zip") else "bad.pth"), contents(files.repository)
    make(path)
    with pytest.raises(ImportFailure) as error:
        import_voice(ImportRequest(path, "bad", files.repository))
    for part in message.split(".*"):
        assert part in str(error.value)
    assert run(["import", "rvc", str(path), "--name", "bad", "--repository", str(files.repository)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"autovoice: {error.value}"
    assert contents(files.repository) == before


@pytest.mark.parametrize(
    "beside",
    [
        {"vocoder": "HiFi-GAN"},
        {"vocoder": None},
        {"embedder_model": "contentvec"},
        {"embedder_name": "contentvec768", "embedder_output_layer": 12},
        {"embedder_model": "rvc/models/embedders/hubert_base.pt"},
        {
            "epoch": np.int64(200),
            "info": np.str_("200epoch"),
            "loss": np.float64(3.5),
            "good": np.bool_(True),
        },
        {
            "f0": np.int64(1),
            "half": np.float16(0.5),
            "big": np.array(3.0, ">f8")[()],
            "bytes": np.bytes_(b"x"),
        },
        {"curve": np.zeros((2, 3)), "names": np.array(["a", "b"]), "objects": np.array([1, None])},
        {"path": pathlib.PurePosixPath("logs/x"), "made": datetime.datetime(2025, 1, 1)},
        {"args": argparse.Namespace(epochs=3)},
    ],
    ids=str,
)
@pytest.mark.parametrize("legacy", [False, True])
def test_data_beside_the_weights_does_no_harm(beside: dict[str, Any], legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "voice.pth"
    torch.save(voice(**beside), path, _use_new_zipfile_serialization=not legacy)
    loaded = load_voice(path)
    assert loaded.encoder == CONTENTVEC
    assert loaded.info == str(beside.get("info", "20epoch"))
    content = load_pickle(path, "voice")
    for name, value in beside.items():
        if isinstance(value, np.generic):
            assert content[name] == value.item()
            assert not isinstance(content[name], np.generic)


def test_wrapped_networks_are_read(tmp_path: Path) -> None:
    content = voice()
    content["weight"] = {f"module._orig_mod.{name}": tensor for name, tensor in content["weight"].items()}
    torch.save(content, tmp_path / "voice.pth")
    assert load_voice(tmp_path / "voice.pth").version == "v2"


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.made


@pytest.mark.parametrize(
    "evil",
    [
        Call(print, "never"),
        Call(np.frombuffer, b"12345678"),
        Call(np.load, "/etc/hostname"),
        Call(np.core.multiarray.scalar, np.dtype("O"), b"12345678"),
        Call(np.core.multiarray.scalar, np.dtype("V8"), b"12345678"),
        Call(np.core.multiarray.scalar, np.dtype("f8"), b"short"),
        Call(np.core.multiarray.scalar, "f8", b"12345678"),
        Call(getattr, "text", "upper"),
    ],
    ids=lambda call: f"{call.made[0].__name__} {call.made[1]}",
)
def test_numbers_open_no_way_for_code(evil: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(voice(info=evil), tmp_path / "evil.pth")
    with pytest.raises(ImportFailure, match=r"nothing in it was run|is no RVC voice, or is truncated"):
        load_voice(tmp_path / "evil.pth")
    assert "never" not in capsys.readouterr().out


def test_a_number_of_many_bytes_is_no_number(tmp_path: Path) -> None:
    torch.save(voice(info=Call(np.core.multiarray.scalar, np.dtype("U8"), b"ab")), tmp_path / "evil.pth")
    with pytest.raises(ImportFailure, match="is no RVC voice"):
        load_voice(tmp_path / "evil.pth")


def checkpoint_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.save(voice(), buffer)
    return buffer.getvalue()


def test_a_zip_is_taken_apart(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "Anna.zip"
    with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("__MACOSX/Anna/._Anna.pth", b"shadow")
        made.writestr("Anna/Anna.pth", checkpoint_bytes())
        made.writestr("Anna/G_2333333.pth", b"training")
        made.writestr("Anna/D_2333333.pth", b"training")
        made.writestr("Anna/trained_IVF9_Flat_nprobe_1_Anna_v2.index", b"IwFl")
        made.writestr("Anna/added_IVF9_Flat_nprobe_1_Anna_v2.index", files.index.read_bytes())
        made.writestr("Anna/total_fea.npy", b"")
    repository = shutil.copytree(files.repository, tmp_path / "models")
    assert run(["import", "rvc", str(bundle), "--name", "anna", "--repository", str(repository)]) == 0
    assert "with index" in capsys.readouterr().out
    with unpacked(bundle, files.index) as found:
        assert found.index == files.index
        folder = found.checkpoint.parent
        assert [path.name for path in folder.iterdir()] == ["Anna.pth"]
    assert not folder.exists()


@pytest.mark.parametrize(
    "name", ["../../out.pth", "/tmp/out.pth", "..\\..\\out.pth", "C:\\out.pth", "a/../../../out.pth"]
)
def test_paths_in_a_zip_lead_nowhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "one" / "two" / "temporary"
    inside.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(inside))
    zipped(**{name: checkpoint_bytes()})(tmp_path / "evil.zip")
    with unpacked(tmp_path / "evil.zip") as found:
        assert found.checkpoint.name == "out.pth"
        assert found.checkpoint.parent.parent == inside
        assert load_voice(found.checkpoint).version == "v2"
    assert not list(tmp_path.rglob("*out.pth"))
    assert not list(inside.glob("autovoice-*"))


def lying(path: Path, stated: int) -> None:
    """A zip whose member says in all places that it is of another size than it is."""
    zipped(**{"voice.pth": checkpoint_bytes()})(path)
    data = bytearray(path.read_bytes())
    size = len(checkpoint_bytes())
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.rindex(mark) if mark[2] == 1 else 0
        assert struct.unpack_from("<I", data, at + place)[0] == size
        struct.pack_into("<I", data, at + place, stated)
    path.write_bytes(data)


def test_a_zip_cannot_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("voice.pth", bytes(3_000_000))
    monkeypatch.setattr(archive, "LARGEST_MEMBER", 2_000_000)
    with pytest.raises(ImportFailure, match=r"'voice.pth' has 3000000 bytes unpacked, at most 2000000"):
        load_voice(bomb)
    lying(tmp_path / "lying.zip", 1000)
    with pytest.raises(ImportFailure, match=r"lying.zip is damaged"):
        load_voice(tmp_path / "lying.zip")


def test_damaged_and_encrypted_zips(tmp_path: Path) -> None:
    path = tmp_path / "voice.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("voice.pth", checkpoint_bytes())
    whole = bytearray(path.read_bytes())
    damaged = bytearray(whole)
    damaged[2000:2040] = bytes(40)
    path.write_bytes(damaged)
    with pytest.raises(ImportFailure, match=r"voice.zip is damaged .*download it again"):
        load_voice(path)
    whole[6] |= 1  # general purpose flags, of the member and of the directory
    whole[whole.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(whole)
    with pytest.raises(ImportFailure, match=r"'voice.pth' is encrypted: unpack it with its password"):
        load_voice(path)


def vectors(size: int = 768) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(100, size)).astype(np.float32)


def index_of(
    description: str, size: int = 768, metric: int = faiss.METRIC_L2, *, filled: bool = True
) -> Make:
    def write(path: Path) -> None:
        index = faiss.index_factory(size, description, metric)
        index.train(vectors(size))
        if filled:
            numbers = [np.arange(100)] if "IDMap" in description else []
            (index.add_with_ids if numbers else index.add)(vectors(size), *numbers)
        faiss.write_index(index, str(path))

    return write


INDEXES: dict[str, tuple[Make, str]] = {
    "trained": (
        index_of("IVF4,Flat", filled=False),
        "is empty, as RVC's trained_*.index is: pass the added_",
    ),
    "compressed": (index_of("IVF4,SQfp16"), "is of the kind IndexIVFScalarQuantizer"),
    "product": (index_of("IVF4,PQ32x4"), "is of the kind IndexIVFPQ"),
    "graph": (index_of("HNSW8"), "is of the kind IndexHNSWFlat"),
    "projected": (index_of("PCA16,IVF4,Flat"), "is of the kind IndexPreTransform"),
    "inner product": (index_of("Flat", metric=faiss.METRIC_INNER_PRODUCT), "has no Euclidean distances"),
    "v1": (
        index_of("IVF4,Flat", 256),
        "of 256 values, the voice has 768: it belongs to a voice of version v1",
    ),
    "other": (index_of("Flat", 100), "it belongs to no voice of RVC"),
    "features": (
        lambda path: np.save(path.open("wb"), vectors()),
        "is a NumPy array, such as RVC's total_fea",
    ),
    "zip": (zipped(**{"added.index": b"IwFl"}), "is a ZIP archive: unpack it"),
    "web page": (written(b"<html>"), "is a web page"),
    "LFS": (written(b"version https://git-lfs.github.com/spec/v1"), "is a Git LFS pointer"),
    "empty": (written(b""), "is empty: download it again"),
    "half": (lambda path: (make_index(path), path.write_bytes(path.read_bytes()[:5000])), "or is truncated"),
    "folder": (Path.mkdir, "is a folder: name the added_*.index inside"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_indexes_are_refused_for_their_kind(
    case: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = INDEXES[case]
    path, before = tmp_path / "added.index", contents(files.repository)
    make(path)
    with pytest.raises(ImportFailure) as error:
        load_index(path, 768)
    assert message in str(error.value)
    options = ["--name", "bad", "--repository", str(files.repository), "--index", str(path)]
    assert run(["import", "rvc", str(files.sung), *options]) == 2
    assert capsys.readouterr().err.splitlines() == [f"autovoice: {error.value}"]
    assert contents(files.repository) == before


@pytest.mark.parametrize("description", ["Flat", "IVF4,Flat", "IDMap,Flat", "IDMap,IVF4,Flat"])
def test_indexes_of_plain_vectors_are_read(description: str, tmp_path: Path) -> None:
    index_of(description)(tmp_path / "added.index")
    found = load_index(tmp_path / "added.index", 768)
    order = np.lexsort(found.vectors.numpy().T)
    np.testing.assert_array_equal(found.vectors.numpy()[order], vectors()[np.lexsort(vectors().T)])


OTHER_ENCODERS = {
    "spin": "spin",
    "spin-v2": "spin-v2",
    "japanese-hubert-base": "japanese-hubert-base",
    "hubert-base-japanese768": "hubert-base-japanese",
    "rvc/models/embedders/embedders_custom/My_Encoder": "my-encoder",
    "custom": "custom",
}


@pytest.mark.parametrize("key", ["embedder_model", "embedder_name"])
@pytest.mark.parametrize("named", OTHER_ENCODERS)
def test_a_voice_on_another_encoder_is_never_given_contentvec(
    named: str, key: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, path = OTHER_ENCODERS[named], tmp_path / "voice.pth"
    torch.save(voice(**{key: named}), path)
    assert load_voice(path).encoder == encoder
    before = contents(files.repository)
    given = ["--contentvec", str(files.contentvec)]
    for options, message in (
        ([], "holds no hubert_v2_"),
        (given, f"was trained on the content encoder {encoder!r}"),
    ):
        command = ["import", "rvc", str(path), "--name", "other", "--repository", str(files.repository)]
        assert run([*command, *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert f"pass --contentvec with the encoder {encoder!r}" in line
    assert contents(files.repository) == before


def test_a_voice_is_imported_on_its_own_encoder(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spun = published.voice(f0=False, widths=published.NARROW)  # without pitch there is less to export
    torch.save({**spun, "embedder_model": "spin"}, tmp_path / "spun.pth")
    torch.save(voice(), tmp_path / "plain.pth")
    spin = published.save_hubert(tmp_path / "Spin", seed=5)
    command = ["import", "rvc", str(tmp_path / "spun.pth"), "--repository", str(tmp_path / "models")]
    assert run([*command, "--name", "one", "--contentvec", str(spin)]) == 0
    assert "on spin" in capsys.readouterr().out
    assert (tmp_path / "models" / "hubert_v2_spin").is_dir()
    assert not (tmp_path / "models" / "contentvec").exists()
    # The next needs no file, and a voice on ContentVec does not get it.
    assert run([*command, "--name", "two"]) == 0
    command[2] = str(tmp_path / "plain.pth")
    assert run([*command, "--name", "three"]) == 2
    assert run([*command, "--name", "three", "--contentvec", str(spin)]) == 2
    assert "was trained on ContentVec, and with --contentvec" in capsys.readouterr().err


def test_encoders_have_one_name(tmp_path: Path) -> None:
    for name in (
        "contentvec",
        "ContentVec",
        "contentvec_base.pt",
        "hubert_base",
        "",
        None,
        "content-vec-best",
    ):
        assert encoder_of({"embedder_model": name}, "v2", tmp_path) == CONTENTVEC
    assert encoder_of({}, "v1", tmp_path) == CONTENTVEC
