"""The command line: what it writes, what it says, and that a mistake is one line, exit code 2 and no file."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from autovoice import PipelineConfig, VoiceConversionPipeline, read_audio
from autovoice.audio.files import AudioSource
from autovoice.audio.levels import usual_gain_db
from autovoice.cli.main import run
from autovoice.config import REPOSITORY_VARIABLE
from autovoice.repository.reader import ModelRepository

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "demo" / "source_rms.flac"
WOMAN = ROOT / "demo" / "target_slt.flac"
MAN = ROOT / "demo" / "target_awb.flac"
RATE = 16000
IDENTITY_SIZE = 256
VOICE_SIZE = IDENTITY_SIZE + 1 + 192 * 64


@pytest.fixture(scope="module", autouse=True)
def use_repository(repository: Path) -> Iterator[None]:
    """Every command below, and every process it starts, runs these models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(REPOSITORY_VARIABLE, str(repository))
        yield


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedding file of the female target."""
    path = tmp_path_factory.mktemp("voice") / "woman.npy"
    assert run(["embed", str(WOMAN), "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.2 s of the demo's source, enough to hold voiced frames and short enough for many conversions."""
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    audio, rate = soundfile.read(SOURCE, dtype="float32")
    soundfile.write(path, audio[: int(1.2 * rate)], rate)
    return path


