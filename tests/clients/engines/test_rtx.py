"""TensorRT for RTX as a device, as far as it goes without a card: what is missing, what a card would get."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from autovoice import PipelineConfig, VoiceConversionPipeline
from autovoice.engines import onnx_session, rtx
from autovoice.engines.local import LocalEngine
from autovoice.errors import ConfigurationError, DeviceError
from autovoice.repository.reader import ModelRepository

SHIPPED = ModelRepository(PipelineConfig().repository_path())


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


needs_package = pytest.mark.skipif(
    importlib.util.find_spec(rtx.PACKAGE) is None, reason="the extra autovoice[rtx] is not installed"
)
needs_no_driver = pytest.mark.skipif(has_driver(), reason="there is an NVIDIA driver here")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "PACKAGE", "no_such_package")
    with pytest.raises(DeviceError, match=r"pip install 'autovoice\[rtx\]'"):
        rtx.cards()


@needs_package
@needs_no_driver
def test_missing_driver_is_named_and_nothing_is_loaded() -> None:
    script = (
        "import sys\nfrom autovoice.engines import rtx\nfrom autovoice.errors import DeviceError\n"
        "try:\n    rtx.cards()\nexcept DeviceError as error:\n    print(error)\n"
        f"print({rtx.PACKAGE!r} in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    message, loaded = done.stdout.splitlines()
    assert "no NVIDIA driver for device 'rtx' (libcuda.so.1 cannot be opened); install driver 580" in message
    assert loaded == "False"


@needs_package
@needs_no_driver
def test_a_driver_that_the_provider_cannot_use_is_one_line(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make a library named libcuda.so.1 with")
    (tmp_path / "empty.c").write_text("int nothing;\n")
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-o", library, tmp_path / "empty.c"], check=True)
    script = (
        "from autovoice.engines import rtx\nfrom autovoice.errors import DeviceError\n"
        "try:\n    rtx.cards()\nexcept DeviceError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    (message,) = done.stdout.splitlines()
    assert message.startswith(("TensorRT for RTX cannot be loaded (", "TensorRT for RTX sees no card"))


@needs_no_driver
def test_the_cpu_takes_over(caplog: pytest.LogCaptureFixture) -> None:
    with VoiceConversionPipeline(PipelineConfig(device="rtx", threads=1)) as pipeline:
        assert pipeline.device == "cpu"
        assert pipeline.stats.fallbacks == 1
    assert "running on the CPU instead: " in caplog.text
    with pytest.raises(DeviceError):
        VoiceConversionPipeline(PipelineConfig(device="rtx:1", fallback="raise"))
    assert LocalEngine(SHIPPED, device="auto").device in ("cpu", "cuda")
    assert "rtx" not in onnx_session.available_devices()


@pytest.mark.parametrize("name", ["pitch_extractor", "synthesizer", "converter_stream"])
def test_expanded_file_computes_the_same(tmp_path: Path, name: str) -> None:
    file = SHIPPED.spec(name).model_file
    assert file is not None
    rtx.expand(file, tmp_path / "expanded.onnx")
    sessions = [onnx_session.make_session(path) for path in (file, tmp_path / "expanded.onnx")]
    rng = np.random.default_rng(1)
    feeds = {}
    for item in sessions[0].get_inputs():
        shape = [
            size if isinstance(size, int) else 1 if size == "B" else int(size.rpartition("*")[0] or 1) * 20
            for size in item.shape
        ]
        scale = 0.0 if "STATE" in item.name else 0.1
        feeds[item.name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    plain, expanded = (session.run(None, feeds) for session in sessions)
    for one, other in zip(plain, expanded, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)
    model = onnx.load(tmp_path / "expanded.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions


def test_models_get_their_shapes() -> None:
    for name in SHIPPED.names():
        spec = SHIPPED.spec(name)
        if spec.model_file is None:
            continue
        inputs = onnx_session.make_session(spec.model_file).get_inputs()
        ranges = rtx.profile(spec, inputs)
        if name.startswith(("pad_", "trim_", "target_")):
            assert ranges is None
            continue
        assert ranges is not None
        assert set(ranges) == {item.name for item in inputs}
        for item in inputs:
            low, usual, high = ranges[item.name]
            assert low[0] == 1
            assert high[0] == spec.max_batch_size
            for size, *sizes in zip(item.shape[1:], low[1:], usual[1:], high[1:], strict=True):
                fixed = isinstance(size, int)
                assert sizes == [size] * 3 if fixed else sizes[0] <= sizes[1] <= sizes[2]
                assert fixed or sizes[0] < sizes[2]


@needs_package
def test_options_are_those_of_the_provider(tmp_path: Path) -> None:
    ranges = {"A": ((1, 240), (1, 480), (8, 24000)), "B": ((1, 3), (1, 3), (8, 3))}
    options = rtx.provider_options(ranges, tmp_path, stream=True)
    assert options["nv_profile_max_shapes"] == "A:8x24000;B:8x3"
    assert options["enable_cuda_graph"] == "1"
    (folder,) = importlib.util.find_spec(rtx.PACKAGE).submodule_search_locations  # type: ignore[union-attr]
    header = Path(folder, "tensorrt_rtx_provider_options.h").read_text()
    assert {*options, rtx.graph_entry(3)[0]} <= set(re.findall(r'= "(\w+)"', header))
    provider = Path(folder, "__init__.py").read_text()
    assert f'"{rtx.PROVIDER}"' in provider


@needs_package
def test_what_is_compiled_is_kept_by_file_card_and_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one.onnx", tmp_path / "other.onnx"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    folders = {rtx.cache_folder(one, "RTX 4090"), rtx.cache_folder(other, "RTX 4090")}
    folders.add(rtx.cache_folder(one, "RTX 3060"))
    assert rtx.cache_folder(one, "RTX 4090") in folders
    monkeypatch.setattr(onnxruntime, "__version__", "99.0")
    folders.add(rtx.cache_folder(one, "RTX 4090"))
    assert len(folders) == 4


@pytest.mark.parametrize("device", ["rtx:", "rtx:x", "rtx:-1", "RTX"])
def test_what_is_no_card_is_refused(device: str) -> None:
    with pytest.raises(ConfigurationError, match="'rtx:N'"):
        PipelineConfig(device=device)
