"""Servers are ready when their ensembles are, whatever Triton says of itself."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from remote_calls import KEY, url
from triton_calls import CONTROL_KEY, kill, until, write_small_repository

from autovoice import PipelineConfig
from autovoice.cli.main import run
from autovoice.engines.opening import connect
from autovoice.engines.triton.engine import TritonEngine
from autovoice.errors import UnavailableError
from autovoice.server.options import ServeOptions
from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server
ENSEMBLE = """
name: "voice_conversion" platform: "ensemble" max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: [-1] }
output { name: "Y" data_type: TYPE_FP32 dims: [-1] }
ensemble_scheduling { step { model_name: "roots" model_version: -1
  input_map { key: "X" value: "X" } output_map { key: "Y" value: "Y" } } }
"""


@pytest.fixture
def folder(repository: Path, tmp_path: Path) -> Path:
    """A repository of an ensemble, its step, and a model beside them."""
    models = tmp_path / "models"
    write_small_repository(models, repository)
    (models / "voice_conversion" / "1").mkdir(parents=True)
    (models / "voice_conversion" / "config.pbtxt").write_text(ENSEMBLE)
    return models


@pytest.fixture
def fragile(folder: Path, cache: Path) -> Iterator[TritonServer]:
    """A server that a test may spoil; it asks for keys."""
    keys = {"api_key": KEY, "control_key": CONTROL_KEY}
    server = TritonServer(ServeOptions(folder, http_port=0, grpc_port=0, metrics=False, **keys), cache=cache)
    with server:
        yield server
        kill(server)


def control(server: TritonServer, verb: str, model: str) -> int:
    path = f"{server.options.http_url}/v2/repository/models/{model}/{verb}"
    return int(urllib3.request("POST", path, headers=server.options.control_headers(), body=b"{}").status)


def flag(server: TritonServer) -> int:
    """What Triton says of itself."""
    return int(urllib3.request("GET", f"{server.options.http_url}/v2/health/ready").status)


def add_model(folder: Path, name: str, model: bytes | None = None) -> None:
    """Add a copy of a model, with another file if one is given."""
    shutil.copytree(folder / "roots", folder / name)
    config = folder / name / "config.pbtxt"
    config.write_text(config.read_text().replace('"roots"', json.dumps(name)))
    if model is not None:
        (folder / name / "1" / "model.onnx").write_bytes(model)


def is_ready(engine: TritonEngine) -> bool:
    try:
        engine.check_ready()
    except UnavailableError:
        return False
    return True


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no key"])
def test_model_that_does_not_load_and_step_that_is_gone(
    fragile: TritonServer, folder: Path, protocol: str, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUTOVOICE_API_KEY", raising=False)
    engine = connect(PipelineConfig(backend=url(fragile, protocol), api_key=key))
    try:
        assert is_ready(engine)
        add_model(folder, "bad", b"no model")
        assert control(fragile, "load", "bad") == 400
        assert flag(fragile) == 400
        assert is_ready(engine)
        assert fragile.is_ready()
        assert control(fragile, "unload", "roots") == 200  # and the ensemble with it
        until(lambda: not fragile.is_ready())
        assert not is_ready(engine)
        assert control(fragile, "load", "roots") == 200
        until(fragile.is_ready)
        assert is_ready(engine)
    finally:
        engine.close()


def test_loading_another_model(fragile: TritonServer, folder: Path) -> None:
    engine = connect(PipelineConfig(backend=fragile.options.http_url, api_key=KEY))
    flags: set[int] = set()
    statuses: list[int] = []

    def load(name: str) -> None:
        statuses.append(control(fragile, "load", name))

    try:
        for number in range(20):  # until a load was looked at in its middle
            add_model(folder, f"later{number}")
            loader = threading.Thread(target=load, args=(f"later{number}",))
            loader.start()
            while loader.is_alive():
                flags.add(flag(fragile))
                assert is_ready(engine)
                assert fragile.is_ready()
            loader.join()
            if 400 in flags:
                break
    finally:
        engine.close()
    assert set(statuses) == {200}
    assert 400 in flags


def test_health_check_of_the_command_line(
    fragile: TritonServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the images, which know no key."""
    check = ["info", "--ready", "--server", fragile.options.http_url]
    add_model(folder, "bad", b"no model")
    assert control(fragile, "load", "bad") == 400
    assert run(check) == 0
    assert control(fragile, "unload", "roots") == 200
    until(lambda: not fragile.is_ready())
    assert run(check) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not ready" in line
