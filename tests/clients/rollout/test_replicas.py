"""Live streams over several replicas: each stays where it began, or begins elsewhere when that is gone."""

from __future__ import annotations

import queue
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from replicas import Replicas, start_replicas
from small_releases import LOOKAHEAD, RATE, SPEAKER, expected, write_release
from triton_calls import until

from autovoice import PipelineConfig, VoiceConversionPipeline

pytestmark = pytest.mark.server
CHUNK = RATE // 20
CHUNKS = 24


@pytest.fixture(scope="module")
def replicas(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    with start_replicas(write_release(folder, 2, stages=("front", "back", "live")), cache, folder) as running:
        yield running


class Speaker:
    """A stream of its own pipeline, and where its chunks go."""

    def __init__(self, replicas: Replicas, protocol: str, seed: int, stack: ExitStack) -> None:
        config = PipelineConfig(backend=replicas.urls[protocol], fallback="raise", retries=8)
        self._replicas = replicas
        self.pipeline = stack.enter_context(VoiceConversionPipeline(config))
        self.stream = stack.enter_context(self.pipeline.stream(SPEAKER))
        self.source = np.random.default_rng(seed).uniform(-0.5, 0.5, CHUNKS * CHUNK).astype(np.float32)
        self.made: list[np.ndarray] = []

    def push(self) -> set[int]:
        """Send the next chunk; returns the replicas that were asked."""
        before = [self._replicas.asked(k) for k in (1, 2, 3)]
        asked: set[int] = set()

        def counted() -> bool:  # which a server does after it has answered
            asked.update(k for k in (1, 2, 3) if self._replicas.asked(k) > before[k - 1])
            return bool(asked)

        self.push_unseen()
        until(counted)
        return asked

    def push_unseen(self) -> None:
        start = self.stream.samples_in
        self.made.append(self.stream.push(self.source[start : start + CHUNK]))

    def finish(self) -> None:
        while self.stream.samples_in < self.source.size:
            self.push_unseen()
        self.made.append(self.stream.flush())

    @property
    def lost(self) -> int:
        return self.pipeline.stats.lost_sequences


def test_a_replica_cut_off_costs_no_sample(replicas: Replicas) -> None:
    """Those on the others go on; those on it go on elsewhere, also when it has come back."""
    with ExitStack() as stack:
        speakers: list[Speaker] = []
        homes: list[int] = []
        while len(speakers) < 6 or len(set(homes)) < 3:
            speaker = Speaker(replicas, ("grpc", "http")[len(speakers) % 2], len(speakers), stack)
            (home,) = speaker.push()
            speakers.append(speaker)
            homes.append(home)
        for _ in range(3):
            for speaker, home in zip(speakers, homes, strict=True):
                assert speaker.push() == {home}
        assert [speaker.lost for speaker in speakers] == [0] * len(speakers)

        replicas.network.cut(1)
        for _ in range(CHUNKS // 4):
            for speaker in speakers:
                speaker.push_unseen()
        assert [speaker.lost > 0 for speaker in speakers] == [home == 1 for home in homes]

        replicas.network.mend(1)
        until(lambda: replicas.healthy() == 6)
        for speaker in speakers:
            speaker.finish()
        # Who had stayed stays; of those that moved, some may move back.
        assert all(speaker.lost == 0 for speaker, home in zip(speakers, homes, strict=True) if home != 1)
        for speaker in speakers:
            np.testing.assert_array_equal(np.concatenate(speaker.made), expected(speaker.source, 2))


def request(module: ModuleType, chunk: np.ndarray) -> list[Any]:
    inputs = []
    for name, value in (
        ("SOURCE_AUDIO", chunk[None]),
        ("TARGET_EMBEDDING", SPEAKER[None]),
        ("PITCH_SHIFT", np.zeros((1, 1), np.float32)),
    ):
        inputs.append(module.InferInput(name, value.shape, "FP32"))
        inputs[-1].set_data_from_numpy(value)
    return inputs


SOURCE = np.random.default_rng(11).uniform(-0.5, 0.5, 10 * CHUNK).astype(np.float32)
PIECES = np.split(np.concatenate((SOURCE, np.zeros(LOOKAHEAD, np.float32))), range(CHUNK, SOURCE.size, CHUNK))


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc])
def test_other_clients_send_the_header(replicas: Replicas, module: ModuleType) -> None:
    url = replicas.urls["http" if module is tritonclient.http else "grpc"].split("://")[1]
    for _ in range(4):  # chance would keep one sequence together, perhaps
        made, sequence = [], secrets.randbits(62) + 1
        with module.InferenceServerClient(url) as client:
            for number, piece in enumerate(PIECES):
                answer = client.infer(
                    "voice_conversion_stream",
                    request(module, piece),
                    sequence_id=sequence,
                    sequence_start=number == 0,
                    sequence_end=number == len(PIECES) - 1,
                    headers={"autovoice-sequence": str(sequence)},
                )
                made.append(answer.as_numpy("CONVERTED_AUDIO")[0])
        np.testing.assert_array_equal(np.concatenate(made)[LOOKAHEAD:], expected(SOURCE, 2))


def test_a_stream_of_grpc_stays_without_a_header(replicas: Replicas) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    for _ in range(4):
        sequence = secrets.randbits(62) + 1
        with tritonclient.grpc.InferenceServerClient(replicas.urls["grpc"].split("://")[1]) as client:
            client.start_stream(lambda result, error: answers.put(error or result))
            for number, piece in enumerate(PIECES):
                client.async_stream_infer(
                    "voice_conversion_stream",
                    request(tritonclient.grpc, piece),
                    sequence_id=sequence,
                    sequence_start=number == 0,
                    sequence_end=number == len(PIECES) - 1,
                )
            found = [answers.get(timeout=60) for _ in PIECES]
        made = np.concatenate([answer.as_numpy("CONVERTED_AUDIO")[0] for answer in found])
        np.testing.assert_array_equal(made[LOOKAHEAD:], expected(SOURCE, 2))
