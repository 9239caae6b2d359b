"""What clients rely on in a repository: the models that they ask, with their tensors and sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from autovoice.repository.model_config import ModelSpec, TensorSpec
from autovoice.repository.reader import ModelRepository

PARAMETERS = (
    "family",
    "sample_rate",
    "output_sample_rate",
    "frame_samples",
    "lookahead_samples",
    "context_left_samples",
    "context_right_samples",
    "embedding_size",
    "embedding_frames",
    "identity_size",
    "has_f0",
)
"""Parameters by which clients cut, resample and place audio."""


def read_contract(repository: ModelRepository, inner: Iterable[str]) -> dict[str, Any]:
    """The contract of a repository, as JSON can hold it.

    Args:
        repository: the models.
        inner: models that are steps of ensembles, which are no part of it.

    Returns:
        For each model: `max_batch_size`, `inputs` and `outputs` (by name: `type`, such as `float32`, and
        `dims` without the batch axis, -1 for any size) and the `parameters` that it has of `PARAMETERS`.

    Raises:
        RepositoryError: a config cannot be read.
    """
    hidden = set(inner)
    return {name: _model(repository.spec(name)) for name in repository.names() if name not in hidden}


def _model(spec: ModelSpec) -> dict[str, Any]:
    return {
        "max_batch_size": spec.max_batch_size,
        "inputs": _tensors(spec.inputs),
        "outputs": _tensors(spec.outputs),
        "parameters": {name: spec.parameters[name] for name in PARAMETERS if name in spec.parameters},
    }


def _tensors(tensors: Iterable[TensorSpec]) -> dict[str, Any]:
    return {tensor.name: {"type": str(tensor.dtype), "dims": list(tensor.dims)} for tensor in tensors}
