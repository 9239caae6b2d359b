"""Audio files: damage is noticed, and what is written is there whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from autovoice.audio.files import AudioSource, open_sink, read_audio, write_audio
from autovoice.errors import AudioFileError, AudioInputError, EmbeddingError, OutputError, SampleRateError
from autovoice.voices.embedding import load_embedding, save_embedding

RATE = 24_000
FORMATS = ["wav", "flac", "ogg", "mp3", "aiff"]


@pytest.fixture
def tone() -> np.ndarray:
    noise = np.random.default_rng(3).standard_normal(2 * RATE) * 0.02
    return (0.4 * np.sin(2 * np.pi * 300 * np.arange(2 * RATE) / RATE) + noise).astype(np.float32)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Stand-in for a full disk: writes beyond `size` bytes of a file fail with an OSError, as ENOSPC
    would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("suffix", FORMATS)
def test_blocks_put_together_are_the_file(tmp_path: Path, tone: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"tone.{suffix}"
    write_audio(path, tone, RATE)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    whole, rate = read_audio(path)
    blocks = np.concatenate(list(AudioSource(path).blocks(777)))
    np.testing.assert_allclose(blocks, whole, atol=1e-6)
    assert rate == RATE
    lossless = suffix in ("wav", "flac", "aiff")
    np.testing.assert_allclose(whole[: tone.size], tone, atol=4e-5 if lossless else 0.2)


def test_missing_directory_empty_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not audio at all, but long enough to look at")
    with pytest.raises(AudioFileError, match="does not exist"):
        AudioSource(tmp_path / "none.wav")
    with pytest.raises(AudioFileError, match="is a directory"):
        AudioSource(tmp_path)
    with pytest.raises(AudioFileError, match="the file is empty"):
        AudioSource(tmp_path / "empty.wav")
    with pytest.raises(AudioFileError, match="cannot be read as audio"):
        AudioSource(tmp_path / "text.wav")


def test_nan_rate_and_no_samples_in_files(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.array([0, 0, np.nan], np.float32), RATE, subtype="FLOAT")
    with pytest.raises(AudioInputError, match="nan at sample 2"):
        read_audio(tmp_path / "nan.wav")
    soundfile.write(tmp_path / "slow.wav", np.zeros(100), 3000)
    with pytest.raises(SampleRateError, match="3000"):
        AudioSource(tmp_path / "slow.wav")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    with pytest.raises(AudioInputError, match="holds no samples"):
        read_audio(tmp_path / "none.wav")


def test_unwritable_outputs(tmp_path: Path, tone: np.ndarray) -> None:
    for path, says in [
        (tmp_path / "missing" / "out.wav", "cannot be written"),
        (tmp_path, "unknown suffix"),
        (tmp_path / "out.xyz", "unknown suffix"),
        (Path("/proc/out.wav"), "cannot be written"),
    ]:
        with pytest.raises(OutputError, match=says):
            write_audio(path, tone, 192_000)
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        write_audio(tmp_path / "folder.wav", tone, RATE)
    with pytest.raises(OutputError, match="PCM_24"):
        write_audio(tmp_path / "out.wav", tone, RATE, subtype="PCM_99")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.wav"]


@pytest.mark.parametrize(
    ("suffix", "rates"),
    [
        ("opus", {44_100: 48_000, 22_050: 24_000, 24_000: 24_000, 4_000: 8_000, 96_000: 48_000}),
        ("mp3", {44_100: 44_100, 96_000: 48_000, 7_350: 8_000, 37_800: 44_100}),
        ("m4a", {44_100: 44_100, 192_000: 96_000, 4_000: 7_350, 37_800: 44_100}),
        ("flac", {44_100: 44_100, 192_000: 192_000, 768_000: 384_000}),
        ("ogg", {44_100: 44_100, 768_000: 192_000}),
        ("wav", {768_000: 768_000, 4_000: 4_000, 37_800: 37_800}),
    ],
)
def test_formats_get_a_rate_that_they_take(suffix: str, rates: dict[int, int], tmp_path: Path) -> None:
    for rate, expected in rates.items():
        seconds = np.arange(2 * rate) / rate
        tone = (0.3 * np.sin(2 * np.pi * 300 * seconds)).astype(np.float32)
        write_audio(tmp_path / f"a.{suffix}", tone, rate)
        made, made_rate = read_audio(tmp_path / f"a.{suffix}")
        # Opus is decoded at 48 kHz, whatever went in; blocks of AAC are whole.
        assert made_rate == (48_000 if suffix == "opus" else expected)
        assert made.size / made_rate == pytest.approx(2.0, abs=0.1)
        second = made[made_rate // 2 :][:made_rate]
        assert np.abs(np.fft.rfft(second)).argmax() == 300
        assert np.sqrt(2 * np.square(second).mean()) == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_full_disk_leaves_nothing_and_keeps_what_was_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    path.write_text("what was there before")
    noise = np.random.default_rng(0).uniform(-1, 1, 20 * RATE).astype(np.float32)
    with file_size_limit(100_000), pytest.raises(OutputError, match="could not be written in full"):
        write_audio(path, noise, RATE)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "what was there before"


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("short_by", [1, 100, 3000])
def test_a_disk_that_fills_up_at_the_very_end(tmp_path: Path, suffix: str, short_by: int) -> None:
    """Encoders write their last frames when they are closed, and libsndfile does not tell when that fails."""
    path = tmp_path / f"out.{suffix}"
    noise = np.random.default_rng(0).uniform(-1, 1, 5 * RATE).astype(np.float32)
    write_audio(path, noise, RATE)
    size = path.stat().st_size
    path.unlink()
    with file_size_limit(size - short_by), pytest.raises(OutputError, match="could not be written in full"):
        write_audio(path, noise, RATE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk takes root")
def test_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        with pytest.raises(OutputError, match=r"out\.wav could not be written in full"):
            write_audio(disk / "out.wav", np.zeros(20 * RATE, np.float32), RATE)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_error_midway_leaves_nothing(tmp_path: Path, tone: np.ndarray) -> None:
    def fail_midway() -> None:
        with open_sink(tmp_path / "out.wav", RATE) as sink:
            sink.write(tone)
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_midway()
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_written_through_and_permissions_are_ordinary(tmp_path: Path, tone: np.ndarray) -> None:
    target, link = tmp_path / "target.wav", tmp_path / "link.wav"
    link.symlink_to(target)
    write_audio(link, tone, RATE)
    assert link.is_symlink()
    assert read_audio(target)[0].size == tone.size
    reference = tmp_path / "reference"
    reference.touch()
    assert target.stat().st_mode == reference.stat().st_mode


def test_subtype_decides_what_is_stored(tmp_path: Path, tone: np.ndarray) -> None:
    write_audio(tmp_path / "float.wav", tone * 2, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "float.wav")[0], tone * 2)
    write_audio(tmp_path / "clipped.wav", tone * 4, RATE)
    np.testing.assert_allclose(read_audio(tmp_path / "clipped.wav")[0], np.clip(tone * 4, -1, 1), atol=5e-5)


def test_embeddings_round_trip_and_refuse_other_files(tmp_path: Path) -> None:
    path = tmp_path / "voice.npy"
    save_embedding(path, [0.6, 0.8])
    np.testing.assert_array_equal(load_embedding(path), np.array([0.6, 0.8], np.float32))
    for name, content in {"text.npy": b"hello", "empty.npy": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EmbeddingError, match="cannot be read as an embedding"):
            load_embedding(tmp_path / name)
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(EmbeddingError, match="cannot be read as an embedding"):
        load_embedding(tmp_path / "pickle.npy")
    np.save(tmp_path / "matrix.npy", np.zeros((2, 2)))
    with pytest.raises(EmbeddingError, match="one vector of floats"):
        load_embedding(tmp_path / "matrix.npy")
    with pytest.raises(EmbeddingError, match="No such file"):
        load_embedding(tmp_path / "none.npy")
    with file_size_limit(64), pytest.raises(OutputError, match="in full"):
        save_embedding(path, np.zeros(256))
    np.testing.assert_array_equal(load_embedding(path), np.array([0.6, 0.8], np.float32))
