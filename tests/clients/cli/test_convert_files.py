"""`convert` with what people have: pipes, formats, names, folders, damage. The toy voice halves the level."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from recordings import encode, murmur

from autovoice import read_audio
from autovoice.cli import main

RATE = 16_000
SPEECH = murmur(1.0, RATE)
INSIDE = slice(300, -300)  # where resampling to the rate of the voice and back hears no edge
COMMAND = [sys.executable, "-m", "autovoice", "convert", "-t", "voice.npy"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a recording and a voice."""
    soundfile.write(tmp_path / "in.wav", SPEECH, RATE, subtype="FLOAT")
    np.save(tmp_path / "voice.npy", np.full(4, 0.5, np.float32))
    return tmp_path


Done = subprocess.CompletedProcess[bytes]


@pytest.fixture
def command(folder: Path, toy: Path) -> Callable[..., Done]:
    """Runs `convert` as a process of its own."""

    def start(*arguments: Any, **options: Any) -> Done:
        environment = os.environ | {"AUTOVOICE_REPOSITORY": str(toy)} | options.pop("env", {})
        return subprocess.run(
            [*COMMAND, *arguments], cwd=folder, env=environment, capture_output=True, timeout=240, **options
        )

    return start


@pytest.fixture
def convert(
    folder: Path, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Runs `convert` in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AUTOVOICE_REPOSITORY", str(toy))

    def start(*arguments: str) -> Done:
        code = main.run(["convert", "-t", "voice.npy", *arguments])
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, out.encode(), err.encode())

    return start


def assert_converted(file: Any, tolerance: float = 1e-4, rate: int = RATE) -> None:
    audio, found = soundfile.read(file, dtype="float32")
    assert found == rate
    assert audio.size == SPEECH.size
    np.testing.assert_allclose(audio[INSIDE], 0.5 * SPEECH[INSIDE], atol=tolerance)


def one_line(done: Done, *says: str) -> None:
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("autovoice: ")
    for words in says:
        assert words in line


class TestPipes:
    def test_standard_input_and_output(self, folder: Path, command: Any) -> None:
        data = (folder / "in.wav").read_bytes()
        done = command("-", "-o", "-", input=data)
        assert (done.returncode, done.stderr) == (0, b"")
        assert_converted(io.BytesIO(done.stdout))
        done = command("/dev/stdin", "-o", "/dev/stdout", "--output-format", "flac", input=data)
        assert (done.returncode, done.stdout[:4]) == (0, b"fLaC")
        assert_converted(io.BytesIO(done.stdout))
        assert {file.name for file in folder.iterdir()} == {"in.wav", "voice.npy"}

    def test_standard_streams_that_are_files(self, folder: Path, toy: Path) -> None:
        """As a shell's < and > make them."""
        with (folder / "in.wav").open("rb") as source, (folder / "out.bin").open("wb") as output:
            done = subprocess.run(
                [*COMMAND, "/dev/stdin", "-o", "/dev/stdout"],
                cwd=folder,
                env=os.environ | {"AUTOVOICE_REPOSITORY": str(toy)},
                stdin=source,
                stdout=output,
                stderr=subprocess.PIPE,
            )
        assert (done.returncode, done.stderr) == (0, b"")
        assert_converted(folder / "out.bin")

    def test_named_pipes_on_both_sides(self, folder: Path, command: Any) -> None:
        os.mkfifo(folder / "source")
        os.mkfifo(folder / "sink.flac")
        read: list[bytes] = []
        ends = [
            threading.Thread(
                target=lambda: (folder / "source").write_bytes((folder / "in.wav").read_bytes()), daemon=True
            ),
            threading.Thread(target=lambda: read.append((folder / "sink.flac").read_bytes()), daemon=True),
        ]
        for end in ends:
            end.start()
        done = command("source", "-o", "sink.flac")
        assert (done.returncode, done.stderr) == (0, b"")
        for end in ends:
            end.join(60)
        assert read[0][:4] == b"fLaC"
        assert_converted(io.BytesIO(read[0]))

    def test_nothing_and_samples_without_a_header(self, folder: Path, command: Any) -> None:
        done = command("in.wav", "-o", "/dev/null")
        assert (done.returncode, done.stderr) == (0, b"")
        done = command("-", "--input-format", "f32le:24000:1", "-o", "out.wav", input=SPEECH.tobytes())
        assert (done.returncode, done.stderr) == (0, b"")
        assert_converted(folder / "out.wav", rate=24_000)

    def test_what_cannot_be_is_one_line(self, folder: Path, command: Any, convert: Any) -> None:
        one_line(command("-", "-o", "out.wav", input=b""), "the file is empty")
        one_line(convert("in.wav", "-o", "-", "--json"), "--json and -o - both")
        one_line(convert("in.wav", "--input-format", "f32le", "-o", "out.wav"), "f32le:24000:1")
        one_line(convert("in.wav", "in.wav", "-o", "-"), "takes one recording")
        assert not (folder / "out.wav").exists()


