"""Encoders of audio files: libsndfile, and FFmpeg for AAC."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from autovoice.atomic import reason_of
from autovoice.errors import OutputError
from autovoice.results import FloatArray

FORMATS = ("wav", "flac", "ogg", "opus", "mp3", "m4a")
_SUFFIX_FORMATS = {
    ".wav": "WAV",
    ".flac": "FLAC",
    ".ogg": "OGG",
    ".opus": "OPUS",
    ".mp3": "MP3",
    ".m4a": "M4A",
    ".aiff": "AIFF",
    ".aif": "AIFF",
}
_MPEG_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_RATES = {
    "OPUS": (8_000, 12_000, 16_000, 24_000, 48_000),
    "MP3": _MPEG_RATES,
    "M4A": (7_350, *_MPEG_RATES, 64_000, 88_200, 96_000),
}
_HIGHEST_RATES = {"FLAC": 384_000, "OGG": 192_000}  # of the usual ones
_AAC_BIT_RATE = 96_000
_AAC_FRAME = 1024


def is_device(path: Path) -> bool:
    """Whether a path names a pipe, a terminal or another device, which is written to and not replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def file_format(path: Path | None, audio_format: str | None) -> str:
    """libsndfile's name of the format to write, `"OPUS"`, or `"M4A"`.

    Args:
        path: whose suffix tells; None for a file object.
        audio_format: one of `FORMATS`, which goes before the suffix; None for none.

    Raises:
        OutputError: there is no such format.
    """
    if audio_format is not None:
        found = _SUFFIX_FORMATS.get(f".{audio_format}") if isinstance(audio_format, str) else None
        if found is None:
            raise OutputError(
                f"the output format {audio_format!r} is unknown; use one of {', '.join(FORMATS)}"
            )
        return found
    suffix = "" if path is None else path.suffix.lower()
    if path is None or (not suffix and is_device(path)):
        return "WAV"
    if suffix not in _SUFFIX_FORMATS:
        raise OutputError(
            f"output {path} has the unknown suffix {suffix!r}; use one of {', '.join(_SUFFIX_FORMATS)}"
        )
    return _SUFFIX_FORMATS[suffix]


def fitting_rate(file_format: str, sample_rate: int) -> int:
    """The rate at which a format takes a recording: its own, else the next higher one, else the highest."""
    rates = _RATES.get(file_format)
    if rates is None:
        return min(sample_rate, _HIGHEST_RATES.get(file_format, sample_rate))
    return min((rate for rate in rates if rate >= sample_rate), default=rates[-1])


def checked_subtype(subtype: Any, file_format: str, name: str) -> str | None:
    """The subtype as libsndfile calls it; None for the usual one.

    Raises:
        OutputError: the format has no such subtype.
    """
    import soundfile

    if file_format == "OPUS":
        known = {"OPUS": ""}
    else:
        known = {"AAC": ""} if file_format == "M4A" else soundfile.available_subtypes(file_format)
    if subtype is not None and not (isinstance(subtype, str) and subtype.upper() in known):
        raise OutputError(
            f"subtype {subtype!r} is not one that {file_format} files such as {name} have; use "
            f"{', '.join(known)}"
        )
    return "OPUS" if file_format == "OPUS" else subtype


class Disk:
    """File object for an encoder that remembers the first failure of the system.

    libsndfile tells only of some failed writes: the last ones, made when an encoder is closed, it loses.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            return 0

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)  # writes what is buffered
        except OSError as error:
            self.error = self.error or error
            return 0

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.error = self.error or error


class AacEncoder:
    """Writes mono audio as AAC in an MPEG-4 file, with the interface of `soundfile.SoundFile`.

    Raises:
        ValueError: AAC has no such sample rate.
    """

    def __init__(self, disk: Disk, sample_rate: int, tags: Mapping[str, str]) -> None:
        import av

        if sample_rate not in _RATES["M4A"]:
            raise ValueError("AAC has no such rate")
        self._container = av.open(disk, "w", format="ipod")
        self._container.metadata.update(
            {"encoder" if name == "software" else name: text for name, text in tags.items()}
        )
        self._stream = self._container.add_stream("aac", rate=sample_rate, layout="mono")
        self._stream.bit_rate = _AAC_BIT_RATE
        self._queue = av.AudioFifo()
        self._frame = av.AudioFrame
        self._position = 0

    def write(self, samples: FloatArray) -> None:
        """Append mono samples [n]."""
        frame = self._frame.from_ndarray(np.ascontiguousarray(samples[np.newaxis]), "fltp", "mono")
        frame.sample_rate = self._stream.rate
        self._queue.write(frame)
        self._encode(partial=False)

    def close(self) -> None:
        """Write the rest."""
        self._encode(partial=True)
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def _encode(self, *, partial: bool) -> None:
        while (frame := self._queue.read(_AAC_FRAME, partial=False)) is not None or (
            partial and (frame := self._queue.read(_AAC_FRAME, partial=True)) is not None
        ):
            frame.pts = self._position
            frame.time_base = Fraction(1, self._stream.rate)
            self._position += frame.samples
            self._container.mux(self._stream.encode(frame))


def make_encoder(
    disk: Disk, file_format: str, subtype: str | None, rate: int, tags: Mapping[str, str], name: str
) -> Any:
    """Open an encoder, with the interface of `soundfile.SoundFile`.

    Args:
        disk: what is written to.
        file_format: see `file_format`.
        subtype: see `checked_subtype`.
        rate: Hz.
        tags: metadata by libsndfile's names; a format without a field goes without.
        name: of the output, for errors.

    Raises:
        OutputError: the format does not take the rate.
    """
    import soundfile

    try:
        if file_format == "M4A":
            return AacEncoder(disk, rate, tags)
        kind = "OGG" if file_format == "OPUS" else file_format
        encoder = soundfile.SoundFile(disk, "w", samplerate=rate, channels=1, subtype=subtype, format=kind)
    except (soundfile.LibsndfileError, ValueError, TypeError) as error:
        raise OutputError(
            f"output {name} cannot be written as {file_format} at {rate} Hz ({reason_of(error)}); choose "
            "another format or output rate"
        ) from error
    for field, value in tags.items():
        with suppress(soundfile.LibsndfileError):
            setattr(encoder, field, value)
    return encoder
