"""Live streams over several replicas: each stays where it began, or begins elsewhere when that is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from replicas import Replicas, start_replicas
from small_releases import RATE, SPEAKER, expected, write_release
from triton_calls import until

from autovoice import PipelineConfig, VoiceConversionPipeline

pytestmark = pytest.mark.server
CHUNK = RATE // 20
CHUNKS = 24


@pytest.fixture(scope="module")
def replicas(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    with start_replicas(write_release(folder, 2), cache, folder) as running:
        yield running


class Speaker:
    """A stream of its own pipeline, and where its chunks go."""

    def __init__(self, replicas: Replicas, protocol: str, seed: int, stack: ExitStack) -> None:
        config = PipelineConfig(backend=replicas.urls[protocol], fallback="raise", retry_delay_seconds=0.2)
        self._replicas = replicas
        self.pipeline = stack.enter_context(VoiceConversionPipeline(config))
        self.stream = stack.enter_context(self.pipeline.stream(SPEAKER))
        self.source = np.random.default_rng(seed).uniform(-0.5, 0.5, CHUNKS * CHUNK).astype(np.float32)
        self.made: list[np.ndarray] = []

    def push(self) -> set[int]:
        """Send the next chunk; returns the replicas that were asked."""
        before = [self._replicas.asked(k) for k in (1, 2, 3)]
        self.push_unseen()
        return {k for k in (1, 2, 3) if self._replicas.asked(k) > before[k - 1]}

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
