"""Float16 variants of stages: half the memory, with pitch, phase, source and normalisation in float32.

Beside `autovoice_export.tensorrt.half`, which makes FP16 of any ONNX file where there is neither PyTorch nor
the modules. That one learns from inputs what FP16 can hold, and its error on a synthesizer is a quarter
larger; the modules know it for every input there may be.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from autovoice_export.rvc.hubert import FirstConvolution
from autovoice_export.rvc.synthesizer import Synthesizer
from autovoice_export.stage import Stage


def half_precision(stage: Stage) -> Stage:
    """A copy of a stage whose networks compute in float16; its inputs and outputs stay float32.

    The modules themselves say what is always float32: coarse pitch, phase and source, which come from no
    weights; the normalisations; the first convolution of the content encoder, which sees the waveform.
    """
    module = copy.deepcopy(stage.module)
    for part in _networks(module):
        part.to(torch.float16)
    for part in module.modules():
        if isinstance(part, FirstConvolution):
            part.to(torch.float32)
    return replace(stage, module=module)


def _networks(module: nn.Module) -> list[nn.Module]:
    synthesizers: list[nn.Module] = [part for part in module.modules() if isinstance(part, Synthesizer)]
    return synthesizers or [module]
