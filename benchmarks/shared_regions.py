"""Whether system shared memory pays: one ensemble request with its tensors in the message, or beside it."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.utils.shared_memory as system
from speech import FloatArray
from triton_workload import OFFLINE
from tritonclient.utils import InferenceServerException

OUTPUT = "CONVERTED_AUDIO"
RELEASE_SECONDS = 10.0
Call = Callable[[], FloatArray]


@contextmanager
def both_ways(protocol: str, authority: str, inputs: Mapping[str, FloatArray]) -> Iterator[tuple[Call, Call]]:
    """The same request twice, as calls that return the converted audio [B, T]: in the message, and shared.

    The shared way writes its audio into a region and gets the answer in another, as a client would that has
    new audio for each request; the regions are made and registered once, before.

    Args:
        protocol: `"grpc"` or `"http"`.
        authority: `host:port`, of a server on this machine.
        inputs: with the batch axis.
    """
    client = importlib.import_module(f"tritonclient.{protocol}")
    audio = inputs["SOURCE_AUDIO"]
    connection = client.InferenceServerClient(authority)
    key = f"autovoice-bench-{os.getpid()}"
    regions = {
        name: system.create_shared_memory_region(name, f"/{key}-{name}", audio.nbytes)
        for name in ("in", "out")
    }
    try:
        for name in regions:
            connection.register_system_shared_memory(name, f"/{key}-{name}", audio.nbytes)
        yield _plain(client, connection, inputs), _shared(client, connection, inputs, regions)
    finally:
        _unregister(connection)
        for region in regions.values():
            system.destroy_shared_memory_region(region)
        connection.close()


def _unregister(connection: Any) -> None:
    """A server may answer a request a moment before it releases the regions that the request used."""
    deadline = time.monotonic() + RELEASE_SECONDS
    while True:
        try:
            connection.unregister_system_shared_memory()
        except InferenceServerException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _tensors(client: ModuleType, inputs: Mapping[str, FloatArray]) -> dict[str, Any]:
    return {name: client.InferInput(name, value.shape, "FP32") for name, value in inputs.items()}


def _plain(client: ModuleType, connection: Any, inputs: Mapping[str, FloatArray]) -> Call:
    def call() -> FloatArray:
        tensors = _tensors(client, inputs)
        for name, tensor in tensors.items():
            tensor.set_data_from_numpy(inputs[name])
        outputs = [client.InferRequestedOutput(OUTPUT)]
        made: FloatArray = connection.infer(OFFLINE, list(tensors.values()), outputs=outputs).as_numpy(OUTPUT)
        return made

    return call


def _shared(
    client: ModuleType, connection: Any, inputs: Mapping[str, FloatArray], regions: Mapping[str, Any]
) -> Call:
    audio = inputs["SOURCE_AUDIO"]

    def call() -> FloatArray:
        tensors = _tensors(client, inputs)
        for name, tensor in tensors.items():
            if name == "SOURCE_AUDIO":
                system.set_shared_memory_region(regions["in"], [audio])
                tensor.set_shared_memory("in", audio.nbytes)
            else:
                tensor.set_data_from_numpy(inputs[name])
        output = client.InferRequestedOutput(OUTPUT)
        output.set_shared_memory("out", audio.nbytes)
        connection.infer(OFFLINE, list(tensors.values()), outputs=[output])
        return np.array(system.get_contents_as_numpy(regions["out"], np.float32, list(audio.shape)))

    return call
