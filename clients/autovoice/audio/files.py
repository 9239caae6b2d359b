"""Audio files: reading in blocks, and writing that leaves a whole file or none."""

from __future__ import annotations

import math
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from autovoice.atomic import as_path, atomic_path, full_disk, reason_of
from autovoice.audio.channels import MIX, check_channel, choose_channel, mix, mix_weights
from autovoice.audio.decoding import Decoded, Findings, decode, parse_pcm_format
from autovoice.audio.encoding import (
    Disk,
    checked_subtype,
    file_format,
    fitting_rate,
    is_device,
    make_encoder,
)
from autovoice.audio.levels import LevelMeter, loud_level
from autovoice.audio.samples import (
    Resampler,
    as_mono,
    check_block,
    check_sample_rate,
    reblock,
    resample,
    slices,
)
from autovoice.errors import AudioFileError, AudioFileWarning, AudioInputError, OutputError
from autovoice.results import FloatArray

_WRITE_FRAMES = 1 << 15  # libsndfile's Vorbis encoder overflows its stack on very long writes
_WAV_LIMIT_BYTES = 4_000_000_000
FULL_SCALE = 0.99


class AudioSource:
    """Audio in a file that can be read from the start any number of times, mixed down, in blocks.

    The whole file is decoded once when this is made, which tells how long and how loud it is, whether it is
    damaged, and which of its channels to take.

    Args:
        file: a path, or a binary file object that is read to its end.
        channel: `"mix"`, `"left"`, `"right"`, `"loudest"`, or the number of a channel, from 1 on.
        input_format: how to read samples without a header, such as `"f32le:24000:1"`: encoding, Hz and
            number of channels; None for a file that says what it is.
        strict: refuse a file that is damaged, instead of a warning.

    Attributes:
        path: of the file; the name of a file object.
        sample_rate: Hz.
        frames: how many samples there are.
        level: RMS of the loud parts, full scale 1; 0 for silence.
        warnings: what was found, a sentence each.
        tags: metadata by lower-case names such as `"title"`.

    Raises:
        AudioFileError: missing, a directory, empty, or not audio; damaged, with `strict`.
        AudioInputError: the file holds NaN or Inf, or lacks the channel.
        ConfigurationError: there is no such `input_format` or `channel`.
        SampleRateError: when its rate is outside 4 to 768 kHz.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | BinaryIO,
        *,
        channel: str | int = MIX,
        input_format: str | None = None,
        strict: bool = False,
    ) -> None:
        wanted = check_channel(channel)
        self._pcm = None if input_format is None else parse_pcm_format(input_format)
        self._copy: BinaryIO | None = None
        if _is_path(file, "read"):
            self.path = as_path(file, "the audio file", AudioFileError)
            self._check_path()
        else:
            self.path = Path(str(getattr(file, "name", "<stream>")))
            self._copy = _copied(file, self.path)
        self.sample_rate = 0
        self.frames = 0
        self._taken: int | None = None
        self._scan(wanted, strict)

    def blocks(self, frames: int) -> Iterator[FloatArray]:
        """Yield mono float32 blocks of `frames` samples, the last one shorter.

        Raises:
            AudioFileError: when the file cannot be read any more.
        """
        return reblock((mono for _, mono in self._mono(Findings())), frames)

    def _check_path(self) -> None:
        try:
            mode = self.path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise AudioFileError(f"{self.path} is a directory; name an audio file in it")
            if not stat.S_ISREG(mode):  # a pipe, which can be read once
                with self.path.open("rb") as pipe:
                    self._copy = _copied(pipe, self.path)
        except FileNotFoundError:
            raise AudioFileError(f"{self.path} does not exist; check the path") from None
        except OSError as error:
            raise AudioFileError(f"{self.path} cannot be read ({reason_of(error)}); check the path") from None

    def _scan(self, channel: str | int, strict: bool) -> None:
        """Decode everything once, to know its length, its level, its damage and its channels."""
        findings = Findings()
        meter: LevelMeter | None = None
        weights = np.ones(1, np.float32)
        for part, mono in self._mono(findings):
            check_block(mono, str(self.path), self.frames)
            self.frames += mono.size
            if part is None:
                continue
            if meter is None:
                meter = LevelMeter(self.sample_rate)
                weights = mix_weights(part.channels, len(part.audio))
            rows = np.concatenate((part.audio, mix(part.audio, part.channels)[np.newaxis]))
            if len(rows) != len(weights) + 1:  # another recording behind the first one
                rows = np.repeat(rows[-1:], len(weights) + 1, axis=0)
            meter.push(rows)
        if meter is None and findings.failures:
            raise AudioFileError(
                f"{self.path} cannot be read as audio (nothing in it can be decoded); {self._remedy()}"
            )
        if not self.frames:
            self.sample_rate = check_sample_rate(findings.sample_rate, f"the sample rate of {self.path}")
        powers = np.zeros((2, 0)) if meter is None else meter.powers()
        self._taken, reason = choose_channel(channel, powers, weights)
        self.level = loud_level(powers[-1 if self._taken is None else self._taken])
        self.tags = findings.tags
        damage = findings.damage()
        if damage and strict:
            raise AudioFileError(f"{self.path} is damaged: {damage}; copy the whole file again")
        self.warnings = tuple(
            text
            for text in (
                damage and f"{self.path} is damaged: {damage}; all that can be decoded is taken",
                reason and f"{self.path}: {reason}",
            )
            if text
        )

    def _mono(self, findings: Findings) -> Iterator[tuple[Decoded | None, FloatArray]]:
        """Everything that can be decoded, and its mix at the rate of the first sample."""
        resampler: Resampler | None = None
        rate = 0
        nothing = np.zeros(0, np.float32)
        for part in self._decoded(findings):
            if not self.sample_rate:
                self.sample_rate = check_sample_rate(part.sample_rate, f"the sample rate of {self.path}")
            if resampler is None or rate != part.sample_rate:  # another recording may follow the first one
                if resampler is not None:
                    yield None, resampler.push(nothing, last=True)
                rate = check_sample_rate(part.sample_rate, f"the sample rate of {self.path}")
                resampler = Resampler(rate, self.sample_rate)
            if self._taken is None:
                mono = mix(part.audio, part.channels)
            else:
                mono = np.ascontiguousarray(part.audio[min(self._taken, len(part.audio) - 1)])
            yield part, resampler.push(mono)
        if resampler is not None:
            yield None, resampler.push(nothing, last=True)

    def _decoded(self, findings: Findings) -> Iterator[Decoded]:
        import av

        try:
            with self._opened() as descriptor:
                yield from decode(descriptor, self._pcm, findings)
        except (av.FFmpegError, AudioFileError) as error:
            raise AudioFileError(
                f"{self.path} cannot be read as audio ({reason_of(error)}); {self._remedy()}"
            ) from error
        except OSError as error:
            raise AudioFileError(
                f"{self.path} cannot be read ({reason_of(error)}); check the disk"
            ) from error

    @contextmanager
    def _opened(self) -> Iterator[int]:
        if self._copy is not None:
            yield self._copy.fileno()
        else:
            with self.path.open("rb", buffering=0) as file:
                yield file.fileno()

    def _remedy(self) -> str:
        with self._opened() as descriptor:
            if not os.fstat(descriptor).st_size:
                return "the file is empty, so produce it again"
        return "give an audio file"


def _is_path(file: Any, method: str) -> bool:
    """Whether `file` is to be taken for a path, and not for a file object with this method."""
    return isinstance(file, (str, bytes, os.PathLike)) or not hasattr(file, method)


def _copied(stream: Any, name: Path) -> BinaryIO:
    """A temporary file without a name that holds what is left of `stream`."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        shutil.copyfileobj(stream, copy, 1 << 20)
        copy.flush()
    except OSError as error:
        copy.close()
        raise AudioFileError(
            f"{name} cannot be copied into {tempfile.gettempdir()} ({reason_of(error)}); set TMPDIR to a "
            "folder with more space"
        ) from error
    return copy


