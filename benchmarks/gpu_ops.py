"""The custom ops on tensors of one device: by our kernels, by PyTorch, and by the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autovoice_plugins import kernels
from autovoice_plugins.geometry import (
    BANDS,
    F0_MAX,
    F0_MIN,
    FFT_SIZE,
    HARMONIC_SOURCE_STATE_SIZE,
    HOP,
    PITCH_YIN_STATE_SIZE,
    SAMPLE_RATE,
    SPECTRAL_SYNTH_STATE_SIZE,
)
from autovoice_plugins.harmonic_source import harmonic_source, harmonic_source_reference
from autovoice_plugins.pitch_yin import pitch_yin, pitch_yin_reference
from autovoice_plugins.pitch_yin.reference import THRESHOLD, VOICING_THRESHOLD
from autovoice_plugins.spectral_synth import spectral_synth, spectral_synth_reference

F0_TOLERANCE_HZ = 0.1
TOLERANCE = 1e-4
OPS = ("pitch_yin", "harmonic_source", "spectral_synth")

_TORCH: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "pitch_yin": pitch_yin,
    "harmonic_source": harmonic_source,
    "spectral_synth": spectral_synth,
}
_REFERENCE: dict[str, Callable[..., tuple[NDArray[np.float64], ...]]] = {
    "pitch_yin": pitch_yin_reference,
    "harmonic_source": harmonic_source_reference,
    "spectral_synth": spectral_synth_reference,
}
_OPTIONS = {
    "pitch_yin": kernels.PitchYinOptions(SAMPLE_RATE, HOP, F0_MIN, F0_MAX, THRESHOLD, VOICING_THRESHOLD),
    "harmonic_source": kernels.HarmonicSourceOptions(SAMPLE_RATE, HOP, kernels.WAVEFORMS["pulse"]),
    "spectral_synth": kernels.SpectralSynthOptions(SAMPLE_RATE, HOP, FFT_SIZE, BANDS),
}
# Arrays in the order of the torch ops: "s" is of either sample type, "x" always float32.
_INPUTS = {"pitch_yin": "sx", "harmonic_source": "xx", "spectral_synth": "ssssx"}
_OUTPUTS = {"pitch_yin": "xxx", "harmonic_source": "sx", "spectral_synth": "sx"}


@dataclass(frozen=True)
class Case:
    """One op on one batch.

    Attributes:
        op: name, as in `kernels.h`.
        inputs: on the device, in the order of the torch op.
        outputs: room for the results, on the device.
        workspace: as much as the kernel asks for, on the device.
    """

    op: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    workspace: Tensor

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.inputs[0].shape[0]

    @property
    def frames(self) -> int:
        """Frames of each sequence."""
        return self.inputs[0].shape[1] // (1 if self.op == "harmonic_source" else HOP)


def make_case(
    library: kernels.KernelLibrary, op: str, batch: int, frames: int, device: str, seed: int = 0
) -> Case:
    """Voiced and unvoiced input of plausible size, float32, from a state that is not empty."""
    generator = np.random.default_rng(seed)
    arrays = _arrays(op, batch, frames, generator)
    inputs = tuple(torch.from_numpy(array.astype(np.float32)).to(device) for array in arrays)
    outputs = {
        "pitch_yin": ((batch, frames), (batch, frames), (batch, PITCH_YIN_STATE_SIZE)),
        "harmonic_source": ((batch, frames * HOP), (batch, HARMONIC_SOURCE_STATE_SIZE)),
        "spectral_synth": ((batch, frames * HOP), (batch, SPECTRAL_SYNTH_STATE_SIZE)),
    }[op]
    size = library.workspace_size(op, _OPTIONS[op], batch, frames)
    return Case(
        op,
        inputs,
        tuple(torch.full(shape, float("nan"), device=device) for shape in outputs),
        torch.empty(max(16, size), dtype=torch.uint8, device=device),
    )


def launch(library: kernels.KernelLibrary, case: Case, stream: int = 0) -> None:
    """Starts our kernel on a stream.

    Raises:
        ValueError: the kernel refuses; the message says why.
    """
    arguments = [
        *_addresses(case.inputs, _INPUTS[case.op]),
        *([_NO_NOISE] if case.op == "harmonic_source" else []),
        *_addresses(case.outputs, _OUTPUTS[case.op]),
    ]
    library.launch(
        case.op,
        _OPTIONS[case.op],
        case.batch,
        case.frames,
        *arguments,
        workspace=case.workspace.data_ptr(),
        stream=stream,
    )


def eager(case: Case) -> tuple[Tensor, ...]:
    """The same by PyTorch."""
    return _TORCH[case.op](*case.inputs)


def compiled() -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    """The torch ops as torch.compile makes them."""
    return {op: torch.compile(function) for op, function in _TORCH.items()}


def deviations(case: Case, sequences: Sequence[int]) -> dict[str, float]:
    """How far the results are from the reference.

    Args:
        case: after `launch`, and after its stream has come to rest.
        sequences: rows of the batch to compare; the reference is slow.

    Returns:
        Largest deviation of each output; for F0 the share of frames further off than 0.1 Hz, which near-ties
        of the reference may be, and whose periodicity is left out then.
    """
    rows = list(sequences)
    expected = _REFERENCE[case.op](*(tensor[rows].double().cpu().numpy() for tensor in case.inputs))
    found = [tensor[rows].double().cpu().numpy() for tensor in case.outputs]
    errors = [np.abs(have - want) for have, want in zip(found, expected, strict=True)]
    if case.op != "pitch_yin":
        # Pulses reach 12 and more: float32 has the fewer digits behind the point.
        scale = max(1.0, float(np.abs(expected[0]).max()))
        return {"samples": _worst(errors[0] / scale), "state": _worst(errors[1])}
    off = ~(errors[0] <= F0_TOLERANCE_HZ)
    return {
        "f0_off": float(off.mean()),
        "periodicity": _worst(np.where(off, 0.0, errors[1])),
        "state": _worst(errors[2]),
    }


def _worst(error: NDArray[np.float64]) -> float:
    """Largest value; infinite where one is no number, so that an untouched output never passes."""
    return float("inf") if np.isnan(error).any() else float(error.max(initial=0.0))


_NO_NOISE = kernels.Samples(None, kernels.FLOAT32)


def _addresses(tensors: Sequence[Tensor], kinds: str) -> list[Any]:
    return [
        kernels.Samples(tensor.data_ptr(), kernels.FLOAT32) if kind == "s" else tensor.data_ptr()
        for tensor, kind in zip(tensors, kinds, strict=True)
    ]


def _arrays(op: str, batch: int, frames: int, generator: np.random.Generator) -> list[NDArray[np.float64]]:
    track = 180.0 * np.exp(0.01 * generator.standard_normal((batch, frames)).cumsum(axis=1))
    f0 = np.clip(track, 60.0, 900.0) * (generator.random((batch, frames)) < 0.9)
    if op == "harmonic_source":
        return [f0, np.stack([np.full(batch, 150.0), generator.random(batch)], axis=1)]
    noise = generator.standard_normal((batch, frames * HOP))
    if op == "pitch_yin":
        held = np.maximum(np.repeat(track, HOP, axis=1).clip(60.0, 900.0), 1.0)
        phase = 2.0 * np.pi * np.cumsum(held / SAMPLE_RATE, axis=1)
        audio = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 7))
        state = 0.01 * generator.standard_normal((batch, PITCH_YIN_STATE_SIZE))
        return [0.1 * np.asarray(audio) + 0.002 * noise, state]
    filters = [-3.0 + generator.standard_normal((batch, frames, BANDS)) for _ in range(2)]
    state = np.zeros((batch, SPECTRAL_SYNTH_STATE_SIZE))
    state[:, : 2 * BANDS] = 12.0 + generator.standard_normal((batch, 2 * BANDS))
    return [generator.standard_normal((batch, frames * HOP)), noise, *filters, state]
