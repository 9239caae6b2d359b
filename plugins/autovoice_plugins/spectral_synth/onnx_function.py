"""SpectralSynth as an ONNX model-local function of standard ops.

The transforms are matrix products at half the usual cost: about the middle of a block its even part meets
only cosines and its odd part only sines. The result is symmetric in the same way about its own middle, and
about its quarters once bins of even and of odd number are kept apart, so a quarter of it is computed.
Both shifts of the origin are a linear phase, added to the filters'.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto

from autovoice_plugins.function_builder import FunctionBuilder, scalar, with_plugin_attributes
from autovoice_plugins.geometry import BANDS, FFT_SIZE, FLOOR, HOP, SAMPLE_RATE
from autovoice_plugins.spectral_synth.reference import envelope_matrices, fade_in, state_size

NAME = "SpectralSynth"
INPUTS = {
    "EXCITATION": False,
    "NOISE": False,
    "HARMONIC_FILTER": False,
    "NOISE_FILTER": False,
    "STATE_IN": False,
}
OUTPUTS = ("AUDIO", "STATE_OUT")
ATTRIBUTES = {"sample_rate": SAMPLE_RATE, "hop": HOP, "fft_size": FFT_SIZE, "bands": BANDS}


def spectral_synth_function(sample_rate: int, hop: int, fft_size: int, bands: int) -> FunctionProto:
    """Returns the function for these attributes; see the reference for what they mean.

    Raises:
        ValueError: A size is impossible, hop is odd, or fft_size is no multiple of 4.
    """
    state_size(hop, fft_size, bands)
    if hop % 2 or fft_size % 4:
        raise ValueError(
            f"hop={hop} and fft_size={fft_size} must be multiples of 2 and 4 for ONNX; change them."
        )
    b = FunctionBuilder()
    half, owed = hop // 2, fft_size // hop - 1
    # Even bins first, then odd ones.
    bins = np.concatenate([np.arange(first, fft_size // 2 + 1, 2) for first in (0, 1)])

    # Harmonic part and noise part go through the same steps, joined along the batch.
    signal = b.reshape(b.concat("EXCITATION", "NOISE", axis=0), 0, -1, hop)
    previous = b.concat(b.slice("STATE_IN", 0, bands, 1), b.slice("STATE_IN", bands, 2 * bands, 1), axis=0)
    wanted = b.concat("HARMONIC_FILTER", "NOISE_FILTER", axis=0)
    wanted = b.op("Sub", b.op("Max", wanted, scalar(FLOOR)), scalar(FLOOR))
    above = b.concat(b.reshape(previous, 0, 1, bands), wanted, axis=1)

    matrices = envelope_matrices(sample_rate, fft_size, bands)
    magnitude_matrix, phase_matrix = (matrix[:, bins].astype(np.float32) for matrix in matrices)
    magnitude = b.op("Exp", b.op("Add", b.op("MatMul", above, magnitude_matrix), scalar(FLOOR)))
    # From the middle of the block to the middle of the result: (fft_size - hop) / 2 samples.
    turns = bins * (fft_size - hop) / 2 / fft_size
    shift = (2 * np.pi * (turns - np.round(turns))).astype(np.float32)
    phase = b.op("Add", b.op("MatMul", above, phase_matrix), shift)
    real = b.op("Mul", magnitude, b.op("Cos", phase))
    imaginary = b.op("Mul", magnitude, b.op("Sin", phase))

    rise = fade_in(hop).astype(np.float32)
    rise_left, rise_right = rise[:half], rise[: half - 1 : -1].copy()
    left, right = b.slice(signal, 0, half, 2), b.slice(signal, -1, half - 1, 2, step=-1)
    rising_left, rising_right = b.op("Mul", left, rise_left), b.op("Mul", right, rise_right)
    falling_left, falling_right = b.op("Sub", left, rising_left), b.op("Sub", right, rising_right)
    places = 2 * np.arange(half) - (hop - 1)
    cosines = b.waves("cos", places, bins, 2 * fft_size)
    sines = b.waves("sin", places, bins, 2 * fft_size)
    products = []
    for first, last, parts in (
        (1, None, (rising_left, rising_right)),
        (0, -1, (falling_left, falling_right)),
    ):
        c = b.op("MatMul", b.op("Add", *parts), cosines)
        s = b.op("MatMul", b.op("Sub", *parts), sines)
        re, im = b.slice(real, first, last, 1), b.slice(imaginary, first, last, 1)
        products.append(
            (
                b.op("Add", b.op("Mul", c, re), b.op("Mul", s, im)),
                b.op("Sub", b.op("Mul", s, re), b.op("Mul", c, im)),
            )
        )
    # (c - i s)(re + i im); the second product is minus the imaginary part, as the inverse needs it.
    spectrum = []
    for rising, falling in zip(*products, strict=True):
        both = b.op("Split", b.op("Add", rising, falling), axis=0, num_outputs=2, outputs=2)
        spectrum.append(b.op("Add", both, f"{both}_1"))

    pieces = _inverse(b, spectrum, bins, fft_size)
    summed = ""
    for part in range(owed + 1):
        here = b.slice(pieces, part * hop, (part + 1) * hop, 2)
        here = b.op("Pad", here, np.array([0, part, 0, 0, owed - part, 0], dtype=np.int64))
        summed = b.op("Add", summed, here) if summed else here
    tail = b.reshape(b.slice("STATE_IN", 2 * bands, None, 1), 0, owed, hop)
    summed = b.concat(b.op("Add", b.slice(summed, 0, owed, 1), tail), b.slice(summed, owed, None, 1), axis=1)
    audio = b.reshape(b.slice(summed, 0, -owed, 1), 0, -1)
    newest = b.op("Split", b.reshape(b.slice(above, -1, None, 1), 0, -1), axis=0, num_outputs=2, outputs=2)
    state = b.concat(newest, f"{newest}_1", b.reshape(b.slice(summed, -owed, None, 1), 0, -1), axis=1)
    attributes = {"sample_rate": sample_rate, "hop": hop, "fft_size": fft_size, "bands": bands}
    return b.function(
        NAME, list(INPUTS), {"AUDIO": audio, "STATE_OUT": state}, with_plugin_attributes(attributes)
    )


def _inverse(b: FunctionBuilder, spectrum: list[str], bins: NDArray[np.int64], fft_size: int) -> str:
    """Returns the signal [B, F, fft_size] whose spectrum about its middle has this real part and minus this
    imaginary part, [B, F, bins] each."""
    weights = np.where((bins == 0) | (bins == fft_size // 2), 1.0, 2.0).astype(np.float32) / fft_size
    quarter, evens = fft_size // 4, fft_size // 4 + 1
    places = 2 * np.arange(quarter) + 1
    parts = []
    for part, wave in zip(spectrum, ("cos", "sin"), strict=True):
        for start, end in ((0, evens), (evens, len(bins))):
            matrix = b.waves(wave, bins[start:end], places, 2 * fft_size)
            matrix = b.op("Mul", matrix, weights[start:end, None])
            parts.append(b.op("MatMul", b.slice(part, start, end, 2), matrix))
    cosine_even, cosine_odd, sine_even, sine_odd = parts
    # From the middle outwards, and from the ends inwards.
    inner_cosine, inner_sine = b.op("Add", cosine_even, cosine_odd), b.op("Add", sine_even, sine_odd)
    outer_cosine, outer_sine = b.op("Sub", cosine_even, cosine_odd), b.op("Sub", sine_odd, sine_even)
    quarters = (
        b.op("Sub", outer_cosine, outer_sine),
        b.slice(b.op("Sub", inner_cosine, inner_sine), -1, None, 2, step=-1),
        b.op("Add", inner_cosine, inner_sine),
        b.slice(b.op("Add", outer_cosine, outer_sine), -1, None, 2, step=-1),
    )
    return b.concat(*quarters, axis=2)
