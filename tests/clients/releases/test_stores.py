"""Releases in a bucket of a real S3 server, and in a real registry."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from keys import write_key_pair

from autovoice.errors import ReleaseError
from autovoice.releases import oci
from autovoice.releases.publishing import publish
from autovoice.releases.release import read_release, walk
from autovoice.releases.s3 import S3Store
from autovoice.releases.signing import SigningKey, TrustedKey
from autovoice.releases.stores import fetched, publish_to
from autovoice.releases.verifying import verify


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry."""
    program = shutil.which("docker-registry")
    if program is None or shutil.which("skopeo") is None:
        pytest.skip("no registry: apt-get install docker-registry skopeo")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = folder / "config.yml"
    settings = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address},
    }
    config.write_text(json.dumps(settings))  # which YAML includes
    process = subprocess.Popen([program, "serve", str(config)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://{address}/v2/", timeout=10).close()
                break
            except urllib.error.URLError:
                assert process.poll() is None
                signal.sigtimedwait([], 0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(params=["s3", "oci"])
def store(request: pytest.FixtureRequest) -> str:
    """The address of a store without releases."""
    if request.param == "s3":
        request.getfixturevalue("bucket")
        return "s3://voices/of/anna"
    registry = request.getfixturevalue("registry")
    return f"oci://{registry}/voices/{os.urandom(4).hex()}"


def test_what_is_published_comes_back_and_verifies(small: Path, store: str, tmp_path: Path) -> None:
    private, public = write_key_pair(tmp_path)
    addresses = []
    for number in (1, 2):
        release, address = publish_to(small, store, key=SigningKey(private))
        assert (release.number, release.parent) == (number, number - 1 or None)
        addresses.append(address)
        with fetched(address) as folder:
            assert verify(folder, TrustedKey(public)).files == release.files
            assert {name for name, _ in walk(folder)} == {*release.files, "release.json", "release.sig"}
    assert addresses == [f"{store}{'/' if store.startswith('s3') else ':'}{number}" for number in (1, 2)]


def test_an_existing_number_is_refused(small: Path, store: str) -> None:
    _, address = publish_to(small, store, 3)
    with fetched(address) as folder:
        before = read_release(folder)
    with pytest.raises(ReleaseError, match="exists and was left as it is"):
        publish_to(small, store, 3)
    with fetched(address) as folder:
        assert read_release(folder).sha256 == before.sha256


def test_a_release_of_a_folder_is_published_as_it_is(small: Path, releases: Path, store: str) -> None:
    local = publish(small, releases, 12)
    _, address = publish_to(local.path, store)
    with fetched(address) as folder:
        assert verify(folder).sha256 == local.sha256
    assert publish_to(small, store)[0].parent == 12


def test_what_is_not_there_is_named(store: str) -> None:
    for address in (f"{store}/9", f"{store}:9"):
        with pytest.raises(ReleaseError, match=r"no release|failed"), fetched(address):
            raise AssertionError
    with pytest.raises(ReleaseError, match="names no release: add its number"), fetched(store):
        raise AssertionError


class TestS3:
    def keys(self, bucket: Any) -> set[str]:
        return {item.key for item in bucket.objects.all()}

    @pytest.mark.parametrize("written", [0, 1, 4, 8])
    def test_an_upload_that_breaks_off_is_no_release(
        self, small: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, written: int
    ) -> None:
        put = S3Store._put
        left = [written]

        def break_off(self: S3Store, path: Path, number: int, name: str) -> bool:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return put(self, path, number, name)

        with monkeypatch.context() as patch:
            patch.setattr(S3Store, "_put", break_off)
            with pytest.raises(KeyboardInterrupt):
                publish_to(small, "s3://voices/anna", 1)
        assert len(self.keys(bucket)) == written
        assert S3Store("voices/anna").numbers() == []
        with pytest.raises(ReleaseError, match="holds no release"), fetched("s3://voices/anna/1"):
            raise AssertionError
        # Its number is passed over, and it is nobody's parent.
        release, _ = publish_to(small, "s3://voices/anna")
        assert (release.number, release.parent) == (2 if written else 1, None)

    def test_two_at_once_never_mix(self, small: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        put = S3Store.put

        def meanwhile(self: S3Store, release: Any) -> None:
            monkeypatch.setattr(S3Store, "put", put)
            (small / "target_pitch" / "1" / "model.onnx").write_bytes(b"another")
            publish_to(small, "s3://voices/anna", 1)
            put(self, release)

        monkeypatch.setattr(S3Store, "put", meanwhile)
        with pytest.raises(ReleaseError, match=r"s3://voices/anna/1 exists and was left as it is"):
            publish_to(small, "s3://voices/anna", 1)
        with fetched("s3://voices/anna/1") as folder:
            verify(folder)
            assert (folder / "target_pitch/1/model.onnx").read_bytes() == b"another"

    def test_a_half_release_is_never_completed_by_another(self, small: Path, bucket: Any) -> None:
        bucket.put_object(Key="anna/1/delay/1/model.onnx", Body=b"another")
        with pytest.raises(ReleaseError, match="holds part of another release"):
            publish_to(small, "s3://voices/anna", 1)
        assert "anna/1/release.json" not in self.keys(bucket)

    def test_a_changed_object_is_refused(self, small: Path, bucket: Any) -> None:
        publish_to(small, "s3://voices", 1)
        bucket.put_object(Key="1/delay/1/model.onnx", Body=b"another")
        with (
            fetched("s3://voices/1") as folder,
            pytest.raises(ReleaseError, match=r"delay/1/model\.onnx has"),
        ):
            verify(folder)

    def test_names_that_leave_the_folder_are_refused(self, bucket: Any) -> None:
        bucket.put_object(Key="1/../../outside", Body=b"x")
        with pytest.raises(ReleaseError, match="which is no release's"), fetched("s3://voices/1"):
            raise AssertionError

    def test_a_bucket_that_is_not_there_is_named(self, small: Path, bucket: Any) -> None:
        with pytest.raises(ReleaseError, match=r"s3://nowhere cannot be used: .*NoSuchBucket"):
            publish_to(small, "s3://nowhere")


class TestOci:
    def test_the_layer_holds_the_repository_once(self, small: Path, releases: Path, tmp_path: Path) -> None:
        import tarfile

        release = publish(small, releases, 7)
        digests = set()
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            digests.add(oci.write_image(release, tmp_path / name))
        assert len(digests) == 1, "the same release is the same image"
        (layer,) = [path for path in (tmp_path / "a/blobs/sha256").iterdir() if tarfile.is_tarfile(path)]
        with tarfile.open(layer) as archive:
            members = {member.name: member for member in archive}
        assert {name for name, member in members.items() if not member.isdir()} == {
            f"models/{name}" for name in (*release.files, "release.json")
        }
        assert members["models/voice/7"].isdir()
        assert members["models/delay_stream/7/model.onnx"].islnk()
        assert {(member.uid, member.gid, member.uname, member.mtime) for member in members.values()} == {
            (0, 0, "", 0)
        }

    def test_one_that_loses_its_tag_is_told(
        self, small: Path, registry: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = f"oci://{registry}/voices/raced"
        write = oci.write_image

        def written(release: Any, folder: Path) -> str:
            return write(release, folder)[:-1] + "x"

        monkeypatch.setattr(oci, "write_image", written)
        with pytest.raises(ReleaseError, match=r"raced:1 was published by another process"):
            publish_to(small, store)

    def test_a_registry_that_is_not_there_is_named(self, small: Path, registry: str) -> None:
        with pytest.raises(ReleaseError, match=r"oci://127.0.0.1:9/a: skopeo list-tags failed: .*refused"):
            publish_to(small, "oci://127.0.0.1:9/a")


def test_what_is_missing_is_named_with_its_remedy(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ReleaseError, match=r"s3://a/b needs boto3 .*run `pip install 'autovoice\[s3\]'`"):
        publish_to(small, "s3://a/b")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ReleaseError, match=r"oci://h/a needs skopeo: .*`apt-get install skopeo`"):
        publish_to(small, "oci://h/a")


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("/outside", tarfile.REGTYPE, ""),
        ("1/../../outside", tarfile.REGTYPE, ""),
        ("inside", tarfile.SYMTYPE, "other"),
        ("inside", tarfile.LNKTYPE, "../outside"),
        ("inside", tarfile.FIFOTYPE, ""),
    ],
)
def test_a_layer_writes_nothing_elsewhere(name: str, kind: bytes, target: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    with pytest.raises(tarfile.TarError, match="does not belong into a release"):
        oci._require_inside(member)
