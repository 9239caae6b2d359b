"""Releases in an OCI registry: images whose one layer holds the repository in `/models`; by skopeo."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from autovoice.errors import ReleaseError
from autovoice.releases.release import Release, walk
from autovoice.repository.plans import sha256

MODELS = "models"
"""Folder of the repository in the image."""

_IMAGE = "application/vnd.oci.image"
_EXTRACTION: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


class OciStore:
    """A repository of a registry, with a tag for each release. Logins are those of `skopeo login`.

    A registry of this machine may be reached without TLS.

    Args:
        place: `registry/name`.

    Raises:
        ReleaseError: skopeo is not installed.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        program = shutil.which("skopeo")
        if program is None:
            raise ReleaseError(f"oci://{place} needs skopeo: install it, on Debian `apt-get install skopeo`")
        self._program = program
        host = place.partition("/")[0].rpartition(":")[0] or place.partition("/")[0]
        self._is_local = host == "localhost" or host.startswith("127.")

    def taken(self) -> list[int]:
        """Numbers of the releases, ascending."""
        return self.numbers()

    def numbers(self) -> list[int]:
        """Numbers of the releases, ascending."""
        try:
            listed = json.loads(self._skopeo("list-tags", self._tls("--"), f"docker://{self._place}"))
        except ReleaseError as error:
            if re.search("name unknown|not known to registry|404", str(error)):  # no release so far
                return []
            raise
        return sorted(int(tag) for tag in listed["Tags"] if re.fullmatch(r"[1-9][0-9]*", tag))

    def address(self, number: int) -> str:
        """Where a release is found."""
        return f"oci://{self._place}:{number}"

    def put(self, release: Release) -> None:
        """Push a release as an image with its number as the tag.

        A registry moves a tag when it is asked to. So the tag is looked at before, and again afterwards.

        Raises:
            ReleaseError: a release of that number exists, or appeared meanwhile; the push failed.
        """
        number = release.number
        if number in self.numbers():
            raise ReleaseError(f"{self.address(number)} exists and was left as it is: give another number")
        with tempfile.TemporaryDirectory(prefix="autovoice-image-") as folder:
            digest = write_image(release, Path(folder))
            target = f"docker://{self._place}:{number}"
            # Not compressed on the way, which would give the image another digest.
            self._skopeo("copy", "--preserve-digests", self._tls("--dest-"), f"oci:{folder}:{number}", target)
        found = self._skopeo("inspect", self._tls("--"), "--format", "{{.Digest}}", target).strip()
        if found != digest:
            raise ReleaseError(
                f"{self.address(number)} was published by another process at the same time: publish again "
                "for the next number"
            )

    def get(self, number: int, folder: Path) -> None:
        """Pull a release into an empty folder.

        Raises:
            ReleaseError: there is none, or it cannot be pulled.
        """
        with tempfile.TemporaryDirectory(prefix="autovoice-image-") as image:
            source = f"docker://{self._place}:{number}"
            self._skopeo("copy", self._tls("--src-"), source, f"oci:{image}:{number}")
            try:
                read_image(Path(image), folder)
            except (OSError, KeyError, ValueError, tarfile.TarError) as error:
                raise ReleaseError(f"{self.address(number)} is no image of a release ({error})") from error

    def _tls(self, prefix: str) -> str:
        return f"{prefix}tls-verify={'false' if self._is_local else 'true'}"

    def _skopeo(self, command: str, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [self._program, command, *arguments], capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise ReleaseError(f"{self._program} cannot be started: {error.strerror}") from error
        if done.returncode:
            told = re.search(r'msg="(.*)"', done.stderr)
            reason = told[1].replace('\\"', '"') if told else done.stderr.strip()
            raise ReleaseError(f"oci://{self._place}: skopeo {command} failed: {reason}")
        return done.stdout


def write_image(release: Release, folder: Path) -> str:
    """Write a release as an OCI image layout; the same release always gives the same image.

    Args:
        release: what the layer holds, under `models`.
        folder: an empty one.

    Returns:
        Digest of the image's manifest, `sha256:` before it.

    Raises:
        OSError: something cannot be read or written.
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer = _write_layer(release, blobs)
    config = {
        "architecture": "amd64",  # it holds no program: any machine can mount it
        "os": "linux",
        "created": release.created,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_IMAGE}.manifest.v1+json",
        "config": _write_json(blobs, f"{_IMAGE}.config.v1+json", config),
        "layers": [layer],
        "annotations": {
            "org.opencontainers.image.title": f"AutoVoice release {release.number}",
            "org.opencontainers.image.created": release.created,
            "org.opencontainers.image.version": str(release.number),
            "org.autovoice.release.sha256": release.sha256,
        },
    }
    entry = _write_json(blobs, f"{_IMAGE}.manifest.v1+json", manifest)
    tagged = {**entry, "annotations": {"org.opencontainers.image.ref.name": str(release.number)}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))
    (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    return str(entry["digest"])


def read_image(folder: Path, target: Path) -> None:
    """Unpack the release of an OCI image layout.

    Args:
        folder: of the layout, with one image.
        target: an empty folder.

    Raises:
        OSError: something cannot be read or written.
        KeyError: it is no such layout.
        ValueError: likewise.
        tarfile.TarError: the layer is no archive, or would write outside the folder.
    """
    blobs = folder / "blobs"

    def blob(entry: Any) -> Path:
        return blobs / str(entry["digest"]).replace(":", "/")

    index = json.loads((folder / "index.json").read_text())
    manifest = json.loads(blob(index["manifests"][0]).read_text())
    for layer in manifest["layers"]:
        with tarfile.open(blob(layer)) as archive:
            for member in archive:
                member.name = member.name.removeprefix(f"{MODELS}/")
                member.linkname = member.linkname.removeprefix(f"{MODELS}/")
                _require_inside(member)
                archive.extract(member, target, **_EXTRACTION)


def _require_inside(member: tarfile.TarInfo) -> None:
    """Refuse what no layer of ours holds and what would be written elsewhere.

    Python before 3.10.12 and 3.11.4 has no filters that do.

    Raises:
        tarfile.TarError: it is such a member.
    """
    is_plain = member.isfile() or member.isdir() or member.islnk()
    paths = [PurePosixPath(member.name), PurePosixPath(member.linkname)]
    if not is_plain or any(path.is_absolute() or ".." in path.parts for path in paths):
        raise tarfile.TarError(f"{member.name} does not belong into a release")


def _write_layer(release: Release, blobs: Path) -> dict[str, Any]:
    """The layer's blob: an archive, not compressed, as weights do not get smaller."""
    path = blobs / "layer"
    folders = {parent for name, _ in walk(release.path) for parent in Path(MODELS, name).parents}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for folder in sorted(folders - {Path()}):
            entry = tarfile.TarInfo(folder.as_posix())
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, _ in walk(release.path):
            file = release.path / name
            entry = archive.gettarinfo(file, f"{MODELS}/{name}")  # names of one file become hard links
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime, entry.mode = 0, 0o444
            with file.open("rb") as content:
                archive.addfile(entry, content if entry.isreg() else None)
    digest = sha256(path)
    path.rename(blobs / digest)
    size = (blobs / digest).stat().st_size
    return {"mediaType": f"{_IMAGE}.layer.v1.tar", "digest": f"sha256:{digest}", "size": size}


def _write_json(blobs: Path, media_type: str, content: Any) -> dict[str, Any]:
    data = json.dumps(content, sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
