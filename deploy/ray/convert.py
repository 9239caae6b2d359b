"""Convert a folder, or a bucket of S3, on the machines of a Ray cluster: `python convert.py --help`.

Each recording is one task of Ray, which places the tasks, and gives those of a machine that died to others. A
result appears whole, once, and is never replaced: a task that is run again, and a job that is started again,
leave out what is there. Folders have to be shared by all machines, at the same path.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Protocol

import typer

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.atomic import atomic_path
from autovoice.audio.provenance import provenance_tags
from autovoice.cli.console import report_error
from autovoice.cli.embed import load_target
from autovoice.cli.options import parse_pitch_shift
from autovoice.cli.outputs import AUDIO_SUFFIXES
from autovoice.errors import AudioFileError, ConfigurationError, OutputError, VoiceConversionError

ATTEMPTS = 6  # at one recording: it may be what ends the process, or only have been on machines that died
MOST_AT_ONCE = 1000  # tasks that Ray knows of
_PIPELINES: dict[PipelineConfig, VoiceConversionPipeline] = {}  # of a process that runs tasks


class Place(Protocol):
    """Where recordings are, or where results go; names are relative, with slashes."""

    def names(self) -> set[str]:
        """All files that are there."""

    def has(self, name: str) -> bool:
        """Whether one is there."""

    def fetch(self, name: str, folder: Path) -> Path:
        """A file on this machine, in `folder` unless it is there already."""

    def place(self, file: Path, name: str) -> bool:
        """Put a file there, whole; False where the name is taken."""

    def tidy(self) -> None:
        """Remove what dead machines have left of files they were placing."""


@dataclass(frozen=True)
class Folder:
    """A folder that all machines share."""

    path: Path

    def names(self) -> set[str]:
        return {
            (Path(place) / name).relative_to(self.path).as_posix()
            for place, _, names in os.walk(self.path, followlinks=True)
            for name in names
        }

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def fetch(self, name: str, folder: Path) -> Path:
        return self.path / name

    def place(self, file: Path, name: str) -> bool:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_path(target, overwrite=False) as partial:
                shutil.copyfile(file, partial)
        except OutputError:
            if target.exists():
                return False
            raise
        return True

    def tidy(self) -> None:
        for partial in self.path.rglob(".*.partial"):
            partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class Bucket:
    """What is below `prefix` in a bucket of S3; boto3 finds credentials and endpoint in the environment."""

    bucket: str
    prefix: str

    def names(self) -> set[str]:
        from botocore.exceptions import BotoCoreError, ClientError

        pages = _s3().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        try:
            return {found["Key"][len(self.prefix) :] for page in pages for found in page.get("Contents", ())}
        except (BotoCoreError, ClientError) as error:
            raise self._error("", error) from error

    def has(self, name: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            _s3().head_object(Bucket=self.bucket, Key=self.prefix + name)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return False
            raise self._error(name, error) from error
        return True

    def fetch(self, name: str, folder: Path) -> Path:
        file = folder / Path(name).name
        from botocore.exceptions import ClientError

        try:
            _s3().download_file(self.bucket, self.prefix + name, str(file))
        except ClientError as error:
            raise self._error(name, error) from error
        return file

    def place(self, file: Path, name: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            with file.open("rb") as body:
                _s3().put_object(Bucket=self.bucket, Key=self.prefix + name, Body=body, IfNoneMatch="*")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                return False
            raise OutputError(
                f"s3://{self.bucket}/{self.prefix}{name} cannot be written ({error})"
            ) from error
        return True

    def tidy(self) -> None:
        pass

    def _error(self, name: str, error: Exception) -> OutputError:
        return OutputError(
            f"s3://{self.bucket}/{self.prefix}{name}: {error}; check the address and who may use it"
        )


def _s3() -> Any:
    try:
        import boto3
    except ImportError:
        raise ConfigurationError("s3:// needs boto3; pip install 'autovoice[ray]'") from None
    return boto3.client("s3")


def open_place(address: str) -> Place:
    """A folder, or what is below an address such as `s3://bucket/folder`."""
    if not address.startswith("s3://"):
        return Folder(Path(address).resolve())
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    if not bucket:
        raise ConfigurationError(f"{address} names no bucket; give s3://BUCKET or s3://BUCKET/FOLDER")
    return Bucket(bucket, f"{prefix.rstrip('/')}/" if prefix else "")


@dataclass(frozen=True)
class Work:
    """What all tasks have in common."""

    source: Place
    output: Place
    config: PipelineConfig
    embedding: Any
    options: dict[str, Any]


def convert_one(work: Work, name: str, result: str) -> str | None:
    """Convert one recording; returns what is wrong with it, None where its result is in place."""
    try:
        if work.output.has(result):  # by a machine that died after it, or was only believed to be dead
            return None
        if work.config not in _PIPELINES:
            _PIPELINES[work.config] = VoiceConversionPipeline(work.config)
        with tempfile.TemporaryDirectory(prefix="autovoice-") as folder:
            recording = work.source.fetch(name, Path(folder))
            made = Path(folder, f"made{Path(result).suffix}")
            _PIPELINES[work.config].convert_file(recording, made, work.embedding, **work.options)
            work.output.place(made, result)
    except VoiceConversionError as error:
        return str(error)
    return None


def pair(names: set[str], audio_format: str) -> dict[str, str]:
    """Results by the recordings that they are of, in order.

    Raises:
        AudioFileError: there is no recording, or two would have one result.
    """
    recordings: dict[str, str] = {}
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.name.startswith(".") or path.suffix.lower() not in AUDIO_SUFFIXES:
            continue
        result = path.with_suffix(f".{audio_format}").as_posix()
        if result in recordings:
            raise AudioFileError(f"{recordings[result]} and {name} would both become {result}; rename one")
        recordings[result] = name
    if not recordings:
        raise AudioFileError(f"none of the {len(names)} files there is a recording; check the address")
    return {name: result for result, name in recordings.items()}


def run(
    address: str, work: Work, todo: dict[str, str], cpus: int, gpus: float
) -> Iterator[tuple[str, str | None]]:
    """Run the tasks on the cluster; yields each recording, and what is wrong with it, as they are done."""
    try:
        import ray
    except ImportError:
        raise ConfigurationError("this needs Ray; pip install 'autovoice[ray]'") from None
    try:
        ray.init(address=address, logging_level="error", log_to_driver=False)
    except ConnectionError as error:
        raise ConfigurationError(
            f"no Ray cluster at {address!r} ({error}); start one: ray start --head"
        ) from error
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=ATTEMPTS - 1)(convert_one)
    shared = ray.put(work)
    waiting = iter(todo.items())
    running: dict[Any, str] = {}
    while True:
        for name, result in islice(waiting, MOST_AT_ONCE - len(running)):
            running[task.remote(shared, name, result)] = name
        if not running:
            return
        (done,), _ = ray.wait(list(running))
        try:
            fault = ray.get(done)
        except ray.exceptions.RayError as error:
            fault = f"given up after {ATTEMPTS} attempts ({str(error).strip().splitlines()[0]})"
        yield running.pop(done), fault


def main(
    source: Annotated[str, typer.Argument(help="A folder that all machines share, or s3://BUCKET/FOLDER.")],
    output: Annotated[str, typer.Argument(help="The same, for the results.")],
    target: Annotated[Path | None, typer.Option(help="A recording of the target, or its .npy.")] = None,
    voice: Annotated[str | None, typer.Option(help="An imported voice.")] = None,
    pitch_shift: Annotated[str, typer.Option(metavar="N|auto", help="Semitones.")] = "0",
    audio_format: Annotated[
        Literal["wav", "flac", "ogg", "opus", "mp3", "m4a"], typer.Option("--format")
    ] = "flac",
    repository: Annotated[Path | None, typer.Option(help="Models, at the same path on all machines.")] = None,
    address: Annotated[
        str, typer.Option(help="Of the cluster: auto, HOST:6379 or ray://HOST:10001.")
    ] = "auto",
    cpus: Annotated[int, typer.Option(min=1, help="Cores of each task.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each task, as 0.25: four share one.")] = 0,
) -> None:
    """Convert all recordings of a folder or a bucket on the machines of a Ray cluster."""
    shift = parse_pitch_shift(pitch_shift)
    config = PipelineConfig(
        repository=repository, voice=voice, threads=cpus, device="cuda" if gpus else "cpu"
    )
    places = open_place(source), open_place(output)
    if places[0] == places[1]:
        raise ConfigurationError(f"{output} is the source as well; give the results another place")
    pairs = pair(places[0].names(), audio_format)
    there = places[1].names()
    todo = {name: result for name, result in pairs.items() if result not in there}
    failed = 0
    if todo:
        with VoiceConversionPipeline(config) as pipeline:
            pipeline.voice.check_shift(shift)
            found = load_target(pipeline, target, with_pitch=shift == "auto")
        options = {
            "pitch_shift_semitones": shift,
            "target_median_f0": found.median_f0,
            "tags": provenance_tags(),
        }
        work = Work(*places, config, found.embedding, options)
        for name, fault in run(address, work, todo, cpus, gpus):
            failed += fault is not None
            if fault is not None:
                report_error(f"{name}: {fault}")
        places[1].tidy()
    print(f"{len(todo) - failed} converted, {len(pairs) - len(todo)} were there, {failed} failed", flush=True)
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    try:
        typer.run(main)
    except VoiceConversionError as error:
        report_error(error)
        sys.exit(error.exit_code)
