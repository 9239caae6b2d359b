"""Decoding of audio files of every kind with PyAV, in blocks, past whatever is damaged."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autovoice.audio.channels import MAX_CHANNELS, usual_names
from autovoice.audio.containers import (
    CHUNKS,
    TAGS,
    Chunks,
    FileView,
    complete_header,
    data_position,
    ends_inside_page,
    misread_pcm,
    next_file,
    wav_pieces,
)
from autovoice.audio.samples import check_sample_rate
from autovoice.errors import AudioFileError, ConfigurationError
from autovoice.results import FloatArray

_SIGNED = ("s16be", "s16le", "s24be", "s24le", "s32be", "s32le")
PCM_FORMATS = frozenset((*_SIGNED, "s8", "u8", "alaw", "mulaw", "f32be", "f32le", "f64be", "f64le"))
# A playlist must not make FFmpeg open other files or addresses: only what we opened is read.
_OPTIONS = {"protocol_whitelist": "none", "max_size": "65536"}  # the latter is the size of a WAV's packets
_GUESSES_LENGTH = frozenset({"aac", "ac3", "amr", "amrnb", "amrwb", "dts", "eac3", "loas", "truehd"})
_BLOCKS_FOR_SAMPLES = frozenset({"aiff", "w64"})  # of compressed samples, FFmpeg misreads their number
_PARTIAL_ENDS = frozenset({"adx"})  # of which FFmpeg asks for more than there is
_BATCH_SAMPLES = 1 << 16
_MAX_FAILURES = 200  # in a row, without a sample between them
_MISSING_SECONDS = 0.05
_MISSING_SECONDS_AT_FAILURE = 0.005
_PAUSE_SECONDS = 0.5  # Opus in Matroska leaves silence out, but for a packet every 0.4 s
_LONGEST_SILENCE_SECONDS = 120.0  # beyond, a time is more likely wrong than so much is lost
_LONGEST_JUMP_SECONDS = 10.0  # the same, in formats whose clock may start anew; it is the limit of FFmpeg


class PcmFormat(NamedTuple):
    """How samples without a header are to be read."""

    name: str
    sample_rate: int
    channels: int


def parse_pcm_format(text: Any) -> PcmFormat:
    """Read a format such as `f32le:24000:1`: encoding, Hz, channels.

    Raises:
        ConfigurationError: it is none.
    """
    name, *numbers = text.split(":") if isinstance(text, str) else ("",)
    if name in PCM_FORMATS and len(numbers) == 2 and all(n.isascii() and n.isdigit() for n in numbers):
        rate, channels = map(int, numbers)
        if 1 <= channels <= MAX_CHANNELS:
            return PcmFormat(name, check_sample_rate(rate, f"the rate of input format {text}"), channels)
    raise ConfigurationError(
        f"input format is {text!r}; give encoding:Hz:channels such as f32le:24000:1, with an encoding "
        f"of {', '.join(sorted(PCM_FORMATS))}"
    )


class Decoded(NamedTuple):
    """Samples that were decoded together.

    Attributes:
        audio: float32 [channels, n], full scale 1, about 65536 samples at most.
        sample_rate: Hz.
        channels: what each channel is, such as `"FL"`; empty where the file does not say.
    """

    audio: FloatArray
    sample_rate: int
    channels: tuple[str, ...]


@dataclass
class Findings:
    """What was noticed while a file was decoded.

    Attributes:
        failures: how many parts could not be decoded.
        cut: whether the file ends where more is to follow by its header.
        longer: whether samples follow those that the header knows of.
        late_seconds: how much is missing before the first sample.
        silent_seconds: how much is lost in the middle by the container's clock; silence takes its place.
        missing_seconds: how much less there is than the file states.
        sample_rate: what the file says, Hz.
        tags: metadata by FFmpeg's names, in lower case.
    """

    failures: int = 0
    cut: bool = False
    longer: bool = False
    late_seconds: float = 0.0
    silent_seconds: float = 0.0
    missing_seconds: float = 0.0
    sample_rate: int = 0
    tags: dict[str, str] = field(default_factory=dict)

    def damage(self) -> str:
        """What is wrong with the file, empty for nothing."""
        found = []
        if self.failures:
            found.append(f"{self.failures} part{'s' * (self.failures > 1)} of it cannot be decoded")
        if self.late_seconds:
            found.append(f"its first {self.late_seconds:.2f} s are missing")
        if self.silent_seconds:
            found.append(f"{self.silent_seconds:.2f} s in the middle are lost and left silent")
        if self.missing_seconds:
            found.append(f"{self.missing_seconds:.2f} s that it should have are missing")
        elif self.cut:
            found.append("it ends before its header says")
        if self.longer:
            found.append("it goes on behind what its header says")
        return " and ".join(found)


def decode(descriptor: int, pcm: PcmFormat | None, findings: Findings) -> Iterator[Decoded]:
    """Yield everything that can be decoded of the best audio stream of a file, in batches.

    WAV, AIFF, CAF, FLAC and Ogg files that were put one behind the other are decoded one after the other.
    Where the header of a WAV, AIFF or CAF says less than there is, what follows is taken for samples as well.

    Args:
        descriptor: of the file, which can be sought in.
        pcm: for samples without a header; None to find the format by the content.
        findings: filled in meanwhile; complete after the last batch.

    Raises:
        av.FFmpegError: the file is of no known format.
        AudioFileError: the file holds no audio.
        OSError: the file cannot be read.
    """
    held: list[Any] = []
    kind: tuple[Any, ...] = ()
    samples = 0
    for silence, frame in _all_frames(descriptor, pcm, findings):
        new = (frame.format.name, frame.sample_rate, frame.layout.name)
        if held and (silence or new != kind or samples >= _BATCH_SAMPLES):
            yield _joined(held)
            held, samples = [], 0
        for position in range(0, silence, _BATCH_SAMPLES):
            shape = len(frame.layout.channels), min(silence - position, _BATCH_SAMPLES)
            yield Decoded(np.zeros(shape, np.float32), frame.sample_rate, _channel_names(frame.layout))
        held.append(frame)
        kind = new
        samples += frame.samples
    if held:
        yield _joined(held)


def _joined(frames: list[Any]) -> Decoded:
    first = frames[0]
    arrays = [frame.to_ndarray() for frame in frames]
    array = np.concatenate(arrays, axis=1) if len(arrays) > 1 else arrays[0]
    names = _channel_names(first.layout)
    if not first.format.is_planar:
        array = array.reshape(-1, len(first.layout.channels)).T
    return Decoded(_as_float(array), first.sample_rate, names)


def _all_frames(descriptor: int, pcm: PcmFormat | None, findings: Findings) -> Iterator[tuple[int, Any]]:
    """Yield every frame, each with the number of samples that are lost before it."""
    import av

    offset = 0
    while True:
        view = FileView(descriptor, offset)
        try:
            rest = yield from _decode_one(view, pcm, findings)
        except (av.FFmpegError, AudioFileError):
            if not offset:
                raise
            findings.failures += 1
            rest = None if view.end is None else _Rest(view.end, None)
        if rest is None:
            return
        offset, pcm = offset + rest.position, rest.pcm


class _Rest(NamedTuple):
    """What follows the samples that a header knows of: another file, or samples."""

    position: int
    pcm: PcmFormat | None


def _decode_one(
    view: FileView, pcm: PcmFormat | None, findings: Findings
) -> Generator[tuple[int, Any], None, _Rest | None]:
    import av

    options = dict(_OPTIONS)
    if pcm is not None:
        options["sample_rate"] = str(pcm.sample_rate)
        options["ch_layout"] = "mono" if pcm.channels == 1 else f"{pcm.channels}C"
    name = None if pcm is None else pcm.name
    if pcm is None:
        view.end = next_file(view)
        complete_header(view)
    with av.open(view, "r", format=name, options=options, metadata_errors="replace") as container:
        stream = best_stream(container)
        findings.tags = {
            key.lower(): value for key, value in {**stream.metadata, **container.metadata}.items()
        }
        findings.sample_rate = findings.sample_rate or stream.codec_context.sample_rate
        clock = _Clock(container.format)
        samples, rate = 0, 0
        first: Any = None
        last: Any = None
        is_wav = pcm is None and container.format.name == "wav"
        codec = (misread_pcm(view) if is_wav else None) or stream.codec_context.name
        raw = codec.removeprefix("pcm_")
        if is_wav and raw in PCM_FORMATS and len(pieces := wav_pieces(view)) > 1:
            of_samples = PcmFormat(raw, stream.codec_context.sample_rate, stream.codec_context.channels)
            tags = findings.tags
            for start, stop in pieces:
                yield from _decode_one(view.part(start, stop), of_samples, findings)
            findings.tags = tags
            return None
        for packet, frames in _frames(container, stream, codec, findings):
            if packet.size:
                first = first or packet
                last = packet
            for frame in frames:
                rate = rate or frame.sample_rate
                silence = clock.lost_before(frame, findings)
                samples += silence + frame.samples
                yield silence, frame
        rest = None
        layout = CHUNKS.get(container.format.name)
        end = None if last is None or last.pos is None else last.pos + last.size
        if end is not None and last.is_corrupt and container.format.name not in _PARTIAL_ENDS:
            findings.cut |= not (layout and layout.says_no_length(view, first.pos))
        if end is None and is_wav:  # a recorder died before it wrote how long the file is
            end = data_position(view)
        if pcm is None and layout is not None and end is not None:
            rest = _rest(view, end, codec, stream, layout)
        if container.format.name == "ogg" and ends_inside_page(view):
            findings.cut = True
        if rest is not None and rest.pcm is not None:
            findings.longer = True
        elif rest is None and rate and codec == stream.codec_context.name:
            _compare(container, stream, clock.start + samples / rate, view.size, findings)
        return rest if view.end is None else _Rest(view.end, None)


class _Clock:
    """Finds what is lost between two frames by the times that the container gives them.

    Args:
        container_format: of the file, as PyAV describes it.

    Attributes:
        start: of the first frame, seconds; 0 where it has no time.
    """

    def __init__(self, container_format: Any) -> None:
        from av.format import Flags

        starts_anew = Flags.ts_discont in Flags(container_format.flags)
        self._longest = _LONGEST_JUMP_SECONDS if starts_anew else _LONGEST_SILENCE_SECONDS
        self._starts_at_zero = container_format.name == "ogg"
        self._leaves_pauses_out = "matroska" in container_format.name
        self._next: float | None = None
        self._failures = 0
        self.start = 0.0

    def lost_before(self, frame: Any, findings: Findings) -> int:
        """Take the next frame; returns how many samples are lost before it, and notes them."""
        start = self._next if frame.pts is None else float(frame.pts * frame.time_base)
        lost: float = 0.0
        if start is not None:
            if self._next is not None:
                lost = start - self._next
            else:
                self.start = max(start, 0.0)
                if self._starts_at_zero and _MISSING_SECONDS < start <= self._longest:
                    findings.late_seconds = start
            self._next = start + frame.samples / frame.sample_rate
        failed = findings.failures > self._failures
        self._failures = findings.failures
        least = _MISSING_SECONDS_AT_FAILURE if failed else _MISSING_SECONDS
        if not least < lost <= self._longest - findings.silent_seconds:
            return 0
        if failed or lost > _PAUSE_SECONDS or not self._leaves_pauses_out:
            findings.silent_seconds += lost
        return int(lost * frame.sample_rate + 0.5)


def best_stream(container: Any) -> Any:
    """The audio stream that players choose.

    Raises:
        AudioFileError: there is none, or none that can be decoded.
    """
    stream = container.streams.best("audio")
    if stream is None:
        raise AudioFileError("it holds no audio")
    if stream.codec_context is None:
        raise AudioFileError("its audio is of a kind that FFmpeg cannot decode")
    return stream


def _frames(container: Any, stream: Any, codec: str, findings: Findings) -> Iterator[tuple[Any, list[Any]]]:
    """Yield every packet with what it decodes to, going on behind what cannot be read or decoded."""
    import av

    own = stream.codec_context
    if codec != own.name:
        own = av.CodecContext.create(codec, "r")
        own.sample_rate, own.layout = stream.codec_context.sample_rate, stream.codec_context.layout
    failures = 0
    while failures < _MAX_FAILURES:
        try:
            for packet in container.demux(stream):
                try:
                    frames = packet.decode() if own is stream.codec_context else _samples_of(packet, own)
                except av.EOFError:
                    frames = []
                except av.FFmpegError:
                    if bytes(packet).startswith(TAGS):
                        continue
                    findings.failures += 1
                    failures += 1
                    if failures >= _MAX_FAILURES:
                        return
                    continue
                if frames:
                    failures = 0
                yield packet, frames
            return
        except av.FFmpegError:  # the stream of packets itself, which goes on when it is asked again
            findings.failures += 1
            failures += 1


def _samples_of(packet: Any, codec: Any) -> list[Any]:
    """What a packet of PCM decodes to with another codec than its stream's; without times."""
    frames: list[Any] = codec.decode(packet) if packet.size else []
    for frame in frames:
        frame.pts = None
    return frames