class TestWriting:
    @pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "m4a"])
    def test_every_format_by_suffix_and_by_option(self, suffix: str, folder: Path, convert: Any) -> None:
        for arguments in (["-o", f"out.{suffix}"], ["-o", "named.bin", "--format", suffix]):
            done = convert("in.wav", *arguments)
            assert (done.returncode, done.stderr) == (0, b"")
            audio, rate = read_audio(folder / arguments[1])
            assert rate == (48_000 if suffix == "opus" else RATE)
            assert audio.size / rate == pytest.approx(1.0, abs=0.07 if suffix == "m4a" else 0.01)
            level = float(np.sqrt(np.square(audio).mean()))
            assert level == pytest.approx(0.5 * float(np.sqrt(np.square(SPEECH).mean())), rel=0.1)

    def test_a_rate_that_the_format_does_not_take(self, folder: Path, convert: Any) -> None:
        soundfile.write(folder / "cd.wav", murmur(1.0, 44_100), 44_100)
        for options, seconds in (([], 1.0), (["--sample-rate", "11025"], 1.0)):
            done = convert("cd.wav", "-o", "out.opus", "--overwrite", "--json", *options)
            assert (done.returncode, done.stderr) == (0, b"")
            (result,) = json.loads(done.stdout)["results"]
            assert result["sample_rate"] == (12_000 if options else 48_000)
            assert result["samples"] == pytest.approx(seconds * result["sample_rate"], abs=1)
            audio, rate = read_audio(folder / "out.opus")
            assert audio.size / rate == pytest.approx(seconds, abs=0.01)

    def test_other_formats_are_one_line(self, folder: Path, convert: Any) -> None:
        one_line(convert("in.wav", "-o", "out.raw"), ".raw", ".flac")
        one_line(convert("in.wav", "-o", "out.wma"), ".wma", ".m4a")
        one_line(convert("in.wav", "-o", "out.wav", "--format", "raw"), "raw", "m4a")
        one_line(convert("in.wav", "-o", "out.mp3", "--bit-depth", "24"), "PCM_24", "MP3")
        assert {file.name for file in folder.iterdir()} == {"in.wav", "voice.npy"}

    def test_bit_depth(self, folder: Path, convert: Any) -> None:
        for depth, subtype in {"16": "PCM_16", "24": "PCM_24", "32": "PCM_32", "float": "FLOAT"}.items():
            assert convert("in.wav", "-o", f"{depth}.wav", "--bit-depth", depth).returncode == 0
            assert soundfile.info(folder / f"{depth}.wav").subtype == subtype
        assert convert("in.wav", "-o", "24.flac", "--bit-depth", "24").returncode == 0
        assert soundfile.info(folder / "24.flac").subtype == "PCM_24"

    def test_tags_are_carried_over_when_asked_for(self, folder: Path, convert: Any) -> None:
        tags = {"title": "A song", "artist": "Somebody"}
        encode(folder / "song.m4a", murmur(1.0, 44_100), 44_100, "aac", tags=tags)
        for suffix in ("mp3", "flac", "wav", "ogg", "m4a"):
            assert convert("song.m4a", "-o", f"with.{suffix}", "--copy-tags").returncode == 0
            assert convert("song.m4a", "-o", f"without.{suffix}").returncode == 0
            assert found_tags(folder / f"with.{suffix}") == tags
            assert found_tags(folder / f"without.{suffix}") == {}

    def test_long_names(self, folder: Path, convert: Any) -> None:
        name = "水本ゆかりです私こんなかわいい服は初めて着ました" * 3 + "あ" * 7 + "nnn"
        shutil.copy(folder / "in.wav", folder / f"{name}.flac")
        assert len(f"{name}.flac".encode()) > 240
        for output in ("out", f"{name}.wav"):
            done = convert(f"{name}.flac", "-o", output)
            assert (done.returncode, done.stderr) == (0, b"")
        assert_converted(folder / "out" / f"{name}.wav")
        assert_converted(folder / f"{name}.wav")

    def test_an_output_that_appears_meanwhile_stays(self, folder: Path, toy: Path, convert: Any) -> None:
        os.mkfifo(folder / "source")
        process = subprocess.Popen(
            [*COMMAND, "source", "-o", "out.wav"],
            cwd=folder,
            env=os.environ | {"AUTOVOICE_REPOSITORY": str(toy)},
            stderr=subprocess.PIPE,
        )
        with (folder / "source").open("wb") as pipe:  # opens when the command reads, which has looked before
            (folder / "out.wav").write_bytes(b"mine")
            pipe.write((folder / "in.wav").read_bytes())
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 2
        assert b"out.wav exists and was left as it is" in stderr
        assert (folder / "out.wav").read_bytes() == b"mine"
        assert {file.name for file in folder.iterdir()} == {"in.wav", "voice.npy", "source", "out.wav"}
        assert convert("in.wav", "-o", "out.wav", "--overwrite").returncode == 0
        assert_converted(folder / "out.wav")

    def test_the_target_and_the_source_are_protected(self, folder: Path, convert: Any) -> None:
        before = (folder / "voice.npy").read_bytes()
        one_line(convert("in.wav", "-o", "voice.npy", "--overwrite", "--format", "wav"), "also the target")
        one_line(convert("in.wav", "-o", "in.wav", "--overwrite"), "also a source")
        assert (folder / "voice.npy").read_bytes() == before

    def test_what_would_clip_is_lowered_as_a_whole(self, folder: Path, convert: Any) -> None:
        loud = 5 / np.abs(SPEECH).max() * SPEECH
        soundfile.write(folder / "loud.wav", loud, RATE, subtype="FLOAT")
        done = convert("loud.wav", "-o", "out.wav")
        assert done.returncode == 0
        assert done.stderr.decode().startswith("autovoice: warning: out.wav was lowered by ")
        audio, _ = soundfile.read(folder / "out.wav", dtype="float32")
        expected = 0.99 / 5 * loud
        np.testing.assert_allclose(audio[INSIDE], expected[INSIDE], atol=2e-2)
        assert np.abs(audio).max() == pytest.approx(0.99, abs=1e-4)
        done = convert("loud.wav", "-o", "float.wav", "--bit-depth", "float")
        assert (done.returncode, done.stderr) == (0, b"")
        audio, _ = soundfile.read(folder / "float.wav")
        np.testing.assert_allclose(audio[INSIDE], 0.5 * loud[INSIDE], atol=1e-3)