def run_json(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run([str(argument) for argument in [*arguments, "--json"]]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert isinstance(report, dict)
    return report


def expect_mistake(arguments: list[Any], out: Path, capsys: pytest.CaptureFixture[str], *says: str) -> None:
    """Run, and demand exit code 2, one line on stderr that says these things, and nothing new below `out`."""
    before = sorted(out.rglob("*"))
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.err.startswith("autovoice: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    for words in says:
        assert words in captured.err
    assert sorted(out.rglob("*")) == before


class TestConvert:
    def test_writes_what_the_pipeline_returns(
        self, speech: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out.wav"
        report = run_json(
            ["convert", speech, "-t", voice, "-o", out, "--pitch-shift", "2.5", "--profile"], capsys
        )
        audio, rate = read_audio(speech)
        with VoiceConversionPipeline() as pipeline:
            expected = pipeline.convert(
                audio, np.load(voice), source_sample_rate=rate, pitch_shift_semitones=2.5
            )
        written, written_rate = soundfile.read(out, dtype="float32")
        assert written_rate == rate == RATE
        assert len(written) == len(audio)
        np.testing.assert_allclose(written, np.clip(expected, -1, 1), atol=1.1 / 32768)
        assert np.abs(written).max() > 1e-3
        (result,) = report["results"]
        assert report["errors"] == []
        assert result["source"] == str(speech)
        assert result["samples"] == len(audio)
        assert result["duration_s"] == pytest.approx(1.2)
        assert result["pitch_shift_semitones"] == 2.5
        assert result["passthrough"] is False
        assert result["profile"]["rtf"] == result["rtf"] > 0
        assert {"content_encoder", "pitch_extractor", "synthesizer"} <= set(result["profile"]["stages"])

    def test_same_bytes_twice_from_embedding_or_recording(
        self, speech: Path, voice: Path, tmp_path: Path
    ) -> None:
        for name, target in (("a", voice), ("b", voice), ("c", WOMAN)):
            assert run(["convert", str(speech), "-t", str(target), "-o", str(tmp_path / f"{name}.wav")]) == 0
        first = (tmp_path / "a.wav").read_bytes()
        assert (tmp_path / "b.wav").read_bytes() == first
        assert (tmp_path / "c.wav").read_bytes() == first

    def test_target_and_shift_matter(self, speech: Path, tmp_path: Path) -> None:
        outputs = []
        for name, options in (
            ("woman", ["-t", WOMAN]),
            ("man", ["-t", MAN]),
            ("high", ["-t", WOMAN, "--pitch-shift", "7"]),
        ):
            out = tmp_path / f"{name}.wav"
            assert run([str(each) for each in ["convert", speech, *options, "-o", out]]) == 0
            outputs.append(soundfile.read(out)[0])
        assert not np.allclose(outputs[0], outputs[1], atol=1e-3)
        assert not np.allclose(outputs[0], outputs[2], atol=1e-3)

    def test_auto_shift_moves_the_median_to_the_targets(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = run_json(
            ["convert", SOURCE, "-t", WOMAN, "-o", tmp_path / "x.wav", "--pitch-shift", "auto"], capsys
        )
        with VoiceConversionPipeline() as pipeline:
            interval = 12 * np.log2(pipeline.median_f0_file(WOMAN) / pipeline.median_f0_file(SOURCE))
        assert interval > 3  # a man's median to a woman's
        assert report["results"][0]["pitch_shift_semitones"] == pytest.approx(interval, abs=0.05)

    @pytest.mark.parametrize(("suffix", "slack"), [("wav", 0), ("flac", 0), ("ogg", 0), ("mp3", 2 * 1152)])
    def test_reads_and_writes_every_format(
        self, speech: Path, voice: Path, tmp_path: Path, suffix: str, slack: int
    ) -> None:
        audio, rate = soundfile.read(speech)
        source = tmp_path / f"in.{suffix}"
        soundfile.write(source, audio, rate)
        out = tmp_path / f"out.{suffix}"
        assert run(["convert", str(source), "-t", str(voice), "-o", str(out)]) == 0
        info = soundfile.info(out)
        assert info.samplerate == rate
        assert info.frames == pytest.approx(soundfile.info(source).frames, abs=slack)

    def test_stereo_is_mixed_down_and_other_rates_keep_their_length(
        self, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        noise = np.random.default_rng(1).uniform(-0.3, 0.3, (44100, 2))
        soundfile.write(tmp_path / "stereo.wav", noise, 44100, subtype="FLOAT")
        soundfile.write(tmp_path / "mono.wav", noise.mean(axis=1), 44100, subtype="FLOAT")
        run_json(
            ["convert", tmp_path / "stereo.wav", tmp_path / "mono.wav", "-t", voice, "-o", tmp_path / "out"],
            capsys,
        )
        stereo, _ = soundfile.read(tmp_path / "out" / "stereo.wav")
        mono, rate = soundfile.read(tmp_path / "out" / "mono.wav")
        assert rate == 44100
        assert stereo.shape == mono.shape == (44100,)
        np.testing.assert_allclose(stereo, mono, atol=1.1 / 32768)

    def test_silence_converts_to_silence(self, voice: Path, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
        assert (
            run(["convert", str(tmp_path / "silence.wav"), "-t", str(voice), "-o", str(tmp_path / "o.wav")])
            == 0
        )
        audio, _ = soundfile.read(tmp_path / "o.wav")
        assert len(audio) == RATE
        assert np.abs(audio).max() < 1e-3

    def test_asked_for_rate(self, speech: Path, voice: Path, tmp_path: Path) -> None:
        out = tmp_path / "o.wav"
        assert run(["convert", str(speech), "-t", str(voice), "-o", str(out), "--sample-rate", "48000"]) == 0
        assert soundfile.info(out).samplerate == 48000
        assert soundfile.info(out).frames == 3 * soundfile.info(speech).frames

    def test_a_third_of_a_second_of_reference_is_enough(self, speech: Path, tmp_path: Path) -> None:
        audio, rate = soundfile.read(WOMAN)
        soundfile.write(tmp_path / "short.wav", audio[rate : rate + int(0.3 * rate)], rate)
        out = tmp_path / "o.wav"
        assert run(["convert", str(speech), "-t", str(tmp_path / "short.wav"), "-o", str(out)]) == 0
        assert np.isfinite(soundfile.read(out)[0]).all()


class TestFolders:
    def test_a_folder_is_converted_with_its_structure_and_one_bad_file_stops_nothing(
        self, speech: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tree = tmp_path / "in"
        (tree / "deep").mkdir(parents=True)
        shutil.copy(speech, tree / "a.wav")
        shutil.copy(speech, tree / "deep" / "b.wav")
        (tree / "bad.wav").write_text("this is no audio")
        out = tmp_path / "out"
        assert (
            run(["convert", str(tree), "-t", str(voice), "-o", str(out), "--json", "--format", "flac"]) == 1
        )
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert "bad.wav" in captured.err
        assert sorted(str(file.relative_to(out)) for file in out.rglob("*.*")) == ["a.flac", "deep/b.flac"]
        report = json.loads(captured.out)
        assert [Path(entry["output"]).name for entry in report["results"]] == ["a.flac", "b.flac"]
        assert [entry["error"] for entry in report["errors"]] == ["AudioFileError"]
        assert (
            soundfile.read(out / "a.flac")[0].tolist() == soundfile.read(out / "deep" / "b.flac")[0].tolist()
        )

    def test_existing_results_are_kept_until_told_otherwise(
        self, speech: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        kept = out / "speech.wav"
        kept.write_bytes(b"mine")
        command = ["convert", speech, "-t", voice, "-o", out]
        expect_mistake(command, out, capsys, "speech.wav exists", "--overwrite")
        assert run_json([*command, "--skip-existing"], capsys)["results"] == []
        assert kept.read_bytes() == b"mine"
        assert len(run_json([*command, "--overwrite"], capsys)["results"]) == 1
        assert soundfile.info(kept).frames == soundfile.info(speech).frames
        expect_mistake([*command, "--overwrite", "--skip-existing"], out, capsys, "contradict")


def damaged_sources(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no source, each with a word its error must contain."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(-0.3, 0.3, RATE).astype(np.float32)
    cases: dict[str, tuple[Path, str]] = {}

    def wav(name: str, audio: Any, rate: int, says: str) -> None:
        path = folder / f"{name}.wav"
        soundfile.write(path, np.asarray(audio, np.float32), rate, subtype="FLOAT")
        cases[name] = (path, says)

    wav("empty", [], RATE, "samples")
    wav("nan", np.where(np.arange(RATE) == 777, np.nan, noise), RATE, "nan at sample 777")
    wav("infinite", np.where(np.arange(RATE) == 5, np.inf, noise), RATE, "inf at sample 5")
    wav("unscaled", noise * 32768, RATE, "[-1, 1]")
    wav("short", noise[:100], RATE, "100 samples")
    wav("slow_rate", noise, 3000, "3000")
    wav("fast_rate", noise, 800_000, "800000")
    cases["text"] = (folder / "text.wav", "cannot be read as audio")
    cases["text"][0].write_text("RIFF but not really")
    cases["zero_bytes"] = (folder / "zero.wav", "empty")
    cases["zero_bytes"][0].touch()
    cases["missing"] = (folder / "missing.wav", "does not exist")
    cases["folder_without_audio"] = (folder / "void", "no audio files")
    cases["folder_without_audio"][0].mkdir()
    return cases


BAD_SOURCES = [
    "empty",
    "nan",
    "infinite",
    "unscaled",
    "short",
    "slow_rate",
    "fast_rate",
    "text",
    "zero_bytes",
    "missing",
    "folder_without_audio",
]


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_bad_source(name: str, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path, says = damaged_sources(tmp_path / "in")[name]
    out = tmp_path / "out"
    expect_mistake(["convert", path, "-t", voice, "-o", out / "x.wav"], out, capsys, path.name, says)
    if name == "folder_without_audio":
        says = "directory"
    expect_mistake(["convert", SOURCE, "-t", path, "-o", out / "x.wav"], out, capsys, path.name, says)
    expect_mistake(["embed", path, "-o", out / "x.npy"], out, capsys, path.name, says)
    if name != "short":  # a live stream may end whenever it likes
        stream = ["stream", "--simulate", path, "-t", voice, "-o", out / "x.wav"]
        expect_mistake(stream, out, capsys, path.name, says)


def test_silence_is_no_voice(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(RATE), RATE)
    command = ["convert", speech, "-t", silence, "-o", tmp_path / "x.wav"]
    expect_mistake(command, tmp_path, capsys, "silence.wav", "silent")


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("size", np.ones(255, np.float32), "255"),
        ("rank", np.ones((2, VOICE_SIZE), np.float32), "vector"),
        ("zero", np.zeros(VOICE_SIZE, np.float32), "length 0"),
        ("nan", np.full(VOICE_SIZE, np.nan, np.float32), "nan"),
        ("object", np.array([{"no": "pickles"}], dtype=object), "embedding"),
    ],
)
def test_bad_embedding(
    name: str, array: Any, says: str, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / f"{name}.npy"
    np.save(target, array)
    (tmp_path / "out").mkdir()
    command = ["convert", speech, "-t", target, "-o", tmp_path / "out" / "x.wav"]
    expect_mistake(command, tmp_path / "out", capsys, says)


def test_bad_options(speech: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = ["convert", speech, "-t", voice, "-o", out / "x.wav"]
    stream = ["stream", "--simulate", speech, "-t", voice]
    for arguments, says in (
        ([*command, "--pitch-shift", "24.5"], "24.5"),
        ([*command, "--pitch-shift", "-25"], "-25"),
        ([*command, "--pitch-shift", "nan"], "nan"),
        ([*command, "--pitch-shift", "up"], "'up' is neither"),
        ([*command, "--threads", "0"], "threads"),
        ([*command, "--device", "tpu"], "tpu"),
        ([*command, "--fallback", "hope"], "hope"),
        ([*command, "--sample-rate", "100"], "100"),
        ([*command, "--colour"], "--colour"),
        (["convert", speech, "-o", out / "x.wav"], "--target"),
        (["convert", "-t", voice, "-o", out / "x.wav"], "SOURCE"),
        ([*command[:-1], out / "x.xyz"], ".xyz"),
        ([*command[:-1], speech], "also a source"),
        ([*stream, "--chunk-ms", "0"], "0"),
        ([*stream, "--chunk-ms", "nan"], "nan"),
        ([*stream, "--pitch-shift", "auto"], "auto"),
        ([*stream, "--pitch-shift", "30"], "30"),
        ([*stream, "--sample-rate", "3999"], "3999"),
        ([*stream, "--input-gain", "loud"], "--input-gain is 'loud'"),
        ([*stream, "--input-gain", "nan"], "--input-gain is nan"),
        (["embed", speech, "-o", out / "x.wav"], ".npy"),
        (["sing", speech], "sing"),
    ):
        expect_mistake(arguments, out, capsys, says)


def test_unwritable_outputs(
    speech: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for output in (
        tmp_path / "file" / "x.wav",
        tmp_path / "file" / "deep" / "x.wav",
        Path("/proc/nowhere/x.wav"),
    ):
        expect_mistake(
            ["convert", speech, "-t", voice, "-o", output], tmp_path, capsys, str(output.parent.name)
        )
    for output in (tmp_path / "file" / "x.npy", tmp_path / "nowhere" / "x.npy", tmp_path):
        expect_mistake(["embed", WOMAN, "-o", output], tmp_path, capsys)


class TestRepository:
    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        """A copy of the repository in use that can be damaged."""
        folder = tmp_path / "repository"
        shutil.copytree(PipelineConfig().repository_path(), folder, symlinks=True)
        return folder

    def test_missing(
        self, speech: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        nowhere = tmp_path / "nowhere"
        command = ["convert", speech, "-t", voice, "-o", tmp_path / "x.wav", "--repository", nowhere]
        expect_mistake(command, tmp_path, capsys, str(nowhere))
        expect_mistake(["info", "--repository", nowhere], tmp_path, capsys, str(nowhere))

    def test_corrupt_model(
        self, copy: Path, speech: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = copy / "synthesizer" / "1" / "model.onnx"
        model.write_bytes(model.read_bytes()[:1000])
        command = ["convert", speech, "-t", voice, "-o", tmp_path / "x.wav", "--repository", copy]
        expect_mistake(command, tmp_path, capsys, "synthesizer")
        expect_mistake(["info", "--check", "--repository", copy], tmp_path, capsys, "synthesizer")

    def test_tensor_names_at_odds(
        self, copy: Path, speech: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # The stage and the ensembles agree with each other on a name that the ONNX file does not have.
        for config in copy.glob("*/config.pbtxt"):
            config.write_text(config.read_text().replace('"PERIODICITY"', '"CLARITY"'))
        command = ["convert", speech, "-t", voice, "-o", tmp_path / "x.wav", "--repository", copy]
        expect_mistake(command, tmp_path, capsys, "CLARITY")


class TestEmbed:
    def test_several_recordings_are_joined(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "both.npy"
        report = run_json(["embed", WOMAN, MAN, "-o", out], capsys)
        with VoiceConversionPipeline() as pipeline:
            both = [pipeline.embed_file(WOMAN), pipeline.embed_file(MAN)]
            expected = pipeline.join_embeddings(both)
        joined = np.load(out)
        np.testing.assert_allclose(joined, expected, atol=1e-6)
        assert report["size"] == VOICE_SIZE
        # Half of the frames are of each, the woman's first.
        for half, one in zip(
            np.split(joined[IDENTITY_SIZE + 1 :] / joined[IDENTITY_SIZE], 2), both, strict=True
        ):
            own = one[IDENTITY_SIZE + 1 :].reshape(96, 2, 64) / one[IDENTITY_SIZE]
            distance = np.abs(own - half.reshape(96, 1, 64)).max(axis=2)
            assert distance.min(axis=1).max() < 1e-4, "one of every two frames"
        similarities = [entry["similarity_to_mean"] for entry in report["references"]]
        assert similarities[0] == pytest.approx(similarities[1])  # the mean of two lies halfway
        assert similarities[0] < 1

    def test_nothing_is_replaced_unasked(
        self, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "v.npy"
        shutil.copy(voice, out)
        expect_mistake(["embed", MAN, "-o", out], tmp_path, capsys, "--overwrite")
        assert out.read_bytes() == voice.read_bytes()
        assert run(["embed", str(MAN), "-o", str(out), "--overwrite"]) == 0
        assert out.read_bytes() != voice.read_bytes()


class TestStream:
    def test_the_heard_stream_is_the_conversion(
        self, speech: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        heard, converted = tmp_path / "heard.wav", tmp_path / "converted.wav"
        stream = ["stream", "--simulate", speech, "-t", voice, "-o", heard, "--chunk-ms", "33"]
        gain = usual_gain_db(AudioSource(speech).level)
        report = run_json([*stream, "--sample-rate", RATE, "--input-gain", gain], capsys)
        assert run(["convert", str(speech), "-t", str(voice), "-o", str(converted)]) == 0
        whole, rate = soundfile.read(converted)
        np.testing.assert_allclose(soundfile.read(heard)[0], whole, atol=2 / 32768)
        assert report["chunks"] == 37  # 1.2 s in chunks of 33 ms
        assert report["audio_s"] == pytest.approx(len(whole) / rate)
        assert (
            report["algorithmic_ms"] > 40
        )  # resampling to the voice's rate and back adds to the voice's own
        latency, end_to_end = report["latency_ms"], report["end_to_end_ms"]
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
        assert (
            end_to_end["p50"] >= latency["p50"] + 33 + 20
        )  # the chunk and most of the look-ahead come on top
        assert report["underruns"] >= 0

    def test_text_report_has_the_three_percentiles(
        self, speech: Path, voice: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["stream", "--simulate", str(speech), "-t", str(voice)]) == 0
        text = capsys.readouterr().out
        assert "algorithmic latency 35.0 ms" in text  # at the voice's own rate, 24 kHz
        for words in ("p50", "p95", "p99", "underrun", "algorithmic"):
            assert words in text


def test_info_describes_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(["info", "--check"], capsys)
    repository = ModelRepository(PipelineConfig().repository_path())
    assert [model["name"] for model in report["models"]] == repository.names()
    models = {model["name"]: model for model in report["models"]}
    assert models["voice_conversion"]["kind"] == "ensemble"
    assert set(models["voice_conversion"]["inputs"]) == {"SOURCE_AUDIO", "TARGET_EMBEDDING", "PITCH_SHIFT"}
    assert models["synthesizer"]["bytes"] == (repository.path / "synthesizer/1/model.onnx").stat().st_size
    assert models["synthesizer_stream"]["shared_with"] == "synthesizer"
    assert report["voice"]["sample_rate"] == "24000"
    assert "cpu" in report["devices"]
    assert report["versions"]["onnxruntime"]
    assert run(["info"]) == 0
    assert "voice_conversion_stream" in capsys.readouterr().out


def cli(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autovoice", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


class TestProcess:
    def test_version_help_and_exit_codes(self, tmp_path: Path) -> None:
        version = cli("--version")
        assert version.returncode == 0
        assert version.stdout.startswith("autovoice ")
        usage = cli("convert", "--help")
        assert usage.returncode == 0
        assert "--pitch-shift" in usage.stdout
        mistake = cli("convert", tmp_path / "no.wav", "-t", WOMAN, "-o", tmp_path / "o.wav")
        assert mistake.returncode == 2
        assert mistake.stdout == ""
        assert mistake.stderr.count("\n") == 1

    def test_a_full_disk_leaves_nothing(self, voice: Path, tmp_path: Path) -> None:
        def small_disk() -> None:
            # A limit on file sizes makes writes fail as a full disk does, without one.
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

        done = cli("convert", SOURCE, "-t", voice, "-o", tmp_path / "x.wav", preexec_fn=small_disk)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert "x.wav" in done.stderr
        assert "space" in done.stderr
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("number", "code", "lines"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 0)])
    def test_stopping_leaves_nothing(
        self, number: signal.Signals, code: int, lines: int, voice: Path, tmp_path: Path
    ) -> None:
        """Stopped in the middle of a conversion, the command ends in good order and without a file."""
        audio, rate = soundfile.read(SOURCE)
        source = tmp_path / "long.wav"
        soundfile.write(source, np.tile(audio, 120), rate)
        out = tmp_path / "out"
        out.mkdir()
        command = [
            sys.executable,
            "-m",
            "autovoice",
            "convert",
            str(source),
            "-t",
            str(voice),
            "-o",
            str(out / "x.wav"),
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

        def heed() -> None:
            # A shell starts its background jobs deaf to SIGINT, and their children inherit that.
            signal.signal(signal.SIGINT, signal.default_int_handler)

        with subprocess.Popen(command, preexec_fn=heed, **pipes) as process:
            deadline = time.monotonic() + 60
            while not any(out.iterdir()) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert any(out.iterdir()), "the conversion never began to write"
            process.send_signal(number)
            _, stderr = process.communicate(timeout=60)
        assert process.returncode == code, stderr
        assert stderr.count("\n") == lines
        assert list(out.iterdir()) == []

    def test_a_reader_that_leaves_is_no_error(self) -> None:
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as broken:
            command = [sys.executable, "-m", "autovoice", "info", "--json"]
            done = subprocess.run(command, stdout=broken, stderr=subprocess.PIPE, text=True, check=False)
        assert done.stderr == ""
