"""Audio files: block-wise reading that notices damage, and writing that leaves a whole file or none."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autovoice.atomic import as_path, atomic_path, full_disk, reason_of
from autovoice.audio.samples import as_mono, check_block, check_sample_rate, slices
from autovoice.errors import AudioFileError, AudioInputError, OutputError
from autovoice.results import FloatArray

_SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_LENGTH = 0x7FFF0000  # programs that write to a pipe put 0x7fffffff or 0xffffffff here
_OGG_CUT = "lacks an end-of-stream bit"
_MP3_SLACK = 4 * 1152  # decoder delay and padding
_WRITE_FRAMES = 1 << 15  # libsndfile's Vorbis encoder overflows its stack on very long writes
_WAV_LIMIT_BYTES = 4_000_000_000
_SUFFIX_FORMATS = {
    ".wav": "WAV",
    ".flac": "FLAC",
    ".ogg": "OGG",
    ".mp3": "MP3",
    ".aiff": "AIFF",
    ".aif": "AIFF",
    ".opus": "OGG",
}


class AudioSource:
    """An audio file that can be read from the start any number of times, mixed down, in blocks.

    Args:
        path: the file.

    Raises:
        AudioFileError: missing, a directory, empty, not audio, or truncated.
        SampleRateError: when its rate is outside 8 to 192 kHz.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = as_path(path, "the audio file", AudioFileError)
        try:
            status = self.path.stat()
        except FileNotFoundError:
            raise AudioFileError(f"{self.path} does not exist; check the path") from None
        except OSError as error:
            raise AudioFileError(f"{self.path} cannot be read ({reason_of(error)}); check the path") from None
        if stat.S_ISDIR(status.st_mode):
            raise AudioFileError(f"{self.path} is a directory; name an audio file in it")
        import soundfile

        try:
            info = soundfile.info(os.fsencode(self.path), verbose=True)
        except (soundfile.LibsndfileError, OSError) as error:
            raise AudioFileError(
                f"{self.path} cannot be read as audio ({reason_of(error)}); {self._remedy()}"
            ) from error
        self.sample_rate = check_sample_rate(info.samplerate, f"the sample rate of {self.path}")
        self.frames = int(info.frames)  # exact except for some MP3 files; never relied on for lengths
        cut = _SHORT_CHUNK.search(info.extra_info)
        if cut and int(cut[2]) < int(cut[1]) < _UNKNOWN_LENGTH:
            raise AudioFileError(
                f"{self.path} is truncated: {cut[2]} of {cut[1]} bytes of audio; copy the whole file again"
            )
        if _OGG_CUT in info.extra_info:
            raise AudioFileError(
                f"{self.path} is truncated: its last page is missing; copy the whole file again"
            )
        self._format = str(info.format)

    def blocks(self, frames: int) -> Iterator[FloatArray]:
        """Yield mono float32 blocks of `frames` samples, the last one shorter.

        Raises:
            AudioFileError: when decoding fails or ends early.
            AudioInputError: when the file holds NaN or Inf.
        """
        import soundfile

        position = 0
        try:
            with soundfile.SoundFile(os.fsencode(self.path)) as file:
                # soundfile seeks after every read, and a seek inside an MP3 loses the bits its frames share.
                file.seekable = lambda: False
                while True:
                    block = file.read(frames, dtype="float32", always_2d=True)
                    if not len(block):
                        break
                    mono = (
                        block[:, 0]
                        if block.shape[1] == 1
                        else block.mean(axis=1, dtype=np.float64).astype(np.float32)
                    )
                    check_block(mono, str(self.path), position)
                    position += len(block)
                    yield np.ascontiguousarray(mono)
        except (soundfile.LibsndfileError, OSError) as error:
            raise AudioFileError(
                f"{self.path} is corrupt or truncated after {position} of {self.frames} samples "
                f"({reason_of(error)}); copy the whole "
                f"file again"
            ) from error
        if position < self.frames and not self._length_is_a_guess(position):
            raise AudioFileError(
                f"{self.path} is truncated: {position} of {self.frames} samples; copy the whole file again"
            )

    def _length_is_a_guess(self, position: int) -> bool:
        """MP3 files tell their length only in a Xing or Info header, and then to a few frames."""
        if self._format not in ("MPEG", "MP3"):
            return False
        with self.path.open("rb") as file:
            head = file.read(1 << 20)
        return not (b"Xing" in head or b"Info" in head) or self.frames - position <= _MP3_SLACK

    def _remedy(self) -> str:
        if self.path.stat().st_size == 0:
            return "the file is empty, so produce it again"
        return "give wav, flac, ogg, mp3 or aiff, or convert it with ffmpeg"