def _compare(container: Any, stream: Any, end: float, size: int, findings: Findings) -> None:
    """Note what is missing at the end by the length that the file states, where it is no guess."""
    if stream.duration is not None:
        stated = float(stream.duration * stream.time_base)
    elif container.duration is not None and len(container.streams) == 1:
        stated = container.duration / 1e6
    else:
        return
    formats = set(container.format.name.split(","))
    if formats & _GUESSES_LENGTH or findings.late_seconds:
        return
    if formats & _BLOCKS_FOR_SAMPLES and not stream.codec_context.name.startswith("pcm_"):
        return
    bit_rate = stream.codec_context.bit_rate
    if "mp3" in formats and bit_rate and stated <= 1.01 * size * 8 / bit_rate:
        return  # without an index, FFmpeg divides the size by the bit rate of the first frame
    if stated > end + _MISSING_SECONDS:
        findings.missing_seconds += stated - end


def _rest(view: FileView, position: int, codec: str, stream: Any, layout: Chunks) -> _Rest | None:
    """What follows the samples that the header knows of, which end at `position`."""
    padded = position + position % 2
    if view.at(padded, 4) in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"caff"):
        return _Rest(padded, None)
    name = codec.removeprefix("pcm_")
    if view.size - position <= 1 or name not in PCM_FORMATS:
        return None
    if layout.is_at(view, padded) or layout.is_at(view, position):
        return None
    return _Rest(position, PcmFormat(name, stream.codec_context.sample_rate, stream.codec_context.channels))


def _channel_names(layout: Any) -> tuple[str, ...]:
    """Names of the channels; empty where the file names none and their number does not tell."""
    names = tuple(channel.name for channel in layout.channels)
    return usual_names(len(names)) if layout.name.endswith(" channels") else names


def _as_float(array: npt.NDArray[Any]) -> FloatArray:
    """Samples of any type as float32, full scale 1."""
    if array.dtype == np.uint8:
        return ((array.astype(np.float32) - 128.0) / 128.0).astype(np.float32)
    if array.dtype.kind == "i":
        return (array / float(-int(np.iinfo(array.dtype).min))).astype(np.float32)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes Inf, which is refused by name
        return array.astype(np.float32)
