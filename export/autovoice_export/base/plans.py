"""Which models of the base family TensorRT runs, and for which lengths."""

from __future__ import annotations

from autovoice_export.base import wiring
from autovoice_export.config_types import DynamicBatching, Instances, StageModelConfig
from autovoice_export.stage import Stage
from autovoice_export.tensorrt.buckets import AXIS_RATES, REQUESTS, STREAMS, graphs, profiles
from autovoice_export.tensorrt.plan_config import PlanConfig


def plan_configs(family: tuple[Stage, ...], instances: Instances) -> tuple[PlanConfig, ...]:
    """Configs of all models that gain by a GPU; the others stay with ONNX Runtime."""
    stages = {stage.name: stage for stage in family}
    made = []
    for model in wiring.model_configs(family, instances):
        if not isinstance(model, StageModelConfig) or model.instances.kind == "cpu":
            continue
        if model.name == wiring.CONVERTER:
            continue  # its stages run instead, see `wiring.stream_of_stages`
        inputs = stages[model.name.removesuffix(wiring.STREAM_SUFFIX)].inputs
        if isinstance(model.batching, DynamicBatching):
            made.append(PlanConfig(model, profiles(inputs, AXIS_RATES, REQUESTS, model.max_batch_size)))
        else:
            made.append(
                PlanConfig(
                    model,
                    profiles(inputs, AXIS_RATES, STREAMS, model.max_batch_size),
                    graphs(inputs, AXIS_RATES, model.max_batch_size),
                )
            )
    return tuple(made)
