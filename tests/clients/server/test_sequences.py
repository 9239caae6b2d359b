"""Live streams that share a server: each keeps its own voice, and none that is broken passes for whole."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from triton_calls import Array, Client, cut, hum, joined, voice
from tritonclient.utils import InferenceServerException

from autovoice.server.server import TritonServer

pytestmark = pytest.mark.server

SAMPLES = 7200
STREAM = "voice_conversion_stream"
_ids = itertools.count(1_000)


@pytest.fixture
def sequence() -> int:
    return next(_ids)


def offline(client: Client, seed: int, audio: Array) -> Array:
    return client.infer("voice_conversion", {"SOURCE_AUDIO": audio, **voice(seed)})["CONVERTED_AUDIO"]


def test_interleaved_streams_keep_their_voices_apart(over_grpc: Client) -> None:
    """In turns from one thread, then all at once from many, which makes batches of them."""
    sources = {seed: hum(SAMPLES, 90.0 + 15 * seed) for seed in range(12)}
    expected = {seed: offline(over_grpc, seed, audio) for seed, audio in sources.items()}
    chunks = {seed: cut(audio, [480]) for seed, audio in sources.items()}
    ids = {seed: next(_ids) for seed in sources}

    def push(seed: int, position: int) -> Array:
        return over_grpc.infer(
            STREAM,
            {**voice(seed), "SOURCE_AUDIO": chunks[seed][position]},
            sequence_id=ids[seed],
            sequence_start=position == 0,
            sequence_end=position == len(chunks[seed]) - 1,
        )["CONVERTED_AUDIO"]

    made: dict[int, list[Array]] = {seed: [] for seed in sources}
    for position in range(len(chunks[0])):
        for seed in sources:
            made[seed].append(push(seed, position))
    barrier = threading.Barrier(len(sources))

    def run(seed: int) -> list[Array]:
        barrier.wait()
        return over_grpc.stream(voice(seed), chunks[seed], next(_ids))

    with ThreadPoolExecutor(len(sources)) as pool:
        together = dict(zip(sources, pool.map(run, sources), strict=True))
    for seed in sources:
        for way in (made, together):
            np.testing.assert_allclose(joined(way[seed], SAMPLES), expected[seed], atol=1e-4, rtol=0)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3  # the voices do differ


def test_an_id_can_be_used_again(client: Client, sequence: int) -> None:
    first, second = hum(SAMPLES, 110.0), hum(SAMPLES, 170.0)
    client.stream(voice(1), cut(first, [480]), sequence)
    made = client.stream(voice(2), cut(second, [480]), sequence)
    np.testing.assert_allclose(joined(made, SAMPLES), offline(client, 2, second), atol=1e-4, rtol=0)


def test_starting_anew_in_the_middle_forgets_the_past(client: Client, sequence: int) -> None:
    """As a caller does whose connection broke: START on an id that was never ended."""
    for position, chunk in enumerate(cut(hum(SAMPLES, 110.0), [480])[:5]):
        client.infer(
            STREAM, {**voice(1), "SOURCE_AUDIO": chunk}, sequence_id=sequence, sequence_start=position == 0
        )
    audio = hum(SAMPLES, 170.0)
    made = client.stream(voice(2), cut(audio, [480]), sequence)
    np.testing.assert_allclose(joined(made, SAMPLES), offline(client, 2, audio), atol=1e-4, rtol=0)


def test_unknown_and_ended_sequences_are_refused(client: Client, sequence: int) -> None:
    chunk = {**voice(1), "SOURCE_AUDIO": hum(480)}
    with pytest.raises(InferenceServerException, match="START"):
        client.infer(STREAM, chunk, sequence_id=sequence)
    client.stream(voice(1), [hum(480), hum(480)], sequence)
    with pytest.raises(InferenceServerException, match="START"):
        client.infer(STREAM, chunk, sequence_id=sequence)
    with pytest.raises(InferenceServerException, match="correlation ID"):
        client.infer(STREAM, chunk)


def test_a_failed_chunk_ends_its_sequence_and_no_other(client: Client, sequence: int) -> None:
    neighbour = next(_ids)
    good = {**voice(1), "SOURCE_AUDIO": hum(480)}
    for number in (sequence, neighbour):
        client.infer(STREAM, good, sequence_id=number, sequence_start=True)
    bad = {**good, "PITCH_SHIFT": np.full((1, 1), np.nan, np.float32)}
    with pytest.raises(InferenceServerException, match="not finite"):
        client.infer(STREAM, bad, sequence_id=sequence)
    # The first stages have heard the chunk and the last has not: going on would be audio with a hole.
    with pytest.raises(InferenceServerException, match="start the sequence again"):
        client.infer(STREAM, good, sequence_id=sequence)
    client.infer(STREAM, good, sequence_id=neighbour, sequence_end=True)
    client.infer(STREAM, good, sequence_id=sequence, sequence_start=True, sequence_end=True)


def test_abandoned_sequences_give_way(server: TritonServer, over_grpc: Client) -> None:
    """Hundreds of streams that nobody ends do not keep a newcomer waiting."""
    chunk = {**voice(1), "SOURCE_AUDIO": hum(480)}
    abandoned = [next(_ids) for _ in range(200)]
    for number in abandoned:
        over_grpc.infer(STREAM, chunk, sequence_id=number, sequence_start=True)
    audio = hum(SAMPLES)
    made = over_grpc.stream(voice(5), cut(audio, [480]), next(_ids))
    np.testing.assert_allclose(joined(made, SAMPLES), offline(over_grpc, 5, audio), atol=1e-4, rtol=0)
    assert server.is_ready()
    for number in abandoned:  # a server that is stopped waits for its live streams
        over_grpc.infer(STREAM, chunk, sequence_id=number, sequence_end=True)
