"""Embeddings of several recordings of a voice: mean identities, and frames that share the places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autovoice.errors import EmbeddingError
from autovoice.voices.embedding import join_embeddings, similarity
from autovoice.voices.voice import FrameClock

IDENTITY, FRAMES, WIDTH = 6, 12, 2
CLOCK = FrameClock(24_000, 240, 600, IDENTITY + 1 + FRAMES * WIDTH, IDENTITY, FRAMES)


def embedding(number: int, length: float = 1.0) -> np.ndarray:
    """A voice whose frames say which recording they are of and their place in it."""
    identity = np.random.default_rng(number).uniform(0.1, 1.0, IDENTITY)
    identity /= np.linalg.norm(identity)
    frames = np.stack([np.full(FRAMES, float(number)), np.arange(FRAMES)], axis=1)
    vector = np.concatenate([identity, [1.0], frames.ravel()])
    return (length * vector / np.linalg.norm(vector)).astype(np.float32)


def parts(vector: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Identity, and recording and place of every frame."""
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)
    vector = vector / vector[IDENTITY]
    frames = np.round(vector[IDENTITY + 1 :]).astype(int).reshape(FRAMES, WIDTH)
    np.testing.assert_allclose(vector[IDENTITY + 1 :], frames.ravel(), atol=1e-4)
    return vector[:IDENTITY], [(int(recording), int(place)) for recording, place in frames]


def test_one_recording_gives_itself() -> None:
    np.testing.assert_allclose(join_embeddings([embedding(1, 3.0)], CLOCK), embedding(1), atol=1e-7)


def test_recordings_share_the_places_in_their_order() -> None:
    _, frames = parts(join_embeddings([embedding(number) for number in (1, 2, 3)], CLOCK))
    assert frames == [(number, place) for number in (1, 2, 3) for place in (1, 4, 7, 10)]


@pytest.mark.parametrize(("weights", "counts"), [([30, 10], [9, 3]), ([1, 5], [2, 10]), ([1, 0], [12, 0])])
def test_weights_decide_the_share(weights: list[float], counts: list[int]) -> None:
    _, frames = parts(join_embeddings([embedding(1), embedding(2)], CLOCK, weights))
    recordings = [recording for recording, _ in frames]
    assert [recordings.count(number) for number in (1, 2)] == counts
    places = [place for recording, place in frames if recording == 1]
    assert places == sorted(places)
    assert max(places) - min(places) >= FRAMES * (1 - 1 / len(places)) - 1, "from all over the recording"


def test_the_identity_is_that_of_the_mean_direction() -> None:
    """However long the vectors are; length says nothing about a voice."""
    first, second = embedding(1), embedding(2)
    joined = join_embeddings([first, 9.0 * second], CLOCK, [3.0, 1.0])
    identities = [one[:IDENTITY] / np.linalg.norm(one[:IDENTITY]) for one in (first, second)]
    mean = 0.75 * identities[0] + 0.25 * identities[1]
    np.testing.assert_allclose(parts(joined)[0], mean / np.linalg.norm(mean), atol=1e-5)
    assert similarity(joined, first, CLOCK) > similarity(joined, second, CLOCK)


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, -1.0], [0, 0], [np.nan, 1.0], ["a", "b"], [[1.0], [1.0, 2.0]], 2.0]
)
def test_weights_that_are_none_are_named(weights: Any) -> None:
    with pytest.raises(EmbeddingError, match=r"weights is .*; give 2 numbers from 0 up"):
        join_embeddings([embedding(1), embedding(2)], CLOCK, weights)
    with pytest.raises(EmbeddingError, match="weights is"):
        join_embeddings([embedding(1)], CLOCK, [0.0])


def test_opposite_voices_are_refused() -> None:
    opposite = embedding(1)
    opposite[:IDENTITY] *= -1.0
    with pytest.raises(EmbeddingError, match="cancel each other out; give recordings of one voice"):
        join_embeddings([embedding(1), opposite], CLOCK)
