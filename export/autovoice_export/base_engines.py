"""Which models of the base family TensorRT runs, and for which lengths."""

from __future__ import annotations

from autovoice_export import base_family
from autovoice_export.model_config import DynamicBatching, Instances, StageModelConfig
from autovoice_export.stage import Stage
from autovoice_export.stages.timing import LOOKAHEAD
from autovoice_export.tensorrt.buckets import REQUESTS, STREAMS, AxisRate, graphs, profiles
from autovoice_export.tensorrt.engine_config import EngineConfig
from autovoice_plugins.geometry import HOP, SAMPLE_RATE

AXIS_RATES = {
    "T": AxisRate(SAMPLE_RATE),
    "F": AxisRate(SAMPLE_RATE / HOP, extra=-(-LOOKAHEAD // HOP)),
}


def engine_configs(family: tuple[Stage, ...], instances: Instances) -> tuple[EngineConfig, ...]:
    """Configs of all models that are worth a trip to the GPU; the others stay with ONNX Runtime."""
    stages = {stage.name: stage for stage in family}
    made = []
    for model in base_family.model_configs(family, instances):
        if not isinstance(model, StageModelConfig) or model.instances.kind == "cpu":
            continue
        if model.name == base_family.CONVERTER:
            continue  # its stages run instead, see `base_family.stream_of_stages`
        inputs = stages[model.name.removesuffix(base_family.STREAM_SUFFIX)].inputs
        if isinstance(model.batching, DynamicBatching):
            made.append(EngineConfig(model, profiles(inputs, AXIS_RATES, REQUESTS, model.max_batch_size)))
        else:
            made.append(
                EngineConfig(
                    model,
                    profiles(inputs, AXIS_RATES, STREAMS, model.max_batch_size),
                    graphs(inputs, AXIS_RATES, model.max_batch_size),
                )
            )
    return tuple(made)
