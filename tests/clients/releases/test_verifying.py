"""What `verify` sees: every byte, every file, and who signed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keys import write_certificates, write_key_pair
from toy_repository import build_toy_repository

from autovoice.errors import ReleaseError
from autovoice.releases import documents
from autovoice.releases.publishing import publish
from autovoice.releases.release import Release, read_release, release_numbers
from autovoice.releases.signing import SigningKey, TrustedKey, sign
from autovoice.releases.verifying import GATED_RELEASE, verify


class Signed(NamedTuple):
    """A signed release with a signed report of the gate, and who may have signed it."""

    release: Release
    signer: SigningKey
    key: TrustedKey
    stranger: TrustedKey


def write_report(release: Release, signer: SigningKey) -> None:
    report = release.path / "gate.json"
    report.write_text(documents.dumps({GATED_RELEASE: release.sha256, "passed": True}))
    sign(report, release.path / "gate.sig", signer)


@pytest.fixture(scope="module", params=["key pair", "certificates"])
def signed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Signed:
    folder = tmp_path_factory.mktemp("signed")
    private, public = write_key_pair(folder)
    signer, key = SigningKey(private), TrustedKey(public)
    _, other = write_key_pair(folder, "other")
    stranger = TrustedKey(other)
    if request.param == "certificates":
        private, certificate, between, root = write_certificates(folder)
        signer, key = SigningKey(private, (certificate, between)), TrustedKey(certificates=(root,))
        (folder / "others").mkdir()
        stranger = TrustedKey(certificates=(write_certificates(folder / "others")[-1],))
    release = publish(build_toy_repository(folder / "repository"), folder / "releases", 7, key=signer)
    write_report(release, signer)
    for path in release.path.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return Signed(release, signer, key, stranger)


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """A file with another content, for as long as the block lasts."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def test_a_release_as_it_was_published_is_verified(signed: Signed) -> None:
    assert verify(signed.release.path, signed.key) == signed.release
    assert verify(signed.release.path) == signed.release


def flip(signed: Signed, data: st.DataObject, key: TrustedKey | None, spared: set[str]) -> None:
    files = sorted(path for path in signed.release.path.rglob("*") if path.is_file() and path.stat().st_size)
    path = data.draw(st.sampled_from([path for path in files if path.name not in spared]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1), "offset")] ^= 1 << data.draw(st.integers(0, 7), "bit")
    with changed(path, bytes(content)), pytest.raises(ReleaseError) as caught:
        verify(signed.release.path, key)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_one_flipped_bit_of_any_file_is_refused(signed: Signed, data: st.DataObject) -> None:
    flip(signed, data, signed.key, set())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_without_a_key_one_flipped_bit_of_any_file_but_the_signatures_is_refused(
    signed: Signed, data: st.DataObject
) -> None:
    flip(signed, data, None, {"release.sig", "gate.sig"})