def read_audio(path: str | os.PathLike[str]) -> tuple[FloatArray, int]:
    """Read a whole file, mixed down.

    Returns:
        Mono float32 samples [T] and the sample rate in Hz.

    Raises:
        AudioFileError: see `AudioSource`.
        AudioInputError: no samples, NaN or Inf.
    """
    source = AudioSource(path)
    blocks = list(source.blocks(source.sample_rate * 10))
    if not blocks:
        raise AudioInputError(f"{source.path} holds no samples; give at least one frame of 10 ms")
    return np.concatenate(blocks), source.sample_rate


class _Disk:
    """File object for libsndfile that remembers the first failure of the system.

    libsndfile tells only of some failed writes: the last ones, made when an encoder is closed, it loses.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
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

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or error


class AudioSink:
    """Writer of one mono file; made by `open_sink`.

    Attributes:
        samples: how many were written so far.
    """

    def __init__(self, encoder: Any, disk: _Disk, path: str | os.PathLike[str]) -> None:
        self._encoder = encoder
        self._disk = disk
        self._path = path
        self.samples = 0

    def write(self, samples: FloatArray) -> None:
        """Append mono samples [n]; values beyond full scale are clipped by integer formats.

        Raises:
            OutputError: when the disk is full.
        """
        for part in slices(samples, _WRITE_FRAMES):
            with self._whole():
                self._encoder.write(part)
            self.samples += part.size

    def finish(self) -> None:
        """Close the file and make sure that all of it arrived.

        Raises:
            OutputError: when the disk is full.
        """
        with self._whole():
            self._encoder.close()
            self._disk.close()

    def discard(self) -> None:
        """Close without looking: the file is about to be deleted, and on a full disk closing fails too."""
        with suppress(OutputError):
            self.finish()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        import soundfile

        failure: object = None
        try:
            yield
        except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts on a short write
            failure = error
        failure = self._disk.error or failure
        if failure is not None:
            raise OutputError(full_disk(self._path, failure))


@contextmanager
def open_sink(
    path: str | os.PathLike[str],
    sample_rate: int,
    *,
    subtype: str | None = None,
    expected_samples: int = 0,
    tags: Mapping[str, str] | None = None,
) -> Iterator[AudioSink]:
    """Open a mono audio file for writing, which takes its name only when the block ends without an error.

    Args:
        path: wav, flac, ogg, opus, mp3 or aiff, chosen by the suffix.
        sample_rate: Hz.
        subtype: a soundfile subtype such as `"PCM_24"` or `"FLOAT"`; None for the format's usual one.
        expected_samples: a WAV that would pass 4 GB is written as RF64.
        tags: metadata by libsndfile's names; a format without a field goes without.

    Raises:
        OutputError: unknown suffix, subtype or rate; missing folder; full disk.
    """
    import soundfile

    suffix = as_path(path, "output", OutputError).suffix.lower()
    file_format = _SUFFIX_FORMATS.get(suffix)
    if file_format is None:
        raise OutputError(
            f"output {path} has the unknown suffix {suffix!r}; use one of {', '.join(_SUFFIX_FORMATS)}"
        )
    if subtype is None and suffix == ".opus":
        subtype = "OPUS"
    if subtype is not None and not (
        isinstance(subtype, str) and subtype.upper() in soundfile.available_subtypes(file_format)
    ):
        known = ", ".join(soundfile.available_subtypes(file_format))
        raise OutputError(f"subtype {subtype!r} is not one that {file_format} files have; use {known}")
    if file_format == "WAV" and expected_samples * 4 > _WAV_LIMIT_BYTES:
        file_format = "RF64"
    with atomic_path(path) as temporary:
        disk = _Disk(temporary)
        try:
            encoder = soundfile.SoundFile(
                disk, "w", samplerate=sample_rate, channels=1, subtype=subtype, format=file_format
            )
        except (
            soundfile.LibsndfileError,
            ValueError,
            TypeError,
        ) as error:  # TypeError: RAW has no usual subtype
            disk.close()
            raise OutputError(
                f"output {path} cannot be written as {file_format} at {sample_rate} Hz ({reason_of(error)}); "
                "choose another format or output rate"
            ) from error
        for name, value in (tags or {}).items():
            with suppress(soundfile.LibsndfileError):
                setattr(encoder, name, value)
        sink = AudioSink(encoder, disk, path)
        try:
            yield sink
            sink.finish()
        finally:
            sink.discard()


def write_audio(
    path: str | os.PathLike[str],
    audio: npt.ArrayLike,
    sample_rate: int,
    *,
    subtype: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write mono audio [T] in one go, whole or not at all.

    Raises:
        AudioInputError: samples that are no audio.
        OutputError: see `open_sink`.
    """
    samples = as_mono(audio, "audio to write")
    rate = check_sample_rate(sample_rate)
    with open_sink(path, rate, subtype=subtype, expected_samples=samples.size, tags=tags) as sink:
        sink.write(samples)