def found_tags(path: Path) -> dict[str, str]:
    with av.open(str(path)) as file:
        tags = {**file.streams.audio[0].metadata, **file.metadata}
    return {key.lower(): text for key, text in tags.items() if key.lower() in ("title", "artist")}


class TestSources:
    def test_damage_is_one_warning_and_an_error_if_strict(self, folder: Path, convert: Any) -> None:
        soundfile.write(folder / "cut.flac", murmur(3.0, RATE), RATE)
        data = (folder / "cut.flac").read_bytes()
        (folder / "cut.flac").write_bytes(data[: len(data) // 2])
        done = convert("cut.flac", "-o", "out.wav", "--json")
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith("autovoice: warning: cut.flac is damaged: ")
        (result,) = json.loads(done.stdout)["results"]
        assert result["warnings"] == [line.removeprefix("autovoice: warning: ")]
        assert 1.0 < result["duration_s"] < 2.0
        one_line(convert("cut.flac", "-o", "strict.wav", "--strict"), "cut.flac is damaged")
        assert not (folder / "strict.wav").exists()

    def test_channels(self, folder: Path, convert: Any) -> None:
        stereo = np.stack([0.2 * SPEECH, SPEECH], axis=1)
        soundfile.write(folder / "stereo.wav", stereo, RATE, subtype="FLOAT")
        for channel in ("right", "2", "loudest"):
            assert convert("stereo.wav", "-o", f"{channel}.wav", "--channel", channel).returncode == 0
            assert_converted(folder / f"{channel}.wav")
        one_line(convert("stereo.wav", "-o", "out.wav", "--channel", "3"), "channel 3", "there are 2")
        one_line(convert("stereo.wav", "-o", "out.wav", "--channel", "both"), "'both'", "loudest")
        soundfile.write(folder / "inverted.wav", np.stack([SPEECH, -SPEECH], axis=1), RATE, subtype="FLOAT")
        done = convert("inverted.wav", "-o", "out.wav")
        assert b"cancel each other" in done.stderr
        assert_converted(folder / "out.wav")


class TestFolders:
    def test_everything_is_converted_or_named(self, folder: Path, convert: Any) -> None:
        tree = folder / "tree"
        (tree / "deep").mkdir(parents=True)
        shutil.copy(folder / "in.wav", tree / "a.wav")
        encode(tree / "b.m4a", murmur(1.0, 44_100), 44_100, "aac")
        shutil.copy(folder / "in.wav", tree / "deep" / "recording")
        (tree / "bad.wav").write_text("this is no audio")
        (tree / "notes.txt").write_text("these are notes")
        (tree / "gone.wav").symlink_to("nowhere")
        for options in (["--jobs", "3"], ["--overwrite"]):
            done = convert("tree", "-o", "out", "--json", *options)
            assert done.returncode == 1
            (line,) = done.stderr.decode().splitlines()
            assert "bad.wav" in line
            report = json.loads(done.stdout)
            assert [entry["output"] for entry in report["results"]] == [
                "out/a.wav",
                "out/b.wav",
                "out/deep/recording.wav",
            ]
            assert [entry["source"] for entry in report["errors"]] == ["tree/bad.wav"]
            assert report["skipped"] == [
                {"path": "tree/gone.wav", "reason": "a link to nothing"},
                {"path": "tree/notes.txt", "reason": "Invalid data found when processing input"},
            ]
            assert report["interrupted"] is False
        assert_converted(folder / "out" / "a.wav")
        assert_converted(folder / "out" / "deep" / "recording.wav")
        done = convert("tree", "-o", "again")
        assert done.returncode == 1
        assert b"tree/notes.txt: skipped, Invalid data" in done.stdout
        assert done.stdout.splitlines()[-1] == b"3 converted (3.0 s of audio), 1 failed, 2 skipped"

    def test_an_interrupt_leaves_whole_files_and_says_so(self, folder: Path, toy: Path) -> None:
        """The last source is a pipe that nobody fills, so that the command waits there."""
        sources = ["1.wav", "2.wav", "pipe"]
        for name in sources[:2]:
            shutil.copy(folder / "in.wav", folder / name)
        os.mkfifo(folder / "pipe")
        process = subprocess.Popen(
            [*COMMAND, *sources, "-o", "out"],
            cwd=folder,
            env=os.environ | {"AUTOVOICE_REPOSITORY": str(toy)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        with (folder / "pipe").open("wb") as pipe:  # opens when the command has come to it
            pipe.write((folder / "in.wav").read_bytes()[:100])
            pipe.flush()
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 130, stderr
        assert sorted(file.name for file in (folder / "out").iterdir()) == ["1.wav", "2.wav"]
        for name in ("1.wav", "2.wav"):
            assert_converted(folder / "out" / name)
        assert stdout.splitlines()[-1].startswith(b"2 converted (2.0 s of audio), ")
        assert b"interrupted" in stderr


class TestTerminals:
    @pytest.mark.parametrize(
        "environment",
        [
            {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
            {"PYTHONIOENCODING": "ascii"},
            {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"},
        ],
    )
    def test_names_that_the_terminal_cannot_show(
        self, environment: dict[str, str], folder: Path, command: Any
    ) -> None:
        names = [
            b"\xe3\x81\xad\xe3\x81\x93 \xf0\x9f\x8e\xa4 [take 1].wav",
            b"caf\xe9.wav",
            b"a\x1b[31m\nb.wav",
        ]
        (folder / "names").mkdir()
        for name in names:
            shutil.copy(folder / "in.wav", os.fsencode(folder / "names") + b"/" + name)
        done = command("names", "-o", "out", env=environment)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\x1b" not in done.stdout
        assert len(done.stdout.splitlines()) == len(names) + 1
        assert sorted(os.listdir(os.fsencode(folder / "out"))) == sorted(names)
        done = command(
            os.fsencode("names/") + names[1] + b".no", "-o", os.fsencode("x.") + names[1], env=environment
        )
        assert done.returncode == 2
        assert b"Traceback" not in done.stderr

    def test_no_color(self, command: Any) -> None:
        for value, coloured in (("", True), ("1", False)):
            done = command("--help", env={"FORCE_COLOR": "1", "NO_COLOR": value, "TERM": "xterm-256color"})
            assert done.returncode == 0
            assert (b"\x1b[3" in done.stdout or b";3" in done.stdout) is coloured
