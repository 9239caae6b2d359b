"""The plugin library through TensorRT's interfaces, against its headers, with no TensorRT."""

from __future__ import annotations

import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native import CudaMemory, require_gpu
from plugin_harness import (
    CHAR_FIELD,
    CHW2,
    FLOAT,
    FLOAT32_FIELD,
    FLOAT64_FIELD,
    HALF,
    INT32_FIELD,
    INT32_TYPE,
    INT64_FIELD,
    Harness,
    headers,
    run_plugin,
    tensor,
)

from autovoice_plugins.function_builder import DOMAIN, PLUGIN_VERSION
from autovoice_plugins.onnx_export import OPS

# Inputs and outputs of two sequences of five frames, at the defaults.
B, F, T = 2, 5, 1200
SHAPES: dict[str, tuple[list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "PitchYin": ([(B, T), (B, 1440)], [(B, F), (B, F), (B, 1440)]),
    "HarmonicSource": ([(B, F), (B, 2)], [(B, T), (B, 2)]),
    "SpectralSynth": ([(B, T), (B, T), (B, F, 80), (B, F, 80), (B, 880)], [(B, T), (B, 880)]),
}


@lru_cache(maxsize=4)
def harness_for(include: Path) -> Harness:
    return Harness(include)


@pytest.fixture(params=headers())
def harness(request: pytest.FixtureRequest) -> Harness:
    return harness_for(request.param)


def test_exports_its_doors_and_nothing_else(harness: Harness) -> None:
    listing = subprocess.run(
        ["nm", "--dynamic", "--defined-only", str(harness.path)], capture_output=True, text=True, check=True
    )
    assert {line.split()[-1] for line in listing.stdout.splitlines()} == {"getCreators", "setLoggerFinder"}


def test_creators_are_the_ops_of_the_onnx_files(harness: Harness) -> None:
    kinds = {int: INT32_FIELD, float: FLOAT32_FIELD, str: CHAR_FIELD}
    expected = []
    for name in ("PitchYin", "HarmonicSource", "SpectralSynth"):
        expected.append(f"PLUGIN CREATOR_V3ONE 1|{name}|{PLUGIN_VERSION}|{DOMAIN}")
        for key, value in OPS[name].attributes.items():
            text = f"{np.float32(value):.9g}" if isinstance(value, float) else value
            expected.append(f"{key} {kinds[type(value)]} {text}")
    assert harness.creators().splitlines() == expected


@pytest.mark.parametrize("name", OPS)
def test_serialises_and_is_made_again_exactly(harness: Harness, name: str) -> None:
    other: dict[str, dict[str, Any]] = {
        "PitchYin": {"f0_min": 61.234567, "threshold": 0.1, "voicing_threshold": 1 / 3, "hop": 256},
        "HarmonicSource": {"waveform": "sine", "hop": 400, "sample_rate": 40000},
        "SpectralSynth": {"hop": 160, "fft_size": 640, "bands": 40, "sample_rate": 16000},
    }
    default, changed = harness.with_attributes(name), harness.with_attributes(name, **other[name])
    assert default.fields != changed.fields
    assert default.timing_id != changed.timing_id
    for plugin in (default, changed):
        for copy in (
            plugin.recreated(),
            plugin.cloned(),
            plugin.cloned("attach"),
            plugin.recreated().recreated(),
        ):
            assert copy.fields == plugin.fields
            assert copy.timing_id == plugin.timing_id
    for key, value in other[name].items():
        line = next(line for line in changed.fields.splitlines() if line.startswith(f"{key} "))
        text = line.rsplit(" ", 1)[1]
        assert (np.float32(text) == np.float32(value)) if isinstance(value, float) else text == str(value)
        assert f" {key}=" in changed.timing_id


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_output_shapes_follow_the_inputs(harness: Harness, name: str, known: bool) -> None:
    inputs, outputs = SHAPES[name]
    assert harness.with_attributes(name).shapes(*inputs, known=known) == outputs


def test_sine_takes_noise(harness: Harness) -> None:
    sine = harness.with_attributes("HarmonicSource", waveform="sine")
    inputs, outputs = SHAPES["HarmonicSource"]
    assert sine.shapes(*inputs, (B, T)) == outputs
    assert sine.shapes(*inputs) is None
    assert "HarmonicSource: the node has 2 inputs, but takes F0, STATE_IN, NOISE." in harness.log()


@pytest.mark.parametrize("name", OPS)
def test_half_precision_is_for_samples_and_never_for_pitch_phase_and_state(
    harness: Harness, name: str
) -> None:
    attributes = {"waveform": "sine"} if name == "HarmonicSource" else {}
    plugin = harness.with_attributes(name, **attributes)
    inputs, outputs = SHAPES[name]
    if attributes:
        inputs = [*inputs, (B, T)]
    shapes = [*inputs, *outputs]
    keys = [*list(OPS[name].inputs)[: len(inputs)], *OPS[name].outputs]
    single = [tensor(shape) for shape in shapes]
    for position, key in enumerate(keys):
        exact = key in ("F0", "PERIODICITY", "STATE_IN", "STATE_OUT")
        assert plugin.supports(position, single, len(inputs))
        for kind, layout, allowed in (
            (HALF, 0, not exact),
            (INT32_TYPE, 0, False),
            (FLOAT, CHW2, False),
            (HALF, CHW2, False),
        ):
            changed = list(single)
            changed[position] = tensor(shapes[position], kind, layout)
            assert plugin.supports(position, changed, len(inputs)) == allowed, (key, kind, layout)
    types = plugin.types(*(HALF if key not in ("F0", "STATE_IN") else FLOAT for key in keys[: len(inputs)]))
    sampled = [HALF if key in ("AUDIO", "EXCITATION") else FLOAT for key in OPS[name].outputs]
    assert types == sampled


@pytest.mark.parametrize("name", OPS)
def test_is_configured_and_asks_for_workspace(harness: Harness, name: str) -> None:
    plugin = harness.with_attributes(name)
    inputs, outputs = SHAPES[name]
    tensors = [tensor(shape) for shape in (*inputs, *outputs)]
    assert plugin.call("configure", tensors, len(inputs)) == 0
    assert plugin.call("shape_change", tensors, len(inputs)) == 0
    size = plugin.call("workspace", tensors, len(inputs))
    assert size >= B * F * 4
    assert size % 16 == 0
    assert not harness.log()


WRONG_SHAPES = [
    ("PitchYin", 0, (2, 1201), r"AUDIO has shape \[2, 1201\], but \[B, 240 F\].* multiple of hop=240"),
    ("PitchYin", 1, (2, 1441), r"STATE_IN has shape \[2, 1441\], but \[B, 1440\] is needed"),
    ("PitchYin", 1, (3, 1440), r"STATE_IN has shape \[3, 1440\].* other inputs have B=2"),
    ("PitchYin", 0, (1200,), r"AUDIO has shape \[1200\].* reshape it"),
    ("HarmonicSource", 0, (2, 0), r"F0 has shape \[2, 0\].* empty"),
    ("SpectralSynth", 2, (2, 6, 80), r"HARMONIC_FILTER has shape \[2, 6, 80\].* other inputs have F=5"),
    ("SpectralSynth", 3, (2, 5, 79), r"NOISE_FILTER has shape \[2, 5, 79\], but \[B, F, 80\]"),
]


@pytest.mark.parametrize(("name", "position", "shape", "message"), WRONG_SHAPES)
def test_refuses_shapes_in_one_line(
    harness: Harness, name: str, position: int, shape: tuple[int, ...], message: str
) -> None:
    plugin = harness.with_attributes(name)
    inputs, outputs = SHAPES[name]
    inputs = [shape if i == position else given for i, given in enumerate(inputs)]
    tensors = [tensor(given) for given in (*inputs, *outputs)]
    for refused in (
        plugin.shapes(*inputs, known=True) is None,
        plugin.call("configure", tensors, len(inputs)) != 0,
        plugin.call("shape_change", tensors, len(inputs)) != 0,
    ):
        assert refused
    lines = harness.log().splitlines()
    assert len(lines) == 3
    for line in lines:
        # Severity 1 is an error.
        assert line.startswith(f"1 {name}: ")
        assert re.search(message, line), line


WRONG_FIELDS = [
    ("PitchYin", [("hop", FLOAT32_FIELD, 240.0)], "hop must be one INT32, .* type FLOAT32 and length 1"),
    ("PitchYin", [("hop", INT32_FIELD, [240, 240])], "hop must be one INT32, .* length 2"),
    ("PitchYin", [("f0_min", FLOAT64_FIELD, 50.0)], "f0_min must be one FLOAT32"),
    ("PitchYin", [("f0_min", FLOAT32_FIELD, 40.0)], "two hops"),
    ("PitchYin", [("hop", INT64_FIELD, 1 << 40)], "hop=1099511627776 does not fit 32 bits"),
    ("PitchYin", [("hops", INT32_FIELD, 240)], 'field "hops" is unknown; known are sample_rate, hop, f0_min'),
    ("PitchYin", [("hop", INT32_FIELD, 240), ("hop", INT32_FIELD, 240)], "hop is given twice"),
    ("HarmonicSource", [("waveform", CHAR_FIELD, "square")], 'waveform is "square"; use one of pulse, sine'),
    ("HarmonicSource", [("waveform", INT32_FIELD, 1)], "waveform must be CHAR"),
    ("SpectralSynth", [("fft_size", INT32_FIELD, 1000)], "fft_size=1000 must be even"),
    ("SpectralSynth", [("bands", INT32_FIELD, 1)], "bands=1 cannot span"),
]


@pytest.mark.parametrize(("name", "fields", "message"), WRONG_FIELDS)
def test_refuses_fields_in_one_line(harness: Harness, name: str, fields: Any, message: str) -> None:
    assert harness.create(name, *fields) is None
    (line,) = harness.log().splitlines()
    assert line.startswith(f"1 {name}: ")
    assert re.search(message, line), line


def test_takes_what_parsers_write(harness: Harness) -> None:
    """64-bit integers, strings with their terminator, the names of the plugin, and attributes left out."""
    plugin = harness.create(
        "HarmonicSource",
        ("hop", INT64_FIELD, 400),
        ("waveform", CHAR_FIELD, "sine\0"),
        ("plugin_namespace", CHAR_FIELD, "autovoice"),
        ("plugin_version", CHAR_FIELD, "1"),
    )
    assert plugin is not None, harness.log()
    expected = harness.with_attributes("HarmonicSource", hop=400, waveform="sine")
    assert plugin.fields == expected.fields
    assert plugin.timing_id == expected.timing_id


def test_enqueue_without_a_device_is_one_readable_error(harness: Harness) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    plugin = harness.with_attributes("HarmonicSource")
    inputs, outputs = SHAPES["HarmonicSource"]
    tensors = [tensor(shape) for shape in (*inputs, *outputs)]
    assert plugin.enqueue(tensors, len(inputs), [16] * len(tensors), 16, 0) != 0
    (line,) = harness.log().splitlines()
    assert line.startswith("1 HarmonicSource: the kernel could not be launched: ")


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPS)
def test_is_captured_in_a_graph_and_replayed(harness: Harness, name: str) -> None:
    """Enqueue allocates nothing and waits for nothing; a replay computes from what the inputs then hold."""
    require_gpu()
    import torch

    plugin = harness.with_attributes(name)
    shapes, out_shapes = SHAPES[name]
    rng = np.random.default_rng(0)
    first, second = ([rng.uniform(0.1, 1, s).astype(np.float32) for s in shapes] for _ in range(2))
    expected = run_plugin(harness, CudaMemory(), name, *second)
    tensors = [tensor(shape) for shape in (*shapes, *out_shapes)]
    given = [torch.from_numpy(array).cuda() for array in first]
    results = [torch.full(shape, float("nan")).cuda() for shape in out_shapes]
    workspace = torch.empty(plugin.call("workspace", tensors, len(shapes)), dtype=torch.uint8).cuda()
    addresses = [t.data_ptr() for t in (*given, *results)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream = torch.cuda.current_stream().cuda_stream
        assert plugin.enqueue(tensors, len(shapes), addresses, workspace.data_ptr(), stream) == 0
    for tensor_here, array in zip(given, second, strict=True):
        tensor_here.copy_(torch.from_numpy(array))
    graph.replay()
    torch.cuda.synchronize()
    for got, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(got.cpu().numpy(), wanted)
