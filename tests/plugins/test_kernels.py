"""What only the compiled implementations have: float16, any clock, thread order, their own refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native import HostMemory, host_kernels, options_of, run_kernels
from numpy.typing import NDArray

from autovoice_plugins.harmonic_source import harmonic_source_reference
from autovoice_plugins.kernels import KernelLibrary, Samples
from autovoice_plugins.onnx_export import OPS
from autovoice_plugins.pitch_yin import pitch_yin_reference
from autovoice_plugins.spectral_synth import spectral_synth_reference

REFERENCES = {
    "PitchYin": pitch_yin_reference,
    "HarmonicSource": harmonic_source_reference,
    "SpectralSynth": spectral_synth_reference,
}


def voice(batch: int, frames: int, hop: int, sample_rate: int) -> NDArray[np.float32]:
    """A gliding tone with eight harmonics in a little noise."""
    rng = np.random.default_rng(frames)
    phase = np.cumsum(np.linspace(120, 190, frames * hop)) / sample_rate
    tone = sum(np.cos(2 * np.pi * k * phase + k) / k for k in range(1, 9))
    return (0.2 * tone + 0.01 * rng.standard_normal((batch, frames * hop))).astype(np.float32)


def inputs(name: str, batch: int, frames: int, **attributes: Any) -> list[NDArray[np.float32]]:
    """Realistic inputs of an op, with a state that is not zero."""
    rng = np.random.default_rng(batch + frames)
    options = {**OPS[name].attributes, **attributes}
    hop, sample_rate = options["hop"], options["sample_rate"]
    samples = (batch, frames * hop)
    if name == "PitchYin":
        past = voice(batch, frames + 6, hop, sample_rate)
        return [past[:, 6 * hop :], past[:, : 6 * hop]]
    if name == "HarmonicSource":
        f0 = rng.uniform(70, 400, (batch, frames))
        f0[rng.uniform(size=f0.shape) < 0.3] = 0
        state = np.stack([np.full(batch, 111.0), np.round(rng.uniform(size=batch) * 2**24) / 2**24], axis=1)
        arrays = [f0, state, rng.standard_normal(samples)]
        return [a.astype(np.float32) for a in arrays[: 3 if options["waveform"] == "sine" else 2]]
    bands = options["bands"]
    state = np.concatenate(
        [rng.uniform(0, 16, (batch, 2 * bands)), rng.standard_normal((batch, options["fft_size"] - hop))],
        axis=1,
    )
    filters = rng.uniform(-9, 1, (2, batch, frames, bands))
    arrays = [*rng.standard_normal((2, *samples)), *filters, state]
    return [a.astype(np.float32) for a in arrays]


CLOCKS = [
    ("PitchYin", {"hop": 160, "sample_rate": 16000}),
    ("PitchYin", {"hop": 480, "sample_rate": 48000, "f0_max": 900.0}),
    ("PitchYin", {"hop": 241, "sample_rate": 24000}),
    ("PitchYin", {"hop": 240, "sample_rate": 24000, "f0_min": 60.0, "threshold": 0.1}),
    ("HarmonicSource", {"hop": 237, "sample_rate": 22050}),
    ("HarmonicSource", {"hop": 1, "sample_rate": 16000, "waveform": "sine"}),
    ("HarmonicSource", {"hop": 480, "sample_rate": 48000}),
    ("SpectralSynth", {"hop": 160, "fft_size": 640, "sample_rate": 16000, "bands": 60}),
    ("SpectralSynth", {"hop": 480, "fft_size": 1920, "sample_rate": 48000}),
    ("SpectralSynth", {"hop": 240, "fft_size": 480}),
    ("SpectralSynth", {"hop": 7, "fft_size": 14, "bands": 2, "sample_rate": 8000}),
    ("SpectralSynth", {"hop": 74, "fft_size": 296, "bands": 11}),
]


@pytest.mark.parametrize(("name", "attributes"), CLOCKS)
def test_any_clock_that_the_reference_takes(run_native: Any, name: str, attributes: dict[str, Any]) -> None:
    arrays = inputs(name, 2, 23, **attributes)
    expected = REFERENCES[name](*arrays, **attributes)
    got = run_native(name, *arrays, **attributes)
    # A pulse is so steep that the last digit of its phase shows.
    tolerance = 1e-4 if name == "HarmonicSource" else 2e-5
    for here, there in zip(got, expected, strict=True):
        np.testing.assert_allclose(here, there, rtol=0, atol=tolerance * max(1.0, np.abs(there).max()))


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("PitchYin", {}),
        ("HarmonicSource", {}),
        ("HarmonicSource", {"waveform": "sine"}),
        ("SpectralSynth", {}),
    ],
)
def test_half_precision_is_in_the_samples_alone(
    run_native: Any, name: str, attributes: dict[str, Any]
) -> None:
    """The samples are rounded on the way in and out; pitch, phase and state stay as exact as ever."""
    half, single = np.float16, np.float32
    given = inputs(name, 2, 40, **attributes)
    keys = list(OPS[name].inputs)[: len(given)]
    floats = ("F0", "STATE_IN")
    rounded = [a if k in floats else a.astype(half).astype(single) for k, a in zip(keys, given, strict=True)]
    expected = run_native(name, *rounded, **attributes)
    got = run_native(name, *given, dtype=half, **attributes)
    assert any(array.dtype == half for array in got) or name in ("PitchYin", "HarmonicSource")
    for here, there in zip(got, expected, strict=True):
        np.testing.assert_array_equal(here, there.astype(here.dtype))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_threads_may_run_in_any_order(monkeypatch: Any, name: str, order: str) -> None:
    """To the bit: a barrier that is missing would show."""
    arrays = inputs(name, 2, 40)
    expected = run_kernels(host_kernels(), HostMemory(), name, *arrays)
    monkeypatch.setenv("AUTOVOICE_THREAD_ORDER", order)
    got = run_kernels(host_kernels(), HostMemory(), name, *arrays)
    for here, there in zip(got, expected, strict=True):
        assert np.isfinite(there).all()
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("name", OPS)
def test_a_batch_is_its_rows(run_native: Any, name: str) -> None:
    arrays = inputs(name, 3, 37)
    together = run_native(name, *arrays)
    for row in range(3):
        alone = run_native(name, *(a[row : row + 1] for a in arrays))
        for all_rows, one in zip(together, alone, strict=True):
            np.testing.assert_allclose(
                all_rows[row : row + 1], one, rtol=0, atol=1e-5 * max(1, np.abs(one).max())
            )


def test_half_conversions_are_those_of_numpy(tmp_path: Path) -> None:
    """Every float16, and float32 values around every boundary, through an op that only scales them."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = np.where(np.isnan(every), np.float16(0), every)
    # An unvoiced sine is its noise times a constant.
    f0, state = np.zeros((1, len(every) // 256), np.float32), np.zeros((1, 2), np.float32)
    options = {"waveform": "sine", "hop": 256}
    (wide, _), (narrow, _) = (
        run_kernels(
            host_kernels(), HostMemory(), "HarmonicSource", f0, state, every[None], dtype=t, **options
        )
        for t in (np.float32, np.float16)
    )
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(narrow, wide.astype(np.float16))
    assert np.isfinite(narrow).sum() > 60000


REFUSALS = [
    ("PitchYin", {"f0_min": 40.0}, "two hops"),
    ("PitchYin", {"f0_min": 300.0, "f0_max": 200.0}, "not a range"),
    ("PitchYin", {"f0_max": float("nan")}, "not a range"),
    ("PitchYin", {"hop": 0}, "hop=0"),
    ("PitchYin", {"hop": 20, "f0_min": 700.0}, "shorter than the prefilter"),
    ("PitchYin", {"threshold": float("inf")}, "must be finite"),
    ("HarmonicSource", {"sample_rate": 0}, "sample_rate=0"),
    ("HarmonicSource", {"hop": -1}, "hop=-1"),
    ("SpectralSynth", {"fft_size": 1000}, "fft_size=1000 must be even .* use 960"),
    ("SpectralSynth", {"fft_size": 240}, "two or more times"),
    ("SpectralSynth", {"bands": 1}, "bands=1 cannot span"),
    ("SpectralSynth", {"sample_rate": -5}, "sample_rate=-5"),
]


@pytest.mark.parametrize(("name", "attributes", "message"), REFUSALS)
def test_refuses_options(name: str, attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        host_kernels().check(OPS[name].torch_name, options_of(name, attributes))


@pytest.mark.parametrize("name", OPS)
def test_takes_its_defaults(name: str) -> None:
    host_kernels().check(OPS[name].torch_name, options_of(name, {}))


@pytest.mark.parametrize(
    ("batch", "frames", "samples", "message"),
    [
        (0, 5, Samples(1, 0), "batch=0"),
        (65536, 5, Samples(1, 0), "batch=65536"),
        (1, 0, Samples(1, 0), "frames=0"),
        (1, 1 << 40, Samples(1, 0), "frames=1099511627776"),
        (1, 5, Samples(None, 0), "audio is missing"),
        (1, 5, Samples(1, 7), "audio is of type 7"),
    ],
)
def test_refuses_launches(batch: int, frames: int, samples: Samples, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        host_kernels().launch(
            "pitch_yin", options_of("PitchYin", {}), batch, frames, samples, 1, 1, 1, 1, workspace=1
        )


def test_refuses_a_library_of_another_interface(monkeypatch: Any) -> None:
    monkeypatch.setattr("autovoice_plugins.kernels.INTERFACE_VERSION", 99)
    with pytest.raises(OSError, match="interface 1, not 99; build it again"):
        KernelLibrary(Path(host_kernels()._library._name))


def test_a_thread_that_leaves_before_a_barrier_ends_the_process(tmp_path: Path) -> None:
    """The check of the CPU's threads must itself be able to fail."""
    from native import SOURCES, compiled

    source = tmp_path / "divergent.cu"
    source.write_text(
        f'#include "{SOURCES}/device/launch.h"\n'
        "struct Work {};\n"
        "static void kernel(Work) { if (threadIdx.x > 0) __syncthreads(); }\n"
        'extern "C" int divergent() { return autovoice::launch(kernel, dim3{}, 2, 0, nullptr, Work{}); }\n'
    )
    library = compiled("divergent", [source], "-U_FORTIFY_SOURCE")
    call = f"import ctypes; ctypes.CDLL({str(library)!r}).divergent()"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "left while others wait at a barrier" in done.stderr
