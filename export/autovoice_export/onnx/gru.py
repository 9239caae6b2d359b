"""A bidirectional GRU as one ONNX node: the exporter would unroll it at the length it happens to trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class BidirectionalGRU(nn.GRU):
    """One layer of GRU in both directions, batch first; parameters are those of `torch.nn.GRU`."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Runs over [B, F, inputs] and returns [B, F, 2 hidden], forwards first."""
        weight, recurrence, bias, bias_recurrence = (
            torch.stack([_other_order(getattr(self, f"{kind}_l0{way}")) for way in ("", "_reverse")])
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        biases = torch.cat([bias, bias_recurrence], dim=1)
        states: Tensor = bidirectional_gru(x.transpose(0, 1), weight, recurrence, biases, self.hidden_size)
        # [F, 2, B, hidden]
        return states.permute(2, 0, 1, 3).flatten(2)


def _other_order(gates: Tensor) -> Tensor:
    """Swaps the first two of three gates: PyTorch has reset before update, ONNX update before reset."""
    first, second, new = gates.chunk(3)
    return torch.cat([second, first, new])


@torch.library.custom_op("autovoice_export::bidirectional_gru", mutates_args=())
def bidirectional_gru(x: Tensor, weight: Tensor, recurrence: Tensor, bias: Tensor, hidden: int) -> Tensor:
    """ONNX's operator GRU with direction "bidirectional" and linear_before_reset 1.

    Args:
        x: [F, B, inputs].
        weight: [2, 3 hidden, inputs], gates in the order update, reset, new.
        recurrence: [2, 3 hidden, hidden].
        bias: [2, 6 hidden], of the inputs and then of the recurrence.
        hidden: size of the state.

    Returns:
        [F, 2, B, hidden].
    """
    parts = [(weight[way], recurrence[way], *bias[way].chunk(2)) for way in (0, 1)]
    flat = [_other_order(part) for way in parts for part in way]
    start = x.new_zeros(2, x.shape[1], hidden)
    result, _ = torch.gru(x, start, flat, True, 1, 0.0, False, True, False)
    return result.reshape(x.shape[0], x.shape[1], 2, hidden).transpose(1, 2).contiguous()


@bidirectional_gru.register_fake
def _(x: Tensor, weight: Tensor, recurrence: Tensor, bias: Tensor, hidden: int) -> Tensor:
    return x.new_empty(x.shape[0], 2, x.shape[1], hidden)


def gru_translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The op's entry of ``torch.onnx.export``'s custom_translation_table."""
    from onnxscript import opset20 as op

    def translate(x: Any, weight: Any, recurrence: Any, bias: Any, hidden: int) -> Any:
        states, _ = op.GRU(
            x,
            weight,
            recurrence,
            bias,
            direction="bidirectional",
            hidden_size=hidden,
            linear_before_reset=1,
        )
        return states

    return {torch.ops.autovoice_export.bidirectional_gru.default: translate}
