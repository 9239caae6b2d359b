"""Which models of the RVC family TensorRT runs, and for which lengths."""

from __future__ import annotations

from autovoice_export.config_types import StageModelConfig
from autovoice_export.rvc import wiring
from autovoice_export.rvc.geometry import SOURCE_RATE
from autovoice_export.rvc.retrieval import Retrieval
from autovoice_export.stage import Stage
from autovoice_export.tensorrt.buckets import AXIS_RATES, Bucket, profiles
from autovoice_export.tensorrt.plan_config import PlanConfig

LONGEST_SECONDS = wiring.MAX_INPUT_BYTES / 4 / SOURCE_RATE
"""What `wiring.MAX_INPUT_BYTES` of float32 audio last."""

_LIVE_SECONDS = (wiring.CONTEXT_LEFT_SAMPLES + wiring.CONTEXT_RIGHT_SAMPLES) / SOURCE_RATE + 0.24

WINDOWS = (
    Bucket("window", (0, _LIVE_SECONDS, 5), batch=4),
    Bucket("medium", (5, 10, 20), batch=2),
    Bucket("long", (20, 40, LONGEST_SECONDS), batch=1),
)
"""Windows of live streams, which are a core of 0.24 s and its context, and recordings sent whole."""

LARGEST_DISTANCES = 1 << 29
"""Distances that a search may hold at once, 2 GiB of them: a plan reserves as much as its largest batch
needs, for each of the few tables that the search works with, and on every GPU."""


def plan_config(stage: Stage, model: StageModelConfig) -> PlanConfig | None:
    """Config of a model for TensorRT; None for one that stays with ONNX Runtime.

    That are the models without weights, which are small, and the search of an index so large that its plan
    would reserve many gigabytes.

    Args:
        stage: the model's stage.
        model: its config for ONNX Runtime.
    """
    if model.instances.kind == "cpu":
        return None
    if isinstance(stage.module, Retrieval):
        longest = model.max_batch_size * AXIS_RATES["G"].size(LONGEST_SECONDS)
        if stage.module.vectors.shape[0] * longest > LARGEST_DISTANCES:
            return None
    return PlanConfig(model, profiles(stage.inputs, AXIS_RATES, WINDOWS, model.max_batch_size))
