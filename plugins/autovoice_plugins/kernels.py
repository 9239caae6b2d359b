"""The CUDA kernels by ctypes, for tests and benchmarks: `kernels.h` in Python."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

INTERFACE_VERSION = 1
FLOAT32, FLOAT16 = 0, 1
WAVEFORMS = {"pulse": 0, "sine": 1}


class Samples(ctypes.Structure):
    """`autovoice_samples`: an address and the type of what lies there."""

    _fields_ = (("data", c_void_p), ("type", c_int32))


class PitchYinOptions(ctypes.Structure):
    """`autovoice_pitch_yin_options`."""

    _fields_ = (
        ("sample_rate", c_int32),
        ("hop", c_int32),
        ("f0_min", c_float),
        ("f0_max", c_float),
        ("threshold", c_float),
        ("voicing_threshold", c_float),
    )


class HarmonicSourceOptions(ctypes.Structure):
    """`autovoice_harmonic_source_options`; `waveform` by its number in WAVEFORMS."""

    _fields_ = (("sample_rate", c_int32), ("hop", c_int32), ("waveform", c_int32))


class SpectralSynthOptions(ctypes.Structure):
    """`autovoice_spectral_synth_options`."""

    _fields_ = (("sample_rate", c_int32), ("hop", c_int32), ("fft_size", c_int32), ("bands", c_int32))


_OPS: dict[str, tuple[type[ctypes.Structure], tuple[Any, ...]]] = {
    "pitch_yin": (PitchYinOptions, (Samples, c_void_p, c_void_p, c_void_p, c_void_p)),
    "harmonic_source": (HarmonicSourceOptions, (c_void_p, c_void_p, Samples, Samples, c_void_p)),
    "spectral_synth": (
        SpectralSynthOptions,
        (Samples, Samples, Samples, Samples, c_void_p, Samples, c_void_p),
    ),
}


class KernelLibrary:
    """libautovoice_kernels.so for device memory, or libautovoice_kernels_host.so for host memory.

    Args:
        path: The library.

    Raises:
        OSError: The library cannot be loaded, or its interface is of another version.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        version = self._library.autovoice_interface_version()
        if version != INTERFACE_VERSION:
            raise OSError(f"{path} has interface {version}, not {INTERFACE_VERSION}; build it again.")
        self._library.autovoice_last_error.restype = c_char_p
        for name, (options, arrays) in _OPS.items():
            getattr(self._library, f"autovoice_{name}_check").argtypes = [POINTER(options)]
            workspace = getattr(self._library, f"autovoice_{name}_workspace")
            workspace.argtypes, workspace.restype = [POINTER(options), c_int64, c_int64], c_size_t
            launch = getattr(self._library, f"autovoice_{name}")
            launch.argtypes = [POINTER(options), c_int64, c_int64, *arrays, c_void_p, c_void_p]

    def check(self, op: str, options: ctypes.Structure) -> None:
        """Raises ValueError unless the op can be served with these options."""
        self._require(getattr(self._library, f"autovoice_{op}_check")(options))

    def workspace_size(self, op: str, options: ctypes.Structure, batch: int, frames: int) -> int:
        """Returns the bytes of workspace that `launch` needs."""
        return int(getattr(self._library, f"autovoice_{op}_workspace")(options, batch, frames))

    def launch(
        self,
        op: str,
        options: ctypes.Structure,
        batch: int,
        frames: int,
        *arrays: Samples | int,
        workspace: int,
        stream: int = 0,
    ) -> None:
        """Starts an op on a stream.

        Args:
            op: "pitch_yin", "harmonic_source" or "spectral_synth".
            options: The op's options.
            batch: Sequences.
            frames: Frames of each.
            *arrays: Addresses as `kernels.h` lists them: `Samples` or plain numbers.
            workspace: Address of `workspace_size` bytes.
            stream: A cudaStream_t; 0 is the default stream.

        Raises:
            ValueError: The arguments are impossible, or the launch failed.
        """
        self._require(
            getattr(self._library, f"autovoice_{op}")(options, batch, frames, *arrays, workspace, stream)
        )

    def _require(self, status: int) -> None:
        if status:
            raise ValueError(self._library.autovoice_last_error().decode())
