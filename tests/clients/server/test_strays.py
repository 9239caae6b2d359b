"""What file managers, editors and file systems leave in a repository: served as if it were not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from triton_calls import grpc_client, kill, local_options

from autovoice.repository.reader import ModelRepository
from autovoice.server.logs import LogRecord
from autovoice.server.server import ServerError, TritonServer

pytestmark = pytest.mark.server
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "  # no UTF-8 to the end: 0x98
MODELS = {"roots", "target_pitch"}


def litter(folder: Path) -> None:
    """Leave in a folder what is left in folders of any kind."""
    for name in (".DS_Store", "._config.pbtxt", "Thumbs.db", "desktop.ini", ".gitkeep", "notes.txt~"):
        (folder / name).write_bytes(APPLE_DOUBLE + b"\x98")
    for name in ("lost+found", "backup", "__pycache__", ".Trash-1000", "1 copy", "01", ".ipynb_checkpoints"):
        (folder / name).mkdir()
    checkpoints = folder / ".ipynb_checkpoints"
    (checkpoints / "config-checkpoint.pbtxt").write_text("nonsense {")
    (checkpoints / "config.pbtxt").write_text('name: "roots" backend: "onnxruntime"')
    (folder / "__MACOSX" / "roots").mkdir(parents=True)
    (folder / "__MACOSX" / "roots" / "._config.pbtxt").write_bytes(APPLE_DOUBLE)


@pytest.fixture
def littered(small: Path, tmp_path: Path) -> Path:
    """Two models, with strays beside them, in their folders and beside their files."""
    folder = tmp_path / "models"
    for name in sorted(MODELS):
        shutil.copytree(small / name, folder / name)
    for place in (folder, *(folder / name for name in MODELS), *(folder / name / "1" for name in MODELS)):
        litter(place)
    (folder / "dangling").symlink_to(folder / "nowhere")
    alternatives = folder / "roots" / "configs"
    alternatives.mkdir()
    shutil.copy(folder / "roots" / "config.pbtxt", alternatives / "other.pbtxt")
    (alternatives / "._other.pbtxt").write_bytes(APPLE_DOUBLE + b"\x98")
    return folder


@pytest.mark.parametrize("options", [{}, {"threads": 1, "config_name": "other"}], ids=["as it is", "a view"])
def test_strays_are_ignored(installed: None, littered: Path, cache: Path, options: dict[str, object]) -> None:
    log: list[LogRecord] = []
    assert ModelRepository(littered).names() == sorted(MODELS)
    server = TritonServer(local_options(littered, **options), cache=cache, on_log=log.append)
    with server:
        with grpc_client(server.options) as client:
            made = client.infer("roots", {"X": np.array([[4.0, 9.0]], np.float32)})
            loaded = client.connection.get_inference_statistics(as_json=True)["model_stats"]
        kill(server)
    np.testing.assert_allclose(made["Y"], [[2.0, 3.0]])
    assert {model["name"] for model in loaded} == MODELS
    (line,) = [record.text for record in log if "are ignored" in record.text]
    for name in ("lost+found", "backup", "__MACOSX", ".ipynb_checkpoints"):
        assert name in line


def test_link_to_nowhere_in_a_model_is_named(
    installed: None, small: Path, tmp_path: Path, cache: Path
) -> None:
    """Triton looks at all that lies there and takes no model of which it cannot."""
    shutil.copytree(small / "roots", tmp_path / "models" / "roots")
    (tmp_path / "models" / "roots" / ".#config.pbtxt").symlink_to("somebody@somewhere.4711")
    server = TritonServer(local_options(tmp_path / "models"), cache=cache)
    with pytest.raises(ServerError, match=r"model roots did not load: .*\.#config\.pbtxt"):
        server.__enter__()


def test_configs_with_line_ends_of_windows(installed: None, small: Path, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "models"
    for name in sorted(MODELS):
        shutil.copytree(small / name, folder / name)
        path = folder / name / "config.pbtxt"
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    server = TritonServer(local_options(folder), cache=cache)
    with server:
        with grpc_client(server.options) as client:
            made = client.infer("roots", {"X": np.array([[4.0, 9.0]], np.float32)})
        kill(server)
    np.testing.assert_allclose(made["Y"], [[2.0, 3.0]])
