"""Imported voices of every kind through TensorRT for RTX: the answer to "will it run on that card"."""

from __future__ import annotations

from pathlib import Path

import pytest
from imported_voices import Files
from rtx_engines import Builder, manifests

from autovoice.repository.reader import ModelRepository


@pytest.mark.heavy
@pytest.mark.parametrize("capabilities", ["8.6,8.9,12.0", "7.5"])
def test_every_model_of_imported_voices_has_an_engine(
    rtx: Builder, files: Files, tmp_path: Path, capabilities: str
) -> None:
    done = rtx(files.repository, tmp_path, "--compute-capability", capabilities)
    assert done.returncode == 0, done.stderr
    repository = ModelRepository(files.repository)
    models = {name for name in repository.names() if repository.spec(name).model_file is not None}
    assert {manifest["model"] for manifest in manifests(tmp_path)} == models
    for manifest in manifests(tmp_path):
        spec = ModelRepository(files.repository).spec(manifest["model"])
        assert set(manifest["inputs"]) == {tensor.name for tensor in spec.inputs}
        assert set(manifest["outputs"]) == {tensor.name for tensor in spec.outputs}
        kinds = {kind for kind, _ in (*manifest["inputs"].values(), *manifest["outputs"].values())}
        assert kinds <= {"FLOAT", "INT64"}
