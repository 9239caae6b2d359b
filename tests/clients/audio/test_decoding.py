"""Audio files as people have them: every format, wrong headers, files put together, damage, pipes."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest
import soundfile
import soxr
from recordings import encode, murmur

from autovoice.audio.channels import mix_down
from autovoice.audio.files import AudioSource, read_audio, why_not_audio
from autovoice.audio.samples import as_channels
from autovoice.errors import AudioFileError, AudioFileWarning, AudioInputError, ConfigurationError

RATE = 16_000
SECONDS = 2.0
SPEECH = murmur(SECONDS, RATE)


def pcm(name: str, rate: int, codec: str, **options: object) -> tuple[str, Callable[[Path], object]]:
    return name, lambda path: encode(path, murmur(SECONDS, rate), rate, codec, **options)


def sound(name: str, rate: int = RATE, **options: object) -> tuple[str, Callable[[Path], object]]:
    return name, lambda path: soundfile.write(path, murmur(SECONDS, rate), rate, **options)


KINDS = dict(
    [
        pcm("phone.m4a", 44_100, "aac"),
        pcm("phone.mp4", 48_000, "aac"),
        pcm("phone.aac", 16_000, "aac", container="adts"),
        pcm("alac.m4a", 44_100, "alac", container="ipod"),
        pcm("alac.caf", 44_100, "alac", container="caf"),
        pcm("browser.webm", 48_000, "libopus"),
        pcm("browser.mka", 48_000, "libopus"),
        pcm("message.opus", 48_000, "libopus", container="ogg", bit_rate=24_000),
        pcm("flac.ogg", 16_000, "flac", container="ogg"),
        pcm("constant.mp3", 44_100, "libmp3lame", bit_rate=64_000),
        pcm("low.mp3", 16_000, "libmp3lame", bit_rate=24_000),
        pcm("layer2.mp2", 44_100, "mp2"),
        pcm("mp3.wav", 44_100, "libmp3lame", container="wav"),
        pcm("windows.wma", 44_100, "wmav2", container="asf", bit_rate=96_000),
        pcm("dolby.ac3", 48_000, "ac3"),
        pcm("phone.amr", 8_000, "libopencore_amrnb", container="amr", bit_rate=12_200),
        pcm("ima.wav", 16_000, "adpcm_ima_wav"),
        pcm("microsoft.wav", 16_000, "adpcm_ms"),
        pcm("mulaw.wav", 8_000, "pcm_mulaw"),
        pcm("alaw.wav", 8_000, "pcm_alaw"),
        pcm("bytes.wav", 16_000, "pcm_u8"),
        pcm("double.wav", 16_000, "pcm_f64le"),
        pcm("wide.wav", 192_000, "pcm_s32le"),
        pcm("slow.wav", 4_000, "pcm_s16le"),
        pcm("odd.wav", 7_350, "pcm_s16le"),
        pcm("fast.wav", 384_000, "pcm_s16le"),
        pcm("fastest.wav", 768_000, "pcm_s16le"),
        pcm("sowt.aifc", 44_100, "pcm_s16le", container="aiff"),
        pcm("matroska.mkv", 16_000, "pcm_s16le"),
        pcm("pack.wv", 44_100, "wavpack"),
        sound("plain.wav"),
        sound("float.wav", subtype="FLOAT"),
        sound("extensible.wav", format="WAVEX", subtype="PCM_24"),
        sound("gsm.wav", 8_000, subtype="GSM610"),
        sound("long.rf64", format="RF64"),
        sound("sony.w64", format="W64"),
        sound("sun.au"),
        sound("apple.caf"),
        sound("apple.aiff", subtype="PCM_24"),
        sound("sphere.nist", format="NIST"),
        sound("plain.flac"),
        sound("vorbis.ogg", 44_100),
    ]
)
# By their encoders, whose delay these files do not state.
DELAYS = {
    "phone.aac": 1024 / 16_000,
    "phone.amr": 0.005,
    "dolby.ac3": 256 / 48_000,
    "layer2.mp2": 481 / 44_100,
    "mp3.wav": 1105 / 44_100,
    "windows.wma": -2048 / 44_100,
}
WHOLE_BLOCKS = 0.13  # seconds at most by which a codec's last block is longer than the audio


def write(path: Path, audio: np.ndarray, rate: int, codec: str, **options: Any) -> Path:
    """With FFmpeg's encoder, but Vorbis, of which its own is poor."""
    if codec != "vorbis":
        return encode(path, audio, rate, codec, **options)
    soundfile.write(path, audio, rate)
    return path


