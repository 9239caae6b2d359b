"""What is installed without a checkout: a wheel, and a source archive that makes the same wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.config import MODELS
from autovoice.errors import RepositoryError

ROOT = Path(__file__).resolve().parents[1]


def run(command: list[str | Path], cwd: Path) -> str:
    """Standard output of a program that sees nothing of this checkout."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "AUTOVOICE_REPOSITORY")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode and re.search(r"(?i)connection|name resolution|timed out", done.stderr):
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel built from the files of the checkout, and one built from its source archive."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of files")
    folder = tmp_path_factory.mktemp("build")
    checkout = folder / "checkout"
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name, follow_symlinks=False)
    (checkout / MODELS / "synthesizer" / "1" / "cc90.plan").write_bytes(b"of one GPU")
    run([sys.executable, "-c", "import setuptools.build_meta as b; b.build_sdist('../archive')"], checkout)
    (archive,) = (folder / "archive").glob("*.tar.gz")
    made = []
    for name, source in (("direct", checkout), ("from_archive", archive)):
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder / name, source]
        run(pip, folder)
        made.extend((folder / name).glob("*.whl"))
    direct, from_archive = made
    return direct, from_archive


@pytest.mark.slow
def test_wheel_holds_models_and_licences(wheels: tuple[Path, Path]) -> None:
    direct, from_archive = (sorted(zipfile.ZipFile(wheel).namelist()) for wheel in wheels)
    assert from_archive == direct
    models = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / MODELS).rglob("*")
        if path.is_file() and ".plan" not in path.name
    }
    assert {f"autovoice/{name}" for name in models} == {
        name for name in direct if name.startswith(f"autovoice/{MODELS}/")
    }
    recordings = {f"autovoice/demo/{path.name}" for path in (ROOT / "demo").glob("*.flac")}
    assert recordings == {name for name in direct if name.startswith("autovoice/demo/")}
    licences = [name.rpartition("/")[2] for name in direct if ".dist-info/licenses/" in name]
    assert sorted(licences) == ["LICENSE", "resemblyzer-LICENSE.txt"]
    with zipfile.ZipFile(wheels[0]) as wheel:
        assert all(wheel.getinfo(f"autovoice/{name}").file_size for name in models if name.endswith(".onnx"))
    assert any(name.endswith("server/backend/onnxruntime/model.py") for name in direct)


@pytest.mark.slow
def test_installed_command_converts_from_any_folder(wheels: tuple[Path, Path], tmp_path: Path) -> None:
    run([sys.executable, "-m", "venv", tmp_path / "venv"], tmp_path)
    programs = tmp_path / "venv" / "bin"
    run([programs / "python", "-m", "pip", "install", "-q", wheels[1]], tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    source, target = ROOT / "demo" / "source_rms.flac", ROOT / "demo" / "target_slt.flac"
    run([programs / "autovoice", "convert", source, "--target", target, "-o", "out.wav"], empty)
    made, rate = soundfile.read(empty / "out.wav", dtype="float32")
    with VoiceConversionPipeline(PipelineConfig(repository=ROOT / MODELS)) as pipeline:
        audio, source_rate = soundfile.read(source, dtype="float32")
        expected = pipeline.convert(audio, pipeline.embed_file(target), source_sample_rate=source_rate)
    assert rate == source_rate
    np.testing.assert_allclose(made, expected, atol=2e-4)  # 16 bits
    assert f"/autovoice/{MODELS}" in run([programs / "autovoice", "info", "--json"], empty)


def test_repository_is_looked_for_where_people_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order: the argument, the environment, the checkout, the installed package, the current folder."""
    package = tmp_path / "lib" / "site" / "autovoice"
    places = [tmp_path / "lib" / MODELS, package / MODELS, tmp_path / "here" / MODELS]
    for place in places:
        place.mkdir(parents=True)
    monkeypatch.setattr("autovoice.config.__file__", str(package / "config.py"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("AUTOVOICE_REPOSITORY", str(tmp_path / "named"))
    assert PipelineConfig(repository=tmp_path / "given").repository_path() == tmp_path / "given"
    assert PipelineConfig().repository_path() == tmp_path / "named"
    monkeypatch.delenv("AUTOVOICE_REPOSITORY")
    for place in places:
        assert PipelineConfig().repository_path().resolve() == place
        place.rmdir()
    with pytest.raises(RepositoryError, match=r"no model repository found in .+ or set AUTOVOICE"):
        PipelineConfig().repository_path()