@pytest.fixture
def copy(signed: Signed, tmp_path: Path) -> Path:
    """A release that a test may harm."""
    return shutil.copytree(signed.release.path, tmp_path / "7")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: (path / "delay/7/model.onnx").unlink(), "delay/7/model.onnx is missing"),
    "added": (lambda path: (path / "delay/7/.more").touch(), r"delay/7/\.more was added"),
    "truncated": (lambda path: os.truncate(path / "delay/7/model.onnx", 99), r"model.onnx has 99 bytes inst"),
    "emptied": (
        lambda path: os.truncate(path / "delay/config.pbtxt", 0),
        r"delay/config.pbtxt has 0 bytes instead of",
    ),
    "another model's": (
        lambda path: shutil.copy(path / "pad_f0/7/model.onnx", path / "delay/7/model.onnx"),
        "delay/7/model.onnx has",
    ),
    "a link": (
        lambda path: (
            (path / "delay/7/model.onnx").unlink(),
            (path / "delay/7/model.onnx").symlink_to("../../delay_stream/7/model.onnx"),
        ),
        "delay/7/model.onnx is no regular file",
    ),
    "a pipe": (
        lambda path: (
            (path / "voice_conversion/7/.gitkeep").unlink(),
            os.mkfifo(path / "voice_conversion/7/.gitkeep"),
        ),
        r"voice_conversion/7/.gitkeep is no regular file",
    ),
    "renumbered": (lambda path: path.rename(path.with_name("8")), "folder 8 holds release 7"),
    "many": (
        lambda path: [file.write_bytes(b"x") for file in path.glob("*/config.pbtxt")],
        r"config.pbtxt has 1 bytes .*, and \d+ more$",
    ),
    "no release": (lambda path: (path / "release.json").unlink(), "release.json is missing"),
    "unsigned": (lambda path: (path / "release.sig").unlink(), "is not signed: there is no release.sig"),
    "unsigned report": (lambda path: (path / "gate.sig").unlink(), "is not signed: there is no gate.sig"),
    "signature without report": (lambda path: (path / "gate.json").unlink(), "gate.json is missing"),
    "signatures exchanged": (
        lambda path: shutil.copy(path / "gate.sig", path / "release.sig"),
        "7 was altered after it was signed",
    ),
    "the same signature in other bytes": (
        lambda path: (path / "release.sig").write_text((path / "release.sig").read_text() + "\n"),
        "release.sig was changed$",
    ),
    "no signature": (lambda path: (path / "release.sig").write_text("{}"), "release.sig was changed"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_line(copy: Path, signed: Signed, fault: str) -> None:
    harm, message = FAULTS[fault]
    harm(copy)
    path = copy if copy.exists() else copy.with_name("8")
    with pytest.raises(ReleaseError, match=message) as caught:
        verify(path, signed.key)
    assert "\n" not in str(caught.value)


def test_what_was_altered_after_signing_is_refused_although_its_digests_are_right(
    copy: Path, signed: Signed
) -> None:
    model = copy / "delay" / "7" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\x12\x00")
    content = documents.load(copy / "release.json")
    content["files"]["delay/7/model.onnx"] = {
        "sha256": documents.hashlib.sha256(model.read_bytes()).hexdigest(),
        "size": model.stat().st_size,
    }
    (copy / "release.json").write_text(documents.dumps(content))
    for name in ("gate.json", "gate.sig"):
        (copy / name).unlink()
    verify(copy)
    with pytest.raises(ReleaseError, match="was altered after it was signed"):
        verify(copy, signed.key)


def test_a_stranger_is_not_trusted(signed: Signed) -> None:
    with pytest.raises(ReleaseError, match="is not signed by"):
        verify(signed.release.path, signed.stranger)


def test_the_report_of_another_release_is_refused(copy: Path, signed: Signed) -> None:
    (copy / "gate.json").write_text(documents.dumps({GATED_RELEASE: "0" * 64, "passed": True}))
    sign(copy / "gate.json", copy / "gate.sig", signed.signer)
    with pytest.raises(ReleaseError, match=r"gate.json is the report of another release"):
        verify(copy, signed.key)


def test_a_root_among_the_certificates_is_refused(tmp_path: Path) -> None:
    private, *certificates = write_certificates(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ReleaseError, match=r"root.crt is a root certificate, .* leave it out"):
        sign(tmp_path / "file", tmp_path / "sig", SigningKey(private, tuple(certificates)))


@pytest.mark.parametrize("content", [None, b"", b"no key", b"\xff"])
def test_an_unusable_key_is_named(tmp_path: Path, signed: Signed, content: bytes | None) -> None:
    key = tmp_path / "bad.pem"
    if content is not None:
        key.write_bytes(content)
    with pytest.raises(ReleaseError, match=r"cannot be checked by .*bad.pem: "):
        verify(signed.release.path, TrustedKey(key))
    with pytest.raises(ReleaseError, match=r"cannot be signed with .*bad.pem: "):
        sign(signed.release.path, tmp_path / "sig", SigningKey(key))


@pytest.mark.parametrize("package", ["model_signing", "OpenSSL"])
def test_signatures_name_what_to_install_and_the_rest_does_without(
    signed: Signed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("model_signing", "OpenSSL")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ReleaseError, match=r"run `pip install 'autovoice\[release\]'`"):
        verify(signed.release.path, signed.key)
    with pytest.raises(ReleaseError, match=r"run `pip install 'autovoice\[release\]'`"):
        sign(signed.release.path, tmp_path / "sig", signed.signer)
    verify(signed.release.path)


class TestRelease:
    def test_numbers_are_those_of_folders(self, tmp_path: Path) -> None:
        for name in ("10", "9", "0", "07", "x", ".3"):
            (tmp_path / name).mkdir()
        (tmp_path / "11").touch()
        assert release_numbers(tmp_path) == [9, 10]
        assert release_numbers(tmp_path / "nowhere") == []
        with pytest.raises(ReleaseError, match="Not a directory"):
            release_numbers(tmp_path / "11")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": 99}, "a newer AutoVoice wrote it"),
            ({"files": ["x"]}, "describes no release"),
            ({"more": 1}, "describes no release"),
        ],
    )
    def test_another_format_is_refused(self, copy: Path, change: dict[str, object], message: str) -> None:
        content = documents.load(copy / "release.json")
        (copy / "release.json").write_text(documents.dumps({**content, **change}))
        with pytest.raises(ReleaseError, match=message):
            read_release(copy)

    @pytest.mark.parametrize("text", ["", "[]", "7", "{}", "\ud800", '{"a": NaN}', "[" * 100_000])
    def test_what_is_no_document_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "release.json").write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(ReleaseError, match=r"release.json was changed"):
            read_release(tmp_path)

    def test_a_document_with_the_same_content_in_other_bytes_is_refused(self, copy: Path) -> None:
        path = copy / "release.json"
        path.write_text(json.dumps(json.loads(path.read_text())))
        with pytest.raises(ReleaseError, match=r"release.json was changed"):
            read_release(copy)
