"""Files of audio as bytes: what FFmpeg does not tell of them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Literal, NamedTuple

_HEAD_BYTES = 1 << 16
_INTEGERS, _FLOATS, _EXTENSIBLE = 1, 3, 0xFFFE  # kinds of samples in a WAV
_SEARCH_BYTES = 1 << 20
TAGS = (b"TAG", b"ID3", b"APETAG", b"LYRICS")  # which programs put before and behind the sound
_OGG_CODECS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ", b"\x80theora", b"fishead")
_OGG_PAGE_BYTES = 65_307  # at most
_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")


class FileView:
    """Read-only file object over a descriptor, with a position of its own and no name.

    FFmpeg would take a name for a hint of the format.

    Args:
        descriptor: of a file that can be sought in.
        offset: where the view begins.

    Attributes:
        end: where it ends, counted from its beginning; None for the file's end.
    """

    def __init__(self, descriptor: int, offset: int = 0) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._position = 0
        self._patches: dict[int, bytes] = {}
        self.end: int | None = None

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`."""
        data = self.at(self._position, size)
        self._position += len(data)
        return data

    def at(self, position: int, size: int) -> bytes:
        """The bytes at a place, at most `size`; the position stays, which a decoder relies on."""
        if self.end is not None:
            size = max(min(size, self.end - position), 0)
        data = os.pread(self._descriptor, size, self._offset + position)
        for place, new in self._patches.items():
            start, stop = max(place, position), min(place + len(new), position + len(data))
            if start < stop:
                middle = new[start - place : stop - place]
                data = data[: start - position] + middle + data[stop - position :]
        return data

    def patch(self, position: int, new: bytes) -> None:
        """Show other bytes at a place than those of the file."""
        self._patches[position] = new

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte of the view."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError(22, "Invalid argument")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """The byte that is read next."""
        return self._position

    def part(self, start: int, end: int) -> FileView:
        """A view of some of the bytes."""
        view = FileView(self._descriptor, self._offset + start)
        view.end = end - start
        return view

    @property
    def size(self) -> int:
        """Bytes of the view."""
        if self.end is not None:
            return self.end
        return max(os.fstat(self._descriptor).st_size - self._offset, 0)


def complete_header(view: FileView) -> None:
    """Give an AU, AIFF or W64 that says it has no samples the size that it has.

    That is what a recorder writes that does not know yet how long it will be, or that died.
    """
    head = view.at(0, _HEAD_BYTES)
    if head[:4] == b".snd" and head[8:12] == bytes(4):
        view.patch(8, b"\xff\xff\xff\xff")
    elif head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        place = head.find(b"SSND")
        if place > 0 and head[place + 4 : place + 8] == bytes(4):
            view.patch(place + 4, min(view.size - place - 8, 0xFFFFFFFE).to_bytes(4, "big"))
            view.patch(4, min(view.size - 8, 0xFFFFFFFE).to_bytes(4, "big"))
    elif head[:16] == _W64_RIFF:
        place = head.find(_W64_DATA)
        if place > 0 and head[place + 16 : place + 24] == bytes(8):
            view.patch(place + 16, (view.size - place).to_bytes(8, "little"))
            view.patch(16, view.size.to_bytes(8, "little"))


def wav_pieces(view: FileView) -> list[tuple[int, int]]:
    """Where the samples of a RIFF WAV lie, begin and end; FFmpeg takes the last of several pieces for all."""
    found = []
    if view.at(0, 4) == b"RIFF" and view.at(8, 4) == b"WAVE":
        position = 12
        while len(head := view.at(position, 8)) == 8:
            start, size = position + 8, int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                found.append((start, min(start + size, view.size)))
            position = start + size + size % 2
    return found


def next_file(view: FileView) -> int | None:
    """Where another FLAC or Ogg file begins in this one, which FFmpeg decodes with the settings of the first.

    Ogg calls these the links of a chain: each begins with pages that say so, one for each of its streams.
    """
    magic = view.at(0, 4)
    if magic == b"fLaC":
        return _find(view, b"fLaC\0\0\0\x22", 4)
    position, first = 0, magic == b"OggS"
    while magic == b"OggS":
        head = view.at(position, 27 + 255 + 8)
        if head[:5] != b"OggS\0" or len(head) < 27:
            found = _find(view, b"OggS\0", position + 1)
            if found is None:
                return None
            position = found
            continue
        start = 27 + head[26]
        begins = bool(head[5] & 2) and head[start:].startswith(_OGG_CODECS)
        if begins and not first:
            return position
        first = begins
        position += start + sum(head[27:start])
    return None


def _find(view: FileView, pattern: bytes, start: int) -> int | None:
    """The first place from `start` on that holds `pattern`."""
    while data := view.at(start, _SEARCH_BYTES):
        found = data.find(pattern)
        if found >= 0:
            return start + found
        if len(data) < len(pattern):
            return None
        start += len(data) - len(pattern) + 1
    return None


def misread_pcm(view: FileView) -> str | None:
    """The codec of a WAV whose samples FFmpeg takes for others; None for all that it reads rightly.

    These are WAVs of big-endian numbers, and extensible ones whose samples use fewer bits than they have.
    """
    head = view.at(0, _HEAD_BYTES)
    place = head.find(b"fmt ") + 8
    order, suffix = (">", "be") if head[:4] == b"RIFX" else ("<", "le")
    if place < 8 or len(head) < place + 40:
        return None
    tag, channels, _, _, size = struct.unpack_from(f"{order}HHIIH", head, place)
    extensible = tag == _EXTENSIBLE
    if extensible:
        (tag,) = struct.unpack_from(f"{order}H", head, place + 24)
    if not channels or not (order == ">" or extensible):
        return None
    bits = 8 * (size // channels)
    if tag == _INTEGERS and bits in (8, 16, 24, 32):
        return "pcm_u8" if bits == 8 else f"pcm_s{bits}{suffix}"
    return f"pcm_f{bits}{suffix}" if tag == _FLOATS and bits in (32, 64) else None


def data_position(view: FileView) -> int | None:
    """Where the samples of a WAV begin, as far as its first bytes tell."""
    place = view.at(0, _HEAD_BYTES).find(b"data")
    return None if place < 0 else place + 8


class Chunks(NamedTuple):
    """How the parts of a file of PCM are put together: a name of four letters, a size, and so many bytes.

    Attributes:
        size_bytes: of the size.
        order: of the bytes in the size.
        skipped: bytes between the size of the samples and the samples.
        unknown: sizes of recordings whose end was not known when their header was written.
    """

    size_bytes: int
    order: Literal["big", "little"]
    skipped: int
    unknown: Callable[[int], bool]

    def says_no_length(self, view: FileView, position: int) -> bool:
        """Whether the header says nothing of where the samples end, which begin at `position`."""
        size = view.at(position - self.skipped - self.size_bytes, self.size_bytes)
        return self.unknown(int.from_bytes(size, self.order, signed=True))

    def is_at(self, view: FileView, position: int) -> bool:
        """Whether there is another part at `position`, or what tagging programs append."""
        head = view.at(position, 4 + self.size_bytes)
        if head.startswith(TAGS):
            return True
        named = len(head) == 4 + self.size_bytes and all(32 <= byte < 127 for byte in head[:4])
        return named and int.from_bytes(head[4:], self.order) <= view.size - position


CHUNKS = {
    "wav": Chunks(4, "little", 0, lambda size: size <= 0 or size >= 0x7FFF0000),
    "aiff": Chunks(4, "big", 8, lambda size: size <= 0),
    "caf": Chunks(8, "big", 4, lambda size: size <= 0),
}


def ends_inside_page(view: FileView) -> bool:
    """Whether an Ogg file was cut off in the middle of a page."""
    data = view.at(max(view.size - 2 * _OGG_PAGE_BYTES, 0), 2 * _OGG_PAGE_BYTES)
    start = data.rfind(b"OggS\0")
    sizes = data[start + 27 :][: data[start + 26]] if start >= 0 and start + 26 < len(data) else b""
    return start >= 0 and start + 27 + len(sizes) + sum(sizes) > len(data)