def why_not_audio(path: str | os.PathLike[str]) -> str | None:
    """Why a file is not audio, by its content, in a few words; None for audio."""
    import av

    try:
        with open(path, "rb", buffering=0) as file:
            findings = Findings()
            if next(decode(file.fileno(), None, findings), None) is None and findings.failures:
                return "nothing in it can be decoded"
    except (av.FFmpegError, AudioFileError) as error:
        return reason_of(error)
    except OSError as error:
        return reason_of(error)
    return None


def read_audio(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    channel: str | int = MIX,
    input_format: str | None = None,
    strict: bool = False,
) -> tuple[FloatArray, int]:
    """Read a whole file, mixed down.

    Args:
        path, channel, input_format, strict: see `AudioSource`.

    Returns:
        Mono float32 samples [T] and the sample rate in Hz.

    Raises:
        AudioFileError, AudioInputError, ConfigurationError, SampleRateError: see `AudioSource`.

    Warns:
        AudioFileWarning: the file is damaged, or one of its channels was taken alone.
    """
    source = AudioSource(path, channel=channel, input_format=input_format, strict=strict)
    if not source.frames:
        raise AudioInputError(f"{source.path} holds no samples; give at least one frame of 10 ms")
    warn_about(source)
    return np.concatenate(list(source.blocks(source.sample_rate * 10))), source.sample_rate


