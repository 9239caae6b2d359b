"""The examples of the README's "Serve" section, run as they stand but for the ports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from remote_calls import RATE, assert_same, hum

from autovoice import VoiceConversionPipeline
from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[4]
SOURCE, REFERENCE = hum(0.7, 140.0), hum(0.5, 210.0)


def examples(language: str) -> list[str]:
    section = (ROOT / "README.md").read_text().split("\n## Serve\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the examples read."""
    SOURCE.tofile(tmp_path / "source.f32")
    REFERENCE.tofile(tmp_path / "reference.f32")
    soundfile.write(tmp_path / "speech.wav", SOURCE, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "friend.flac", REFERENCE, RATE)
    return tmp_path


def run(server: TritonServer, command: list[str], code: str, folder: Path, repository: Path) -> str:
    for port, actual in ((8000, server.options.http_port), (8001, server.options.grpc_port)):
        code = code.replace(f"localhost:{port}", f"localhost:{actual}")
    environment = os.environ | {"AUTOVOICE_REPOSITORY": str(repository)}
    done = subprocess.run(
        [*command, code], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pipeline_examples(
    server: TritonServer, folder: Path, repository: Path, embedded: VoiceConversionPipeline
) -> None:
    code = next(code for code in examples("python") if "AsyncVoiceConversionPipeline" in code)
    stats = run(server, [sys.executable, "-c"], code, folder, repository)
    assert "succeeded=1, failed=0" in stats
    assert "fallbacks=0" in stats
    voice = embedded.embed_file(folder / "friend.flac")
    expected = embedded.convert(SOURCE, voice, None, RATE)
    for name in ("out.wav", "async_speech.wav"):
        np.testing.assert_allclose(soundfile.read(folder / name)[0], expected, atol=2e-4)  # 16 bits


def test_tritonclient_example(
    server: TritonServer, folder: Path, repository: Path, embedded: VoiceConversionPipeline
) -> None:
    code = next(code for code in examples("python") if "import tritonclient" in code)
    difference = run(server, [sys.executable, "-c"], code, folder, repository)
    assert float(difference) < 1e-4
    expected = embedded.convert(SOURCE, embedded.embed(SOURCE, RATE), None, RATE)
    np.testing.assert_allclose(soundfile.read(folder / "whole.wav")[0], expected, atol=2e-4)  # 16 bits


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_example(
    server: TritonServer, folder: Path, repository: Path, embedded: VoiceConversionPipeline
) -> None:
    (code,) = examples("sh")
    run(server, ["sh", "-euc"], code, folder, repository)
    made = np.fromfile(folder / "converted.f32", np.float32)
    assert_same(made, embedded.convert(SOURCE, embedded.embed(REFERENCE, RATE), None, RATE))
