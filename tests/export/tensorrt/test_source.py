"""What the source promises without TensorRT: no removed name, no early import, no PyTorch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import autovoice_export.tensorrt

FOLDER = Path(autovoice_export.tensorrt.__file__).parent
SOURCES = [*sorted(FOLDER.glob("*.py")), Path(__file__).with_name("test_tensorrt.py")]

# Names of TensorRT 10.13's Python bindings that 11.1 does not have, as the sources at
# github.com/NVIDIA/TensorRT (python/src, branches release/10.13 and release/11.1) define them.
# "FP16" and "INT8" are members of BuilderFlag.
# fmt: off
REMOVED = {
    "CALIBRATE_BEFORE_FUSION", "CUBLAS", "CUBLAS_LT", "CUDNN", "EXPLICIT_BATCH", "FP16", "INT8", "BF16",
    "FP8", "IInt8Calibrator", "IStreamReader", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS",
    "PROFILE_SHARING_0806", "WEIGHTLESS", "algorithm_selector", "all_shape_inputs_specified",
    "clear_quantization_flag", "compute_precision", "create_execution_context_without_device_memory",
    "device_memory_size", "dynamic_range", "get_calibration_profile", "get_device_memory_size_for_profile",
    "get_dynamic_range", "get_plugin_creator", "get_quantization_flag", "int8_calibrator",
    "minimum_weight_streaming_budget", "output_type_is_set", "parse_with_weight_descriptors",
    "platform_has_fast_fp16", "platform_has_fast_int8", "platform_has_tf32", "plugin_creator_list",
    "precision_is_set", "read_calibration_cache", "reset_dynamic_range", "reset_output_type",
    "reset_precision", "set_calibration_profile", "set_dynamic_range", "set_output_type",
    "set_quantization_flag", "strides", "supports_model", "weight_streaming_budget",
    "write_calibration_cache",
}
# fmt: on
# Arguments of Polygraphy that lead there.
# fmt: off
REMOVED_ARGUMENTS = {
    "fp16", "int8", "bf16", "fp8", "calibrator", "algorithm_selector", "precision_constraints",
    "explicit_batch",
}
# fmt: on


def removed_names(source: str) -> set[str]:
    found = set()
    for item in ast.walk(ast.parse(source)):
        if isinstance(item, ast.Attribute) and item.attr in REMOVED:
            found.add(item.attr)
        elif isinstance(item, ast.keyword) and item.arg in REMOVED_ARGUMENTS:
            found.add(str(item.arg))
        elif isinstance(item, ast.Call) and getattr(item.func, "id", "") in ("getattr", "hasattr"):
            found |= {value.value for value in item.args[1:2] if isinstance(value, ast.Constant)} & REMOVED
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_name_that_tensorrt_11_removed(path: Path) -> None:
    assert removed_names(path.read_text(encoding="utf-8")) == set()


def test_removed_names_are_found() -> None:
    source = "b.platform_has_fast_fp16; config.set_flag(trt.BuilderFlag.FP16); CreateConfig(fp16=True)"
    assert removed_names(source) == {"platform_has_fast_fp16", "FP16", "fp16"}
    assert removed_names('getattr(trt, "get_plugin_creator")') == {"get_plugin_creator"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_flags_are_asked_for_by_name(path: Path) -> None:
    numbers = [
        item.lineno
        for item in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(item, ast.Call)
        and getattr(item.func, "attr", "") in ("set_flag", "clear_flag", "create_network")
        and any(isinstance(value, (ast.Constant, ast.BinOp)) for value in (*item.args, *item.keywords))
    ]
    assert numbers == []


def test_nothing_is_imported_before_it_is_needed() -> None:
    """Plans are built in NVIDIA's image, without PyTorch; everything else is done without TensorRT."""
    modules = [
        f"autovoice_export.tensorrt.{path.stem}" for path in FOLDER.glob("*.py") if path.stem != "__init__"
    ]
    script = f"""
import importlib, sys
for name in {modules!r} + ["autovoice_export.build_command"]:
    importlib.import_module(name)
print(sorted({{"torch", "tensorrt", "polygraphy", "onnxscript"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