def warn_about(source: AudioSource) -> None:
    """Pass on what was found in a file."""
    for text in source.warnings:
        warnings.warn(AudioFileWarning(text), stacklevel=1)


class _Samples:
    """Converted audio in a temporary file, until its peak is known.

    Args:
        folder: where to make the file; None for that of temporary files.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.peak = 0.0

    def write(self, samples: FloatArray) -> None:
        """Append mono samples [n]."""
        self._file.write(samples.tobytes())
        self.peak = max(self.peak, float(np.abs(samples).max(initial=0.0)))

    def blocks(self) -> Iterator[FloatArray]:
        """Yield everything that was written."""
        self._file.seek(0)
        while data := self._file.read(4 * _WRITE_FRAMES):
            yield np.frombuffer(data, np.float32)

    def close(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self._file.close()


class AudioSink:
    """Writer of one mono file; made by `open_sink`.

    Attributes:
        name: of the file.
        samples: how many were written so far.
        gain_db: by how much the audio was lowered so as not to clip, 0 or less; known at the end.
    """

    def __init__(self, encoder: Any, disk: Disk, held: _Samples | None, name: str) -> None:
        self._encoder = encoder
        self._disk = disk
        self._held = held
        self.name = name
        self.samples = 0
        self.gain_db = 0.0

    def write(self, samples: FloatArray) -> None:
        """Append mono samples [n].

        Raises:
            OutputError: when the disk is full.
        """
        self.samples += samples.size
        if self._held is None:
            self._encode(samples)
            return
        with self._whole():
            self._held.write(samples)

    def finish(self) -> None:
        """Make sure that all of it arrived.

        Raises:
            OutputError: when the disk is full.
        """
        if self._held is not None:
            gain = min(1.0, FULL_SCALE / self._held.peak) if self._held.peak else 1.0
            self.gain_db = 20 * math.log10(gain)
            for block in self._held.blocks():
                self._encode(block if gain == 1.0 else block * np.float32(gain))
        with self._whole():
            self._encoder.close()
            self._disk.flush()

    def discard(self) -> None:
        """Close without looking: the file is about to be deleted, and on a full disk closing fails too."""
        with suppress(OutputError), self._whole():
            self._encoder.close()

    def _encode(self, samples: FloatArray) -> None:
        for part in slices(samples, _WRITE_FRAMES):
            with self._whole():
                self._encoder.write(part)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        import av
        import soundfile

        failure: object = None
        try:
            yield
        except (soundfile.LibsndfileError, av.FFmpegError, AssertionError, OSError) as error:
            failure = error  # soundfile asserts on a short write
        failure = self._disk.error or failure
        if failure is not None:
            raise OutputError(full_disk(self.name, failure))


def rate_for(
    output: str | os.PathLike[str] | BinaryIO, sample_rate: int, audio_format: str | None = None
) -> int:
    """The rate at which an output takes a recording: its own, else the next higher one, else the highest.

    Args:
        output, audio_format: see `open_sink`.
        sample_rate: of the recording, Hz.

    Raises:
        OutputError: unknown format.
    """
    path = as_path(output, "output", OutputError) if _is_path(output, "write") else None
    return fitting_rate(file_format(path, audio_format), sample_rate)


@contextmanager
def open_sink(
    output: str | os.PathLike[str] | BinaryIO,
    sample_rate: int,
    *,
    audio_format: str | None = None,
    subtype: str | None = None,
    expected_samples: int = 0,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = True,
    lower_peaks: bool = False,
) -> Iterator[AudioSink]:
    """Open a mono audio file for writing, which takes its name only when the block ends without an error.

    Args:
        output: a path, whose suffix is the format unless `audio_format` is given; or a binary file object or
            a device, to which everything is written at the end.
        sample_rate: Hz.
        audio_format: one of `autovoice.audio.encoding.FORMATS`.
        subtype: a soundfile subtype such as `"PCM_24"` or `"FLOAT"`; None for the format's usual one.
        expected_samples: a WAV that would pass 4 GB is written as RF64.
        tags: metadata by libsndfile's names; a format without a field goes without.
        overwrite: replace a file that is there when the new one is complete.
        lower_peaks: lower the whole recording where the format would clip it.

    Raises:
        OutputError: unknown format, subtype or rate; missing folder; full disk; a file that is there.
    """
    if _is_path(output, "write"):
        path = as_path(output, "output", OutputError)
        name = str(path)
    else:
        path, name = None, str(getattr(output, "name", "<stream>"))
    kind = file_format(path, audio_format)
    subtype = checked_subtype(subtype, kind, name)
    if kind == "WAV" and expected_samples * 4 > _WAV_LIMIT_BYTES:
        kind = "RF64"
    folder = path.parent if path is not None and not is_device(path) else None
    with _opened_output(output, path, overwrite) as file:
        disk = Disk(file)
        encoder = make_encoder(disk, kind, subtype, sample_rate, tags or {}, name)
        held = None
        try:
            if lower_peaks and subtype not in ("FLOAT", "DOUBLE"):
                held = _Samples(folder)
            sink = AudioSink(encoder, disk, held, name)
            try:
                yield sink
                sink.finish()
            finally:
                sink.discard()
        finally:
            if held is not None:
                held.close()


@contextmanager
def _opened_output(output: Any, path: Path | None, overwrite: bool) -> Iterator[BinaryIO]:
    """The file to encode into, which becomes the output when the block ends without an error."""
    if path is None or is_device(path):  # encoders go back to their header
        with _closed(tempfile.TemporaryFile()) as file:
            yield file
            file.seek(0)
            try:
                if path is None:
                    shutil.copyfileobj(file, output, 1 << 20)
                    output.flush()
                else:
                    with path.open("wb") as device:
                        shutil.copyfileobj(file, device, 1 << 20)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise OutputError(full_disk(path or "stream", error)) from error
        return
    with atomic_path(path, overwrite=overwrite) as temporary, _closed(temporary.open("w+b")) as file:
        yield file


@contextmanager
def _closed(file: Any) -> Iterator[Any]:
    """Close a file in the end; what a full disk did not take was told before."""
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


def write_audio(
    path: str | os.PathLike[str] | BinaryIO,
    audio: npt.ArrayLike,
    sample_rate: int,
    *,
    subtype: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write mono audio [T] in one go, whole or not at all.

    Where the format does not take the rate, as Opus takes no 44.1 kHz, the audio is resampled to the next
    higher one that it takes, or to its highest.

    Raises:
        AudioInputError: samples that are no audio.
        OutputError: see `open_sink`.
    """
    samples = as_mono(audio, "audio to write")
    source_rate = check_sample_rate(sample_rate)
    rate = rate_for(path, source_rate)
    samples = resample(samples, source_rate, rate)
    with open_sink(path, rate, subtype=subtype, expected_samples=samples.size, tags=tags) as sink:
        sink.write(samples)
