"""What a file is that is not what was asked for, by its first bytes."""

from __future__ import annotations

import codecs
import re
import zipfile
from pathlib import Path, PurePosixPath

_HEAD_BYTES = 512
_TAR_MARK = slice(257, 262)
FAISS_INDEX = "is a faiss index: pass it with --index"
_UNPACK = "unpack it and give the file inside"
_DOWNLOAD = "download it again"

_SIGNATURES: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), text)
    for pattern, text in (
        (
            rb"version https://git-lfs",
            "is a Git LFS pointer and not the file it stands for: run `git lfs pull`, or download that file",
        ),
        (
            rb"(\xef\xbb\xbf)?\s*<",
            f"is a web page and not the file behind it: {_DOWNLOAD}, signed in if asked",
        ),
        (rb"Rar!", f"is a RAR archive: {_UNPACK}"),
        (rb"7z\xbc\xaf\x27\x1c", f"is a 7z archive: {_UNPACK}"),
        (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", f"is compressed: {_UNPACK}"),
        (rb"\x93NUMPY", "is a NumPy array, such as RVC's total_fea.npy: give what RVC made from it"),
        (rb"I[wxHv][A-Za-z0-9]{2}", FAISS_INDEX),
        (rb"IBx|IBw", "is a binary faiss index, which RVC does not make"),
        (rb"\x08[\x03-\x0d][\x12\x3a\x42]", "is an ONNX model: give the file that it was exported from"),
        (rb"RIFF|fLaC|OggS|ID3", "is a recording"),
        (rb"GGUF|\x89HDF|%PDF", "is of another program"),
    )
)


def other_kind(path: Path) -> str | None:
    """What a file is, with a remedy, where it is clearly nothing that PyTorch wrote; else None."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return f"is empty: {_DOWNLOAD}"
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if head[_TAR_MARK] == b"ustar":
        return f"is a tar archive: {_UNPACK}"
    for pattern, text in _SIGNATURES:
        if pattern.match(head):
            return text
    return f"is a text file: {_DOWNLOAD}" if _is_text(head) else None


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last letter may be cut
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter.isspace() for letter in text)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON header, and the header."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def is_torch_archive(names: list[str]) -> bool:
    """Whether the members of a zip are those of ``torch.save``."""
    return any(PurePosixPath(name).name == "data.pkl" for name in names)


def _zip_kind(path: Path) -> str | None:
    """What is wrong with a zip: ``torch.save`` writes one too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return f"is truncated, its end is missing: {_DOWNLOAD} and compare its size"
    if not is_torch_archive(names):
        kind = (
            "a NumPy archive" if names and all(name.endswith(".npy") for name in names) else "a ZIP archive"
        )
        return f"is {kind}: {_UNPACK}"
    if any(PurePosixPath(name).name == "constants.pkl" for name in names):
        return "is a TorchScript program, which is not read: give the checkpoint it was made from"
    return None
