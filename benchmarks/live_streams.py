"""Live streams at the pace of real time, each chunk's latency counted from when it has been heard.

`perf_analyzer` counts from when it sends: a chunk that has to wait for the one before it, because the
server is late, looks quick there. A listener hears it late all the same. Here nothing is sent early, and
nothing that is late is forgiven. Nor do microphones keep step: each stream has its own place in time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
import numpy as np
from speech import FloatArray, looped
from triton_workload import STREAM
from tritonclient.grpc import service_pb2

CONNECT_SECONDS = 10.0
BEHIND_SECONDS = 2.0
_INFER = "/inference.GRPCInferenceService/ModelInfer"
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


class StreamFailed(Exception):
    """A stream that did not reach its end."""


@dataclass(frozen=True)
class LiveLoad:
    """What is played to a server.

    Attributes:
        streams: how many at once, each on a connection of its own.
        chunk_s: length of a chunk, whole frames.
        seconds: length of every stream.
        warmup_s: its beginning, in which connections and caches warm up and no figure counts.
        model: the stream ensemble.
    """

    streams: int
    chunk_s: float = 0.020
    seconds: float = 8.0
    warmup_s: float = 1.0
    model: str = STREAM


@dataclass(frozen=True)
class LiveResult:
    """How it went.

    Attributes:
        latencies_s: from a chunk having been heard to its conversion being here, for every chunk counted.
        lateness_s: the part of it before the chunk was sent: this program's own delay, or the wait for the
            chunk before it.
        failures: streams that ended with an error or fell `BEHIND_SECONDS` behind.
        error: what the first of them said.
    """

    latencies_s: FloatArray
    lateness_s: FloatArray
    failures: int
    error: str


def play(
    authority: str, load: LiveLoad, source: FloatArray, sample_rate: int, voice: Mapping[str, FloatArray]
) -> LiveResult:
    """Plays streams to a server at the pace of real time.

    Args:
        authority: `host:port` of the server's gRPC service.
        load: how many and for how long.
        source: speech [T], looped; every stream begins elsewhere in it.
        sample_rate: of the models, Hz.
        voice: the inputs of the stream ensemble besides the audio.
    """
    return asyncio.run(_play(authority, load, source, sample_rate, voice))


async def _play(
    authority: str, load: LiveLoad, source: FloatArray, sample_rate: int, voice: Mapping[str, FloatArray]
) -> LiveResult:
    dice = random.Random(load.streams)
    timed: list[tuple[float, float]] = []
    channels = [grpc.aio.insecure_channel(authority, options=_OWN_CONNECTION) for _ in range(load.streams)]
    try:
        ready = asyncio.gather(*(channel.channel_ready() for channel in channels))
        await asyncio.wait_for(ready, CONNECT_SECONDS)
        first_id = 1 + dice.randrange(2**30)
        # Serialised before the clock starts and never parsed: that work is the clients', which run elsewhere.
        messages = []
        for number in range(load.streams):
            audio = looped(np.roll(source, -dice.randrange(source.size)), round(load.seconds * sample_rate))
            chunk = round(load.chunk_s * sample_rate)
            requests = chunk_requests(audio, chunk, voice, first_id + number, load.model)
            messages.append([request.SerializeToString() for request in requests])
        begin = time.perf_counter() + load.chunk_s
        streams = [
            _stream(channel, load, stream, begin + dice.random() * load.chunk_s, timed)
            for channel, stream in zip(channels, messages, strict=True)
        ]
        outcomes = await asyncio.gather(*streams, return_exceptions=True)
    finally:
        for channel in channels:
            await channel.close()
    errors = [outcome for outcome in outcomes if outcome is not None]
    for error in errors:
        if not isinstance(error, (StreamFailed, grpc.RpcError)):
            raise error
    pairs = np.array(timed).reshape(-1, 2)
    return LiveResult(pairs[:, 0], pairs[:, 1], len(errors), str(errors[0]) if errors else "")


async def _stream(
    channel: grpc.aio.Channel,
    load: LiveLoad,
    messages: list[bytes],
    begin: float,
    timed: list[tuple[float, float]],
) -> None:
    infer = channel.unary_unary(_INFER)
    for position, message in enumerate(messages):
        heard = begin + (position + 1) * load.chunk_s
        await asyncio.sleep(heard - time.perf_counter())
        sent = time.perf_counter()
        await infer(message)
        latency = time.perf_counter() - heard
        if position * load.chunk_s >= load.warmup_s:
            timed.append((latency, sent - heard))
        if latency > BEHIND_SECONDS and position < len(messages) - 1:
            await infer(messages[-1])  # which ends the sequence
            raise StreamFailed(f"a stream fell {BEHIND_SECONDS:g} s behind real time")


def chunk_requests(
    audio: FloatArray, chunk: int, voice: Mapping[str, FloatArray], identifier: int, model: str = STREAM
) -> list[service_pb2.ModelInferRequest]:
    """One whole sequence for the stream ensemble.

    Args:
        audio: what the stream says [T]; a last piece shorter than a chunk is left out.
        chunk: samples in one request.
        voice: the inputs besides the audio.
        identifier: of the sequence, not 0.
        model: the stream ensemble.
    """
    count = audio.size // chunk
    requests = []
    for position in range(count):
        request = service_pb2.ModelInferRequest(model_name=model)
        piece = audio[np.newaxis, position * chunk : (position + 1) * chunk]
        for name, value in {"SOURCE_AUDIO": piece, **voice}.items():
            request.inputs.add(name=name, datatype="FP32", shape=value.shape)
            request.raw_input_contents.append(np.ascontiguousarray(value, "<f4").tobytes())
        request.parameters["sequence_id"].int64_param = identifier
        request.parameters["sequence_start"].bool_param = position == 0
        request.parameters["sequence_end"].bool_param = position == count - 1
        requests.append(request)
    return requests
