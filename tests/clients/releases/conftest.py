"""Repositories to publish, and a bucket to publish into."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_repository import build_toy_repository, write_config


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose ensembles convert; see `toy_repository`."""
    return build_toy_repository(tmp_path / "repository")


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    """Where to publish it."""
    return tmp_path / "releases"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of few files, one of them a link."""
    whole = build_toy_repository(tmp_path / "toy")
    small = tmp_path / "small"
    for name in ("delay", "delay_stream", "target_pitch"):
        shutil.copytree(whole / name, small / name, symlinks=True)
    steps = [("target_pitch", {"EMBEDDING": "EMBEDDING"}, {"MEDIAN_F0": "MEDIAN_F0"})]
    write_config(small / "voice", {"EMBEDDING": [4]}, {"MEDIAN_F0": [1]}, steps=steps)
    return small


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket called `voices`."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = pytest.importorskip("boto3").resource("s3").Bucket("voices")
    bucket.create()
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()
