"""The part of Kokoro that takes most of its time, by oneDNN's 8-bit convolutions through torch.

ONNX Runtime computes the convolutions of the waveform generator (Kaneko et al. 2022, iSTFTNet, with the
adaptive instance norms and snake activations of Li et al. 2023, StyleTTS 2) about as fast in 8 bits as in
floats; these are several times faster on a processor with VNNI. Weights and activations are rounded to 8 bits
as there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

_ROOT = "/decoder/decoder/generator/"
_WEIGHTS = "decoder.decoder.generator."
_BLOCKS = (*(f"noise_res.{number}" for number in range(2)), *(f"resblocks.{number}" for number in range(6)))
_LAYERS = tuple((half, layer) for layer in range(3) for half in (1, 2))
_STRIDES, _PADDING = (10, 6), (5, 3)
_SLOPE, _EPSILON = 0.1, 1e-5

FEATURES = (
    "/decoder/decoder/decode.3/Div_4_output_0",
    *(f"{_ROOT}noise_convs.{n}/Conv_output_0" for n in (0, 1)),
)
"""Inputs of the generator: the decoder's features, and the harmonic source at the rates of the two stages."""

NORMS = tuple(
    f"{_ROOT}{block}/adain{half}.{layer}/{value}_output_0"
    for block in _BLOCKS
    for half, layer in _LAYERS
    for value in ("Slice", "Slice_1")
)
"""Further inputs: scale (less one) and shift of every instance norm, which the style decides."""

OUTPUT = f"{_ROOT}Div_4_output_0"
"""Output of the generator, which the last layer reads."""


class _Convolution:
    """A convolution over time with inputs and weights in 8 bits, the weights with a scale for each output."""

    def __init__(self, node: onnx.NodeProto, arrays: Mapping[str, NDArray[np.generic]], bias: str) -> None:
        settings = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        self._shape = ([1, 1], [0, settings["pads"][0]], [1, settings["dilations"][0]], 1)
        _, name, _, zero = node.input
        scale = float(arrays[name.removesuffix("quantized") + "scale"])
        weight = torch.from_numpy(arrays[name].astype(np.float32) - arrays[zero].astype(np.float32))
        peak = weight.abs().amax((1, 2))
        packed = torch.round(weight * 127.0 / peak[:, None, None]).to(torch.int8)[:, :, None]
        self._scale, self._bias = peak * (scale / 127.0), torch.from_numpy(np.array(arrays[bias]))
        self._zeros = torch.zeros(len(peak), dtype=torch.int32)
        # Scale and zero of the inputs come with each call; what counts here is that there is a zero.
        self._packed = torch.ops.onednn.qconv_prepack(packed, self._scale, 1.0, 1, *self._shape, None)

    def __call__(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """From x [T, I] with values from ``low`` to ``high`` to [T, O]."""
        bottom = min(float(low), 0.0)
        step = max(max(float(high), 0.0) - bottom, 1e-9) / 255.0
        zero = round(-bottom / step)
        result: Tensor = torch.ops.onednn.qconv2d_pointwise(
            _quantise(x, torch.tensor(1.0 / step), torch.tensor(float(zero))).T[None, :, None],
            step,
            zero,
            self._packed,
            self._scale,
            self._zeros,
            self._bias,
            *self._shape,
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        return result[0, :, 0].T


# Compiled, so that each reads and writes its arrays once.


@torch.compile(dynamic=True)
def _quantise(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (x * scale + zero).round().clamp(0.0, 255.0).to(torch.uint8)


@torch.compile(dynamic=True)
def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(0)
    return mean, (x - mean).square().mean(0)


@torch.compile(dynamic=True)
def _snake(x: Tensor, gain: Tensor, shift: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x * gain + shift
    x = x + torch.sin(x * alpha) ** 2 / alpha
    return x, x.amin(), x.amax()


class Generator:
    """The residual blocks and the upsampling between them.

    Args:
        model: the whole network.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        nodes = {node.name: node for node in model.graph.node}
        arrays = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(np.array(arrays[name]))

        self._up = [
            (
                tensor(nodes[f"{_ROOT}ups.{number}/ConvTranspose"].input[1]),
                tensor(f"{_WEIGHTS}ups.{number}.bias"),
            )
            for number in range(2)
        ]
        self._blocks = {
            block: [
                (
                    tensor(f"{_WEIGHTS}{block}.alpha{half}.{layer}").flatten(),
                    _Convolution(
                        nodes[f"{_ROOT}{block}/convs{half}.{layer}/Conv_quant"],
                        arrays,
                        f"{_WEIGHTS}{block}.convs{half}.{layer}.bias",
                    ),
                )
                for half, layer in _LAYERS
            ]
            for block in _BLOCKS
        }

    @torch.inference_mode()
    def __call__(self, values: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """From the arrays that FEATURES and NORMS name to the one that OUTPUT names, [1, 128, T]."""
        x = torch.from_numpy(values[FEATURES[0]])
        for stage, (weight, bias) in enumerate(self._up):
            x = functional.leaky_relu(x, _SLOPE)
            x = functional.conv_transpose1d(x, weight, bias, _STRIDES[stage], _PADDING[stage])
            if stage == 1:
                x = functional.pad(x, (1, 0), mode="reflect")
            source = torch.from_numpy(values[FEATURES[1 + stage]])
            x = self._block(f"noise_res.{stage}", source[0].T.contiguous(), values).add_(x[0].T)
            blocks = [self._block(f"resblocks.{3 * stage + number}", x, values) for number in range(3)]
            x = (sum(blocks) / 3.0).T[None]
        result: NDArray[np.float32] = x.contiguous().numpy()
        return result

    def _block(self, name: str, x: Tensor, values: Mapping[str, NDArray[np.float32]]) -> Tensor:
        """A residual block, x [T, C] to [T, C]."""
        y = x
        for (half, layer), (alpha, convolution) in zip(_LAYERS, self._blocks[name], strict=True):
            root = f"{_ROOT}{name}/adain{half}.{layer}/"
            gain, shift = (
                torch.from_numpy(values[f"{root}{value}_output_0"]).flatten()
                for value in ("Slice", "Slice_1")
            )
            mean, variance = _moments(y)
            gain = (1.0 + gain) * torch.rsqrt(variance + _EPSILON)
            y = convolution(*_snake(y, gain, shift - gain * mean, alpha))
            if half == 2:
                x = y = x + y
        return x
