"""Conversion on a Ray cluster: results are whole, made once, and all there in the end, whatever dies."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from autovoice import PipelineConfig, VoiceConversionPipeline, read_audio
from autovoice.errors import AudioFileError, ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "ray" / "convert.py"
TARGET = ROOT / "demo" / "target_slt.flac"
DRIVERS: list[subprocess.Popen[str]] = []


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("ray_convert", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ray_convert"] = module
    spec.loader.exec_module(module)
    return module


job = load_script()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of moto's server."""
    boto3 = pytest.importorskip("boto3", reason="no boto3: pip install boto3")
    moto = pytest.importorskip("moto.server", reason="no moto: pip install 'moto[server]'")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="voices")
        yield "voices"
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "folder":
        return job.open_place(str(tmp_path / "out"))
    name = request.getfixturevalue("bucket")
    return job.open_place(f"s3://{name}/{tmp_path.name}")


# Places


def test_what_is_placed_is_found_and_never_replaced(place: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"1" * 100_000)
    second.write_bytes(b"2")
    assert place.names() == set()
    assert not place.has("a/b.wav")
    assert place.place(first, "a/b.wav")
    assert not place.place(second, "a/b.wav")
    assert place.place(second, "a/b.wav.flac")
    assert not place.has("a/b")
    assert place.has("a/b.wav")
    assert place.names() == {"a/b.wav", "a/b.wav.flac"}
    (tmp_path / "here").mkdir()
    assert place.fetch("a/b.wav", tmp_path / "here").read_bytes() == b"1" * 100_000


def test_a_folder_keeps_nothing_of_what_was_not_finished(tmp_path: Path) -> None:
    place = job.open_place(str(tmp_path / "out"))
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / ".0123456789abcdef.partial").write_bytes(b"1")
    (tmp_path / "out" / "a" / "kept.wav").write_bytes(b"1")
    place.tidy()
    assert place.names() == {"a/kept.wav"}


def test_a_task_that_is_run_again_leaves_what_is_there(place: Any, tmp_path: Path) -> None:
    """A machine may die between placing a result and saying so."""
    made = tmp_path / "made"
    made.write_bytes(b"made before")
    place.place(made, "part.flac")
    work = job.Work(job.Folder(tmp_path / "nowhere"), place, PipelineConfig(), None, {})
    assert job.convert_one(work, "part.wav", "part.flac") is None
    (tmp_path / "here").mkdir()
    assert place.fetch("part.flac", tmp_path / "here").read_bytes() == b"made before"


def test_recordings_are_paired_with_results() -> None:
    names = {"b.mp3", "a/x.WAV", "notes.txt", ".hidden.wav", "a/cover.jpg"}
    assert job.pair(names, "flac") == {"a/x.WAV": "a/x.flac", "b.mp3": "b.flac"}
    with pytest.raises(AudioFileError, match=r"a\.mp3 and a\.wav would both become a\.flac"):
        job.pair({"a.wav", "a.mp3"}, "flac")
    with pytest.raises(AudioFileError, match="none of the 1 files"):
        job.pair({"notes.txt"}, "flac")
    with pytest.raises(ConfigurationError, match="names no bucket"):
        job.open_place("s3:///folder")


# Jobs


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes with one core each."""
    pytest.importorskip("ray", reason="no Ray: pip install 'autovoice[ray]'")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 200 * 1024 * 1024}
    made = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    made.add_node(**options)
    made.wait_for_nodes()
    yield made
    for driver in DRIVERS:
        driver.kill()
    made.shutdown()


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A dozen of them, in folders, and one that is none."""
    folder = tmp_path / "in"
    speech, rate = read_audio(ROOT / "demo" / "source_rms.flac")
    for number in range(12):
        path = folder / f"{number % 3}" / f"part{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.roll(speech, number * rate)[: 3 * rate], rate)
    return folder


def start(cluster: Any, source: str | Path, output: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, SCRIPT, str(source), str(output), "--target", TARGET]
    driver = subprocess.Popen(
        [*map(str, command), "--address", cluster.address, "--format", "wav"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"RAY_AUTH_MODE": "disabled", "AUTOVOICE_REPOSITORY": str(ROOT / "model_repository")},
    )
    DRIVERS.append(driver)
    return driver


def until(condition: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells a file from one that took its place."""
    found = {}
    for path in folder.rglob("*.wav"):
        about = path.stat()
        found[path.relative_to(folder).as_posix()] = (about.st_ino, about.st_mtime_ns)
    return found


def until_quiet(folder: Path) -> None:
    """Wait until nothing appears any more."""
    seen = -1
    while seen != (seen := len(identities(folder))):
        time.sleep(3)


def check_all(recordings: Path, output: Path) -> None:
    """Every result is there, with the samples of a conversion here, and nothing else is."""
    names = {path.relative_to(recordings).as_posix() for path in recordings.rglob("*.wav")}
    assert {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()} == names
    with VoiceConversionPipeline(
        PipelineConfig(repository=ROOT / "model_repository", device="cpu")
    ) as pipeline:
        voice = pipeline.embed_file(TARGET)
        for name in sorted(names)[::5]:
            expected = output.parent / "expected.wav"
            pipeline.convert_file(recordings / name, expected, voice)
            made, right = (read_audio(path)[0] for path in (output / name, expected))
            np.testing.assert_allclose(made, right, atol=1e-4)


@pytest.mark.slow
def test_a_node_that_dies_costs_nothing_but_its_own_task(
    cluster: Any, recordings: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    running = start(cluster, recordings, output)
    until(lambda: len(identities(output)) >= 4, running)
    before = identities(output)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    said, _ = running.communicate(timeout=300)
    assert running.returncode == 0
    assert said.splitlines()[-1] == "12 converted, 0 were there, 0 failed"  # after what Ray says of the node
    assert {name: each for name, each in identities(output).items() if name in before} == before
    check_all(recordings, output)


@pytest.mark.slow
def test_a_job_that_was_killed_goes_on_where_it_was(cluster: Any, recordings: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    (recordings / "broken.wav").write_bytes(b"no sound")
    running = start(cluster, recordings, output)
    until(lambda: len(identities(output)) >= 4, running)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    until_quiet(output)  # Ray ends the tasks of a job whose driver is gone
    before = identities(output)
    assert 4 <= len(before) < 12
    running = start(cluster, recordings, output)
    said, _ = running.communicate(timeout=300)
    assert running.returncode == 1
    assert said.splitlines()[-1] == f"{12 - len(before)} converted, {len(before)} were there, 1 failed"
    assert {name: each for name, each in identities(output).items() if name in before} == before
    (recordings / "broken.wav").unlink()
    check_all(recordings, output)


@pytest.mark.slow
def test_buckets_are_converted_like_folders(
    cluster: Any, recordings: Path, bucket: str, tmp_path: Path
) -> None:
    source, output = (job.open_place(f"s3://{bucket}/{tmp_path.name}/{name}") for name in ("in", "out"))
    for path in sorted(recordings.rglob("*.wav"))[:4]:
        source.place(path, path.relative_to(recordings).as_posix())
    addresses = [f"s3://{each.bucket}/{each.prefix}" for each in (source, output)]
    for expected in ("4 converted, 0 were there, 0 failed", "0 converted, 4 were there, 0 failed"):
        said, _ = start(cluster, *addresses).communicate(timeout=300)
        assert said.splitlines()[-1] == expected
    assert output.names() == source.names()