def envelope(audio: np.ndarray, rate: int) -> np.ndarray:
    """Level every 10 ms."""
    size = rate // 100
    return np.sqrt(np.square(audio[: audio.size // size * size].reshape(-1, size)).mean(axis=1))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_is_read_in_full_and_in_time(name: str, tmp_path: Path) -> None:
    """Named by nothing that tells what it is."""
    KINDS[name](tmp_path / name)
    (tmp_path / name).rename(tmp_path / "recording.txt")
    source = AudioSource(tmp_path / "recording.txt")
    audio = np.concatenate(list(source.blocks(4096)))
    assert source.warnings == ()
    assert source.frames == audio.size
    assert audio.size / source.sample_rate == pytest.approx(SECONDS, abs=WHOLE_BLOCKS)
    assert audio.size / source.sample_rate > SECONDS - 0.05
    at_rate = soxr.resample(audio, source.sample_rate, RATE)
    delay = round(DELAYS.get(name, 0.0) * RATE)
    heard, meant = envelope(at_rate[max(delay, 0) :], RATE), envelope(SPEECH[max(-delay, 0) :], RATE)
    size = min(heard.size, meant.size) - 2
    assert np.corrcoef(heard[2:size], meant[2:size])[0, 1] > 0.97
    assert heard[2:size].mean() == pytest.approx(meant[2:size].mean(), rel=0.15)


def test_what_the_file_is_decides_and_not_its_name(tmp_path: Path) -> None:
    encode(tmp_path / "in.m4a", SPEECH, RATE, "aac")
    shutil.copy(tmp_path / "in.m4a", tmp_path / "wrong.wav")
    shutil.copy(tmp_path / "in.m4a", os.fsencode(tmp_path) + b"/caf\xe9.raw")
    expected, _ = read_audio(tmp_path / "in.m4a")
    for name in (tmp_path / "wrong.wav", os.fsencode(tmp_path) + b"/caf\xe9.raw"):
        np.testing.assert_array_equal(read_audio(name)[0], expected)


def wav_with(data_size: int, riff_size: int | None = None) -> Callable[[bytearray], bytearray]:
    def change(wav: bytearray) -> bytearray:
        assert wav[36:40] == b"data"
        wav[40:44] = (data_size % (1 << 32)).to_bytes(4, "little")
        if riff_size is not None:
            wav[4:8] = riff_size.to_bytes(4, "little")
        return wav

    return change


SIZE = 2 * SPEECH.size
HEADERS = {
    **{f"plus {off}": wav_with(SIZE + off) for off in (1, 8, 36, 44, 4096)},
    "recorder died": wav_with(0, 0),
    "no data size": wav_with(0),
    "small riff": wav_with(SIZE, 36),
    "pipe of ffmpeg": wav_with(0xFFFFFFFF, 0xFFFFFFFF),
    "pipe of sox": wav_with(0x7FFFF000, 0x7FFFF024),
    "pipe of arecord": wav_with(0x80000000),
    "half": wav_with(SIZE // 2),
    "minus 2": wav_with(SIZE - 2),
    "wrapped": wav_with(SIZE - 30_000),
}
UNKNOWN = ("recorder died", "no data size", "small riff", "pipe of ffmpeg", "pipe of sox", "pipe of arecord")


@pytest.mark.parametrize("name", HEADERS)
def test_wav_headers_do_not_decide_the_length(name: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SPEECH, RATE, subtype="PCM_16")
    expected = read_audio(tmp_path / "a.wav")[0]
    (tmp_path / "b.wav").write_bytes(HEADERS[name](bytearray((tmp_path / "a.wav").read_bytes())))
    source = AudioSource(tmp_path / "b.wav")
    np.testing.assert_array_equal(np.concatenate(list(source.blocks(5000))), expected)
    # Programs that write to a pipe leave the length open, and nothing is missing.
    assert len(source.warnings) == (name not in UNKNOWN)


@pytest.mark.parametrize("suffix", ["au", "aiff", "w64"])
@pytest.mark.parametrize("samples", [1, SPEECH.size])
def test_headers_that_say_zero(suffix: str, samples: int, tmp_path: Path) -> None:
    """As recorders write that do not know yet how long they will be."""
    soundfile.write(tmp_path / f"a.{suffix}", SPEECH[:samples], RATE, subtype="PCM_16")
    data = bytearray((tmp_path / f"a.{suffix}").read_bytes())
    mark, places = {
        "au": (b".snd", [(8, 4)]),
        "aiff": (b"SSND", [(4, 4)]),
        "w64": (b"data\xf3\xac", [(16, 8)]),
    }[suffix]
    for offset, size in places:
        place = data.index(mark) + offset
        data[place : place + size] = bytes(size)
    (tmp_path / f"b.{suffix}").write_bytes(data)
    source = AudioSource(tmp_path / f"b.{suffix}")
    np.testing.assert_array_equal(
        np.concatenate(list(source.blocks(5000))), read_audio(tmp_path / f"a.{suffix}")[0]
    )
    assert source.warnings == ()


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("pieces", [2, 5])
def test_wav_of_several_pieces(subtype: str, pieces: int, tmp_path: Path) -> None:
    stereo = np.stack([SPEECH, 0.5 * SPEECH], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, RATE, subtype=subtype)
    data = (tmp_path / "a.wav").read_bytes()
    place = data.index(b"data")
    head, samples = data[:place], data[place + 8 :][: int.from_bytes(data[place + 4 : place + 8], "little")]
    width = len(samples) // len(stereo)
    cuts = [len(stereo) * i // pieces * width for i in range(pieces + 1)]
    parts = [samples[a:b] for a, b in pairwise(cuts)]
    chunks = [
        chunk
        for part in parts
        for chunk in (b"data", len(part).to_bytes(4, "little"), part, b"\0" * (len(part) % 2))
    ]
    body = head[8:] + b"".join([*chunks[:4], b"LIST", (4).to_bytes(4, "little"), b"adtl", *chunks[4:]])
    (tmp_path / "b.wav").write_bytes(b"RIFF" + len(body).to_bytes(4, "little") + body)
    source = AudioSource(tmp_path / "b.wav")
    np.testing.assert_array_equal(
        np.concatenate(list(source.blocks(5000))),
        np.concatenate(list(AudioSource(tmp_path / "a.wav").blocks(5000))),
    )
    assert source.warnings == ()


@pytest.mark.parametrize(("kind", "says"), [("half", 1), ("more", 1), ("unknown", 0)])
@pytest.mark.parametrize(
    ("suffix", "place", "size_bytes", "extra"), [("aiff", 4, 4, 8), ("caf", 4, 8, 4)], ids=["aiff", "caf"]
)
def test_headers_of_other_pcm_do_not_decide_either(
    suffix: str, place: int, size_bytes: int, extra: int, kind: str, says: int, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", SPEECH, RATE, subtype="PCM_16")
    data = bytearray((tmp_path / f"a.{suffix}").read_bytes())
    place += data.index(b"SSND" if suffix == "aiff" else b"data")
    size = {"half": extra + SIZE // 2, "more": extra + SIZE + 4096, "unknown": -1}[kind]
    assert int.from_bytes(data[place : place + size_bytes], "big") == extra + SIZE
    data[place : place + size_bytes] = size.to_bytes(size_bytes, "big", signed=True)
    (tmp_path / f"b.{suffix}").write_bytes(data)
    source = AudioSource(tmp_path / f"b.{suffix}")
    np.testing.assert_array_equal(
        np.concatenate(list(source.blocks(5000))), read_audio(tmp_path / f"a.{suffix}")[0]
    )
    if (suffix, kind) != ("aiff", "more"):  # its other header says how many there are, which is right
        assert len(source.warnings) == says


@pytest.mark.parametrize(
    "tag",
    [b"TAG" + bytes(125), b"ID3\x04" + bytes(200), b"APETAGEX" + bytes(90)],
    ids=["ID3v1", "ID3v2", "APE"],
)
@pytest.mark.parametrize("samples", [SPEECH.size, SPEECH.size - 1])
def test_tags_behind_the_samples_of_a_wav_are_no_audio(tag: bytes, samples: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SPEECH[:samples], RATE, subtype="PCM_U8")
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[: 44 + samples] + tag)
    source = AudioSource(tmp_path / "a.wav")
    assert source.frames == samples
    assert source.warnings == ()


def wav(
    samples: bytes,
    bits: int,
    *,
    kind: int = 1,
    valid: int | None = None,
    order: Literal["<", ">"] = "<",
    head: bytes = b"",
    behind: bytes = b"",
) -> bytes:
    """A WAV by hand: of integers (kind 1) or floats (3); with `valid` bits, an extensible one."""
    tag = kind if valid is None else 0xFFFE
    form = struct.pack(f"{order}HHIIHH", tag, 1, 48_000, 6_000 * bits, bits // 8, bits)
    if valid is not None:
        identity = bytes.fromhex("000000001000800000aa00389b71")
        form += struct.pack(f"{order}HHIH", 22, valid, 4, kind) + identity
    parts = b"fmt " + struct.pack(f"{order}I", len(form)) + form
    if not head:
        head = {"<": b"RIFF", ">": b"RIFX"}[order] + struct.pack(f"{order}I", 12 + len(parts) + len(samples))
        head += b"WAVE"
    size = struct.pack(f"{order}I", 0xFFFFFFFF if b"ds64" in head else len(samples))
    return head + parts + b"data" + size + samples + behind


LONG_SPEECH = murmur(5.0, 48_000)  # so long that it is read in many pieces
INT32 = np.round(LONG_SPEECH.astype(np.float64) * 2**31).astype("<i4")
INT24 = INT32.view("u1").reshape(-1, 4)[:, 1:].tobytes()
INT16 = (INT32 >> 16).astype("<i2")
RF64 = b"RF64" + b"\xff" * 4 + b"WAVEds64" + struct.pack("<IQQQI", 28, 0, 0, 0, 0)
BW64 = b"BW64" + RF64[4:20] + struct.pack("<QQQI", 2**20, 2 * INT16.size, INT16.size, 0)
LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.29.100\0"
DIALECTS = {
    "plain": wav(INT16.tobytes(), 16),
    "24 bits": wav(INT24, 24),
    "floats": wav(LONG_SPEECH.astype("<f8").tobytes(), 64, kind=3),
    "a list behind": wav(INT16.tobytes(), 16, behind=LIST),
    "extensible": wav(INT24, 24, valid=24),
    "extensible floats": wav(LONG_SPEECH.tobytes(), 32, kind=3, valid=32),
    "24 in 32 bits": wav(INT32.tobytes(), 32, valid=24),
    "20 in 32 bits": wav(INT32.tobytes(), 32, valid=20, behind=LIST),
    "16 in 32 bits": wav((INT32 & ~0xFFFF).tobytes(), 32, valid=16),
    "20 in 24 bits": wav(INT24, 24, valid=20),
    "12 in 16 bits": wav(INT16.tobytes(), 16, valid=12),
    "big-endian": wav(INT16.astype(">i2").tobytes(), 16, order=">"),
    "big-endian 32 bits": wav(INT32.astype(">i4").tobytes(), 32, order=">"),
    "big-endian floats": wav(LONG_SPEECH.astype(">f4").tobytes(), 32, kind=3, order=">"),
    "BW64": wav(INT16.tobytes(), 16, head=BW64),
    "RF64 of a recorder that died": wav(INT16.tobytes(), 16, head=RF64),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_of_wav(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(DIALECTS[name])
    source = AudioSource(tmp_path / "a.wav")
    assert (source.sample_rate, source.frames) == (48_000, LONG_SPEECH.size)
    made = np.concatenate(list(source.blocks(50_000)))
    np.testing.assert_allclose(made, LONG_SPEECH, atol=1.1 / 32_768)
    assert len(source.warnings) == ("died" in name)


def test_what_follows_the_samples_of_a_wav_is_no_audio(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "a.wav", "w", RATE, 1, "PCM_16") as file:
        file.write(SPEECH)
        file.title = "a chunk behind the samples"
    assert b"LIST" in (tmp_path / "a.wav").read_bytes()[-200:]
    assert read_audio(tmp_path / "a.wav")[0].size == SPEECH.size


def test_flac_from_a_pipe_has_no_length(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", SPEECH, RATE)
    flac = bytearray((tmp_path / "a.flac").read_bytes())
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    (tmp_path / "b.flac").write_bytes(flac)
    np.testing.assert_array_equal(read_audio(tmp_path / "b.flac")[0], read_audio(tmp_path / "a.flac")[0])


def test_opus_without_an_end_mark(tmp_path: Path) -> None:
    encode(tmp_path / "a.opus", murmur(SECONDS, 48_000), 48_000, "libopus", container="ogg")
    ogg = (tmp_path / "a.opus").read_bytes()
    (tmp_path / "b.opus").write_bytes(ogg[: ogg.rindex(b"OggS")])
    assert read_audio(tmp_path / "b.opus")[0].size >= (SECONDS - 1.1) * 48_000


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [
        ("ogg", "vorbis", RATE),
        ("opus", "libopus", 48_000),
        ("mp3", "libmp3lame", 44_100),
        ("flac", "flac", RATE),
        ("wav", "pcm_s16le", RATE),
        ("aac", "aac", RATE),
    ],
)
def test_files_put_together_are_read_to_the_end(suffix: str, codec: str, rate: int, tmp_path: Path) -> None:
    container = {"opus": "ogg", "aac": "adts"}.get(suffix)
    first, second = murmur(SECONDS, rate, 1), murmur(SECONDS, rate, 2)
    parts = [
        write(tmp_path / f"{number}.{suffix}", audio, rate, codec, container=container)
        for number, audio in enumerate((first, second))
    ]
    (tmp_path / f"both.{suffix}").write_bytes(b"".join(part.read_bytes() for part in parts))
    source = AudioSource(tmp_path / f"both.{suffix}")
    assert source.warnings == ()
    audio = np.concatenate(list(source.blocks(10_000)))
    assert audio.size / rate == pytest.approx(2 * SECONDS, abs=0.25)
    tail = envelope(audio[-round(2 * rate) :], rate)[:-20]
    alone = envelope(second[-round(2 * rate) :], rate)[:-20]
    shifts = [np.corrcoef(np.roll(tail, shift), alone)[0, 1] for shift in range(-12, 13)]
    assert max(shifts) > 0.9


OGG = (("vorbis", RATE), ("vorbis", 44_100), ("libopus", 48_000), ("flac", 22_050), ("vorbis", 22_050))
CHAINS = {
    "ogg": OGG,
    "ogg of one kind": (OGG[0],) * 3,
    "flac": (("flac", RATE), ("flac", 44_100), ("flac", 8_000)),
    "wav": (("pcm_s16le", RATE), ("pcm_s24le", 44_100), ("pcm_u8", 8_000)),
    "aiff": (("pcm_s16be", RATE), ("pcm_s24be", 44_100)),
    "caf": (("pcm_s16be", RATE), ("pcm_s16le", 44_100)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_files_of_other_kinds_put_together(name: str, tmp_path: Path) -> None:
    """Each has its own rate; the first one's is that of the whole."""
    container = name.split()[0]
    whole = b""
    for number, (codec, rate) in enumerate(CHAINS[name]):
        audio = murmur(SECONDS, rate, number)
        part = write(tmp_path / f"{number}.{container}", audio, rate, codec, container=container)
        whole += part.read_bytes()
    (tmp_path / "whole").write_bytes(whole)
    source = AudioSource(tmp_path / "whole")
    assert (source.warnings, source.sample_rate) == ((), CHAINS[name][0][1])
    made = np.concatenate(list(source.blocks(10_000)))
    count = len(CHAINS[name])
    assert made.size / source.sample_rate == pytest.approx(count * SECONDS, abs=0.05 * count)
    for number in range(count):
        expected = envelope(murmur(SECONDS, RATE, number), RATE)[20:-20]
        start = round(number * SECONDS * 100) + 20
        heard = envelope(made, source.sample_rate)
        best = max(np.corrcoef(heard[start + by :][: expected.size], expected)[0, 1] for by in range(-15, 16))
        assert best > 0.95


def test_what_cannot_be_decoded_of_a_chain_leaves_the_rest(tmp_path: Path) -> None:
    parts = []
    for number in range(3):
        path = tmp_path / f"{number}.ogg"
        soundfile.write(path, murmur(SECONDS, RATE, number), RATE)
        parts.append(bytearray(path.read_bytes()))
    whole = read_audio(io.BytesIO(b"".join(parts)))[0]
    headers = parts[1].index(b"OggS\0", 1)
    parts[1][headers + 40 : headers + 3000] = bytes(2960)  # the second link lost its code books
    source = AudioSource(io.BytesIO(b"".join(parts)))
    assert "cannot be decoded" in "".join(source.warnings)
    made = np.concatenate(list(source.blocks(10_000)))
    count = round((SECONDS - 0.1) * RATE)
    np.testing.assert_allclose(made[:count], whole[:count], atol=1e-6)
    np.testing.assert_allclose(made[-count:], whole[-count:], atol=1e-6)


def test_a_page_that_seems_to_begin_a_chain(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.ogg", murmur(20.0, RATE), RATE)
    ogg = bytearray((tmp_path / "a.ogg").read_bytes())
    pages = [place for place in range(len(ogg)) if ogg.startswith(b"OggS\0", place)]
    ogg[pages[len(pages) // 2] + 5] |= 2
    source = AudioSource(io.BytesIO(bytes(ogg)))
    assert source.frames / RATE == pytest.approx(20.0, abs=0.1)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_sound_that_begins_later_than_its_video_is_whole(suffix: str, tmp_path: Path) -> None:
    with av.open(str(tmp_path / f"a.{suffix}"), "w") as file:
        video = file.add_stream("mpeg4", rate=10, width=32, height=32)
        video.pix_fmt = "yuv420p"
        sound = file.add_stream("aac", rate=48_000, layout="mono")
        for _ in range(40):
            file.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        audio = murmur(SECONDS, 48_000)
        for start in range(0, audio.size, 1024):
            piece = audio[np.newaxis, start : start + 1024].copy()
            frame = av.AudioFrame.from_ndarray(piece, "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, start + 48_000, Fraction(1, 48_000)
            file.mux(sound.encode(frame))
        for stream in (video, sound):
            file.mux(stream.encode(None))
    source = AudioSource(tmp_path / f"a.{suffix}", strict=True)
    assert source.frames / 48_000 == pytest.approx(SECONDS, abs=0.05)


def test_another_rate_behind_the_first_file_is_resampled(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SPEECH, RATE)
    soundfile.write(tmp_path / "b.wav", murmur(SECONDS, 44_100), 44_100)
    (tmp_path / "c.wav").write_bytes((tmp_path / "a.wav").read_bytes() + (tmp_path / "b.wav").read_bytes())
    audio, rate = read_audio(tmp_path / "c.wav")
    assert rate == RATE
    assert audio.size == pytest.approx(2 * SPEECH.size, abs=1)
    assert np.corrcoef(audio[SPEECH.size :][: SPEECH.size - 1], SPEECH[:-1])[0, 1] > 0.999


PICTURE = b"APIC" + (300_000).to_bytes(4, "big") + bytes(300_002)
ID3 = b"ID3\3\0\0" + bytes((len(PICTURE) >> shift) & 127 for shift in (21, 14, 7, 0)) + PICTURE


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize(
    "tag",
    [
        ID3,
        b"LYRICSBEGIN" + b"IND00002" + b"10" + b"000021LYRICS200",
        b"APETAGEX" + (2000).to_bytes(4, "little") + (32).to_bytes(8, "little") + bytes(12),
        b"TAG" + b"x" * 125,
    ],
    ids=["ID3v2", "Lyrics3", "APE", "ID3v1"],
)
def test_tags_of_mp3_are_no_damage(tag: bytes, place: str, tmp_path: Path) -> None:
    encode(tmp_path / "a.mp3", murmur(SECONDS, 44_100), 44_100, "libmp3lame", bit_rate=64_000)
    mp3 = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "b.mp3").write_bytes(tag + mp3 if place == "before" else mp3 + tag)
    source = AudioSource(tmp_path / "b.mp3", strict=True)
    assert source.frames / 44_100 == pytest.approx(SECONDS, abs=0.05)


def test_variable_mp3_without_an_index_is_whole(tmp_path: Path) -> None:
    """libsndfile guesses the length from the first frames, which are loud here, and the rest is quiet."""
    loud = murmur(4.0, 44_100)
    audio = np.concatenate([0.001 * loud, loud, loud])
    encode(
        tmp_path / "a.mp3",
        audio,
        44_100,
        "libmp3lame",
        options={"global_quality": "354"},
        container_options={"write_xing": "0"},
    )
    source = AudioSource(tmp_path / "a.mp3")
    assert source.frames / 44_100 == pytest.approx(12.0, abs=0.06)
    assert source.warnings == ()


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [
        ("flac", "flac", RATE),
        ("mp3", "libmp3lame", 44_100),
        ("m4a", "aac", 44_100),
        ("ogg", "vorbis", RATE),
        ("opus", "libopus", 48_000),
        ("webm", "libopus", 48_000),
        ("ts", "aac", 48_000),
    ],
)
@pytest.mark.parametrize("kind", ["overwritten", "taken out"])
def test_damage_in_the_middle_is_told_and_the_rest_is_there(
    suffix: str, codec: str, rate: int, kind: str, tmp_path: Path
) -> None:
    """What follows stays in its place, by the times in the file, of which MP3 has none."""
    if suffix == "m4a" and kind == "taken out":
        pytest.skip("its index is then of another file, and FFmpeg reads nothing of it")
    seconds = 20.0 if suffix == "ogg" else 10.0  # its pages are long
    audio = murmur(seconds, rate, 5)
    container = {"opus": "ogg", "ts": "mpegts"}.get(suffix)
    write(tmp_path / f"a.{suffix}", audio, rate, codec, bit_rate=48_000, container=container)
    data = bytearray((tmp_path / f"a.{suffix}").read_bytes())
    middle, size = len(data) * (5 if suffix == "ogg" else 4) // 10, max(len(data) // 50, 700)
    data[middle : middle + size] = np.random.default_rng(0).bytes(size if kind == "overwritten" else 0)
    (tmp_path / f"b.{suffix}").write_bytes(data)
    source = AudioSource(tmp_path / f"b.{suffix}")
    made = np.concatenate(list(source.blocks(10_000)))
    assert made.size == source.frames
    assert made.size / rate == pytest.approx(seconds, abs=0.4 if suffix == "mp3" else 0.1)
    (warning,) = source.warnings
    assert warning.startswith(f"{tmp_path}/b.{suffix} is damaged: ")
    end = made[-3 * rate :] if suffix == "mp3" else made[round((seconds - 3) * rate) :][: 3 * rate]
    for ours, theirs in ((made[: 3 * rate], audio[: 3 * rate]), (end, audio[-3 * rate :])):
        heard, meant = envelope(ours, rate)[5:-5], envelope(theirs, rate)[5:-5]
        size = min(heard.size, meant.size)
        assert max(np.corrcoef(np.roll(heard[:size], by), meant[:size])[0, 1] for by in range(-5, 6)) > 0.9
    with pytest.raises(AudioFileError, match=r"is damaged: .*; copy the whole file again"):
        AudioSource(tmp_path / f"b.{suffix}", strict=True)
    with pytest.warns(AudioFileWarning, match="is damaged"):
        read_audio(tmp_path / f"b.{suffix}")


@pytest.mark.parametrize(("suffix", "codec", "rate"), [("ogg", "vorbis", RATE), ("opus", "libopus", 48_000)])
def test_ogg_that_lost_its_end_or_its_first_page(suffix: str, codec: str, rate: int, tmp_path: Path) -> None:
    audio = murmur(10.0, rate, 5)
    ogg = write(tmp_path / f"a.{suffix}", audio, rate, codec, container="ogg").read_bytes()
    pages = [place for place in range(len(ogg)) if ogg.startswith(b"OggS\0", place)]
    damaged = {
        "it ends before its header says": [ogg[:-1], ogg[: pages[-2] + 20], ogg[: len(ogg) * 6 // 10]],
        "s are missing": [ogg[: pages[2]] + ogg[pages[3] :]],
    }
    for says, files in damaged.items():
        for data in files:
            (tmp_path / "b").write_bytes(data)
            source = AudioSource(tmp_path / "b")
            assert says in "".join(source.warnings)
            assert 0.2 < source.frames / source.sample_rate < 10.0
            with pytest.raises(AudioFileError, match="is damaged"):
                AudioSource(tmp_path / "b", strict=True)
    (tmp_path / "b").write_bytes(ogg + bytes(500))  # as some disks and download programs leave it
    assert AudioSource(tmp_path / "b").warnings == ()


def test_pauses_that_a_recorder_leaves_out_are_no_damage(tmp_path: Path) -> None:
    """Opus has no packets in silence where the recorder asks for that; the times of the others tell."""
    pieces = [murmur(1.0, 48_000, 1), np.zeros(4 * 48_000, np.float32), murmur(1.0, 48_000, 2)]
    audio = np.concatenate(pieces)
    with av.open(str(tmp_path / "a.webm"), "w") as file:
        stream = file.add_stream("libopus", rate=48_000, layout="mono")
        for start in range(0, audio.size, 960):
            frame = av.AudioFrame.from_ndarray(audio[np.newaxis, start : start + 960].copy(), "flt", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
            for packet in stream.encode(frame):
                silent = 1.1 < start / 48_000 < 4.9 and start // 960 % 20
                if not silent:
                    file.mux(packet)
        file.mux(stream.encode(None))
    source = AudioSource(tmp_path / "a.webm")
    assert source.warnings == ()
    made = np.concatenate(list(source.blocks(10_000)))
    assert made.size / 48_000 == pytest.approx(6.0, abs=0.03)
    np.testing.assert_allclose(envelope(made, 48_000)[510:590], envelope(audio, 48_000)[510:590], rtol=0.2)


def test_a_time_that_is_wrong_does_not_make_hours_of_silence(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mka"), "w", format="matroska") as file:
        stream = file.add_stream("pcm_s16le", rate=8_000, layout="mono")
        for number in range(100):
            frame = av.AudioFrame.from_ndarray(np.full((1, 800), number, np.int16), "s16", "mono")
            frame.sample_rate, frame.time_base = 8_000, Fraction(1, 8_000)
            frame.pts = 800 * number + (8_000 * 36_000 if number > 50 else 0)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert AudioSource(tmp_path / "a.mka").frames == 80_000


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "aiff", "w64", "au", "caf"])
def test_a_file_that_was_cut_off_is_read_as_far_as_it_goes(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, SPEECH, RATE)
    whole = AudioSource(path)
    assert whole.warnings == ()
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    cut = AudioSource(path)
    assert 0.5 < cut.frames / whole.frames < 0.65
    (warning,) = cut.warnings
    assert "is damaged" in warning
    with pytest.raises(AudioFileError, match="is damaged"):
        AudioSource(path, strict=True)


def test_no_audio_and_playlists_that_name_other_files(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SPEECH, RATE)
    (tmp_path / "text.wav").write_text("not audio at all, but long enough to look at")
    segment = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{tmp_path}/a.wav\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.mp3").write_text(segment)
    (tmp_path / "list.txt").write_text(f"ffconcat version 1.0\nfile '{tmp_path}/a.wav'\n")
    encode_picture(tmp_path / "picture.png")
    for name in ("text.wav", "list.mp3", "list.txt", "picture.png"):
        with pytest.raises(AudioFileError, match="cannot be read as audio"):
            AudioSource(tmp_path / name)
        assert why_not_audio(tmp_path / name)
    assert why_not_audio(tmp_path / "a.wav") is None
    assert why_not_audio(tmp_path / "picture.png") == "it holds no audio"


def encode_picture(path: Path) -> None:
    with av.open(str(path), "w", format="image2") as file:
        stream = file.add_stream("png", rate=1, width=16, height=16)
        stream.pix_fmt = "rgb24"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")))
        file.mux(stream.encode(None))


def test_pipes_and_file_objects(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", SPEECH, RATE)
    expected, _ = read_audio(tmp_path / "a.flac")
    data = (tmp_path / "a.flac").read_bytes()
    np.testing.assert_array_equal(read_audio(io.BytesIO(data))[0], expected)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,), daemon=True)
    writer.start()
    source = AudioSource(tmp_path / "pipe")
    for _ in range(2):  # as often as a file
        np.testing.assert_array_equal(np.concatenate(list(source.blocks(999))), expected)
    writer.join(60)


@pytest.mark.parametrize(
    ("name", "kind"), [("f32le", "<f4"), ("f64be", ">f8"), ("s16le", "<i2"), ("u8", "u1")]
)
def test_samples_without_a_header(name: str, kind: str, tmp_path: Path) -> None:
    scale = {"<i2": 32_768, "u1": 128}.get(kind, 1)
    stereo = np.stack([SPEECH, 0.5 * SPEECH], axis=1) * scale + (128 if kind == "u1" else 0)
    (tmp_path / "a.raw").write_bytes(np.round(stereo, 0 if scale > 1 else 12).astype(kind).tobytes())
    audio, rate = read_audio(tmp_path / "a.raw", input_format=f"{name}:24000:2")
    assert rate == 24_000
    np.testing.assert_allclose(audio, 0.75 * SPEECH, atol=1.1 / scale if scale > 1 else 1e-6)


@pytest.mark.parametrize(
    "text", ["", "f32le", "f32le:24000", "f99:24000:1", "f32le:x:1", "wav:24000:1", 7, None]
)
def test_input_formats_that_there_are_not(text: object, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SPEECH, RATE)
    if text is None:
        assert AudioSource(tmp_path / "a.wav", input_format=None).frames == SPEECH.size
        return
    with pytest.raises(ConfigurationError, match=r"input format is .*f32le:24000:1"):
        AudioSource(tmp_path / "a.wav", input_format=text)


def test_float_files_beyond_full_scale_are_not_clipped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 20 * SPEECH, RATE, subtype="FLOAT")
    assert np.abs(20 * SPEECH).max() > 5
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav")[0], 20 * SPEECH)


SILENCE = np.zeros_like(SPEECH)
NOISE = np.random.default_rng(0).normal(0, 0.002, SPEECH.size).astype(np.float32)
LAYOUTS = {
    "same": ([SPEECH, SPEECH], SPEECH, ""),
    "two voices": ([SPEECH, murmur(SECONDS, RATE, 9)], (SPEECH + murmur(SECONDS, RATE, 9)) / 2, ""),
    "inverted": ([0.9 * SPEECH, -SPEECH], -SPEECH, "cancel each other; channel 2 of 2"),
    "inverted and late": ([SPEECH, -0.9 * np.roll(SPEECH, 2)], SPEECH, "cancel each other; channel 1 of 2"),
    "left only": ([SPEECH, SILENCE], SPEECH, "only channel 1 of 2"),
    "right, and noise": ([NOISE, SPEECH], SPEECH, "only channel 2 of 2"),
    "centre only": ([SILENCE, SILENCE, SPEECH, SILENCE, SILENCE, SILENCE], SPEECH, "only channel 3 of 6"),
    "centre and music": (
        [0.2 * SPEECH, 0.2 * SPEECH, SPEECH, 0.5 * SPEECH, 0.1 * SPEECH, 0.1 * SPEECH],
        (0.2 + 0.5**0.5 + 0.5**0.5 * 0.1) * SPEECH,
        "",
    ),
    "7.1": ([0.1 * SPEECH] * 2 + [SPEECH, SILENCE] + [0.1 * SPEECH] * 4, (0.2 + 0.7071 * 1.1) * SPEECH, ""),
    "four microphones": ([SPEECH, 0.5 * SPEECH, 0.5 * SPEECH, SPEECH], 0.75 * SPEECH, ""),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_channels_are_mixed_by_their_places(name: str, tmp_path: Path) -> None:
    channels, expected, says = LAYOUTS[name]
    kind = {"format": "WAV"} if len(channels) == 4 else {"format": "WAVEX"}
    soundfile.write(tmp_path / "a.wav", np.stack(channels, axis=1), RATE, subtype="FLOAT", **kind)
    source = AudioSource(tmp_path / "a.wav")
    np.testing.assert_allclose(np.concatenate(list(source.blocks(RATE))), expected, atol=1e-4)
    assert len(source.warnings) == bool(says)
    assert says in "".join(source.warnings)
    audio = np.stack(channels).astype(np.float32)
    mixed, reason = mix_down(as_channels(audio.T), RATE)  # what a program hands over
    # Files of eight channels name them, arrays do not, and the last two are taken to be at the sides.
    np.testing.assert_allclose(mixed, expected, atol=0.02 if name == "7.1" else 1e-4)
    assert says in (reason or "")
    assert bool(says) == bool(reason)


def test_a_channel_may_be_named(tmp_path: Path) -> None:
    other = murmur(SECONDS, RATE, 9)
    soundfile.write(tmp_path / "a.wav", np.stack([0.5 * SPEECH, other], axis=1), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.wav", SPEECH, RATE, subtype="FLOAT")
    for channel, expected in {
        "left": 0.5 * SPEECH,
        1: 0.5 * SPEECH,
        "right": other,
        "2": other,
        "loudest": other,
        "mix": 0.25 * SPEECH + 0.5 * other,
    }.items():
        audio, _ = read_audio(tmp_path / "a.wav", channel=channel)
        np.testing.assert_allclose(audio, expected, atol=1e-6)
    assert read_audio(tmp_path / "mono.wav", channel="left")[0].size == SPEECH.size
    with pytest.raises(AudioInputError, match="channel 3 was asked for, but there are 2"):
        read_audio(tmp_path / "a.wav", channel=3)
    with pytest.raises(AudioInputError, match="channel right was asked for, but there are 1"):
        read_audio(tmp_path / "mono.wav", channel="right")
    for channel in ("middle", 0, -1, True, 1.5, None, ""):
        with pytest.raises(ConfigurationError, match="channel is"):
            read_audio(tmp_path / "a.wav", channel=channel)


LONG = """
import re, sys
from autovoice.audio.files import AudioSource
source = AudioSource(sys.argv[1])
assert sum(block.size for block in source.blocks(240_000)) == source.frames == int(sys.argv[2])
# The most memory since this program began; ru_maxrss is that of the process that started it too.
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def test_long_files_take_little_memory(tmp_path: Path) -> None:
    """An hour at 8 kHz, sparse on the disk, would be 115 MB."""
    frames = 3600 * 8000
    soundfile.write(tmp_path / "a.wav", SPEECH, 8_000, subtype="PCM_U8")
    wav = bytearray((tmp_path / "a.wav").read_bytes())
    start = wav.index(b"data") + 8
    wav[start - 4 : start] = frames.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(wav[: start + 8000])
    os.truncate(tmp_path / "a.wav", start + frames)
    made = subprocess.run(
        [sys.executable, "-c", LONG, str(tmp_path / "a.wav"), str(frames)], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert int(made.stdout) < 200_000
