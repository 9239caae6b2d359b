"""Imported voices of every kind through TensorRT for RTX: the answer to "will it run on that card"."""

from __future__ import annotations

import re
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
    repository = ModelRepository(files.repository)
    models = {name for name in repository.names() if repository.spec(name).model_file is not None}
    if capabilities == "7.5":  # which takes twice as long: once what differs in the rate alone
        rates = re.compile(r"rvc_.*_(32|48)000|tracked_synthesizer")
        models = {name for name in models if not rates.fullmatch(name)}
    chosen = [option for name in sorted(models) for option in ("--model", name)]
    done = rtx(files.repository, tmp_path, *chosen, "--compute-capability", capabilities)
    assert done.returncode == 0, done.stderr
    assert {manifest["model"] for manifest in manifests(tmp_path)} == models
    for manifest in manifests(tmp_path):
        spec = ModelRepository(files.repository).spec(manifest["model"])
        assert set(manifest["inputs"]) == {tensor.name for tensor in spec.inputs}
        assert set(manifest["outputs"]) == {tensor.name for tensor in spec.outputs}
        kinds = {kind for kind, _ in (*manifest["inputs"].values(), *manifest["outputs"].values())}
        assert kinds <= {"FLOAT", "INT64"}
