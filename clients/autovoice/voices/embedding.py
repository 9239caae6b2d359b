"""Voice embeddings: from a reference recording to the unit vector that names its speaker."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autovoice.atomic import as_path, atomic_path, full_disk, reason_of
from autovoice.audio.samples import check_duration, resample
from autovoice.audio.source import Source, at_usual_level
from autovoice.audio.speech import SpeechSource
from autovoice.engines.engine import Engine
from autovoice.errors import AudioInputError, EmbeddingError, OutputError
from autovoice.results import FloatArray
from autovoice.voices.voice import FrameClock

SPEAKER_ENCODER = "speaker_encoder"
SEGMENT_SECONDS = 30
SILENCE_RMS = 1e-4  # -80 dB of full scale


def check_embedding(embedding: npt.ArrayLike, size: int) -> FloatArray:
    """Return an embedding as a unit vector [size].

    Only the direction counts: the length is normalised here.

    Raises:
        EmbeddingError: wrong size, not finite, or without direction.
    """
    vector = _as_vector(embedding, "target embedding")
    if vector.size != size:
        raise EmbeddingError(
            f"target embedding has shape ({vector.size},); this repository takes ({size},), made by embed()"
        )
    if not np.isfinite(vector).all():
        index = int(np.argmin(np.isfinite(vector)))
        raise EmbeddingError(
            f"target embedding holds {vector[index]} at index {index}; make it again with embed()"
        )
    norm = float(np.linalg.norm(vector))
    if norm < 1e-6:
        raise EmbeddingError(
            f"target embedding has length {norm:.3g}, so it names no voice; make it again with embed()"
        )
    return (vector / norm).astype(np.float32)


def embed_source(engine: Engine, clock: FrameClock, source: Source, name: str) -> FloatArray:
    """Embed a reference of any length in bounded memory.

    Its speech alone counts, at the level that the voice was trained on; see `SpeechSource`. It is taken in
    segments of 30 s, whose embeddings are joined, see `join_embeddings`.

    Returns:
        Unit vector [E].

    Raises:
        AudioInputError: less than one frame, or silent.
    """
    check_duration(source.frames, source.sample_rate, clock.frames_per_second, name)
    if source.level < SILENCE_RMS:
        raise AudioInputError(
            f"{name} is silent (below -80 dB throughout); give a recording of the target's voice"
        )
    speech = SpeechSource(at_usual_level(source))
    embeddings: list[FloatArray] = []
    lengths: list[int] = []
    for segment in speech.blocks(SEGMENT_SECONDS * source.sample_rate):
        if embeddings and segment.size * clock.frames_per_second < source.sample_rate:
            continue
        audio = resample(segment, source.sample_rate, clock.sample_rate)
        vector = engine.infer(SPEAKER_ENCODER, {"REFERENCE_AUDIO": audio[np.newaxis]})["EMBEDDING"][0]
        embeddings.append(vector)
        lengths.append(segment.size)
    if not np.isfinite(embeddings).all():
        raise AudioInputError(f"{name} has no embedding; give a recording of the target's voice")
    return join_embeddings(embeddings, clock, lengths)


def join_embeddings(
    embeddings: Sequence[npt.ArrayLike], clock: FrameClock, weights: Sequence[float] | None = None
) -> FloatArray:
    """The embedding of a voice of which several recordings were embedded.

    An embedding holds an identity and frames of the reference, which lie one after another. Identities are
    averaged; of the frames of each recording, evenly taken ones share the places.

    Args:
        embeddings: of recordings of one voice, [E] each.
        clock: of the voice that made them.
        weights: how much each counts; None for all alike.

    Returns:
        Unit vector [E].

    Raises:
        EmbeddingError: none are given, one is no embedding, they cancel each other out, or the weights are no
            numbers from 0 up.
    """
    try:
        vectors = [check_embedding(one, clock.embedding_size) for one in embeddings]
    except TypeError:  # no iterable, or an array without axes
        vectors = []
    if not vectors:
        raise EmbeddingError(f"embeddings is {embeddings!r}; give a list of vectors made by embed()")
    share = _shares(weights, len(vectors))
    if len(vectors) == 1:
        return vectors[0]
    rows = np.stack(vectors).astype(np.float64)
    size, count = clock.identity_size, clock.embedding_frames
    rows /= np.maximum(np.linalg.norm(rows[:, :size], axis=1, keepdims=True), 1e-12)
    identity = share @ rows[:, :size]
    norm = float(np.linalg.norm(identity))
    if norm < 1e-3:
        raise EmbeddingError("the references cancel each other out; give recordings of one voice")
    places = (np.arange(count) + 0.5) / count
    edges = np.concatenate([[0.0], np.cumsum(share)])
    recording = np.clip(np.searchsorted(edges, places, side="right") - 1, 0, len(rows) - 1)
    within = (places - edges[recording]) / np.maximum(share[recording], 1e-12)
    frame = np.clip((within * count).astype(np.int64), 0, count - 1)
    frames = rows[:, size + 1 :].reshape(len(rows), count, -1)[recording, frame]
    joined = np.concatenate([identity / norm, [1.0], frames.ravel()])
    return np.asarray(joined / np.linalg.norm(joined), dtype=np.float32)


def _shares(weights: Sequence[float] | None, count: int) -> npt.NDArray[np.float64]:
    """How much each of `count` recordings counts; the sum is 1."""
    if weights is None:
        return np.full(count, 1.0 / count)
    try:
        values = np.asarray(weights)
    except ValueError:  # ragged
        values = np.zeros(0)
    if values.shape == (count,) and values.dtype.kind in "fiu" and (values >= 0).all():
        total = float(values.sum())
        if 0.0 < total < np.inf:
            return values.astype(np.float64) / total
    raise EmbeddingError(f"weights is {weights!r}; give {count} numbers from 0 up, of which one is above 0")


def similarity(first: FloatArray, second: FloatArray, clock: FrameClock) -> float:
    """Cosine of the identities of two embeddings [E]."""
    one, other = first[: clock.identity_size], second[: clock.identity_size]
    return float(np.dot(one, other) / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12))


def load_embedding(path: str | os.PathLike[str]) -> FloatArray:
    """Read a voice embedding written by `save_embedding` (a NumPy `.npy` file).

    Raises:
        EmbeddingError: missing, or not a one-dimensional numeric array.
    """
    try:
        embedding = np.load(as_path(path, "the embedding", EmbeddingError), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EmbeddingError(
            f"{path} cannot be read as an embedding ({reason_of(error)}); make one with `autovoice embed`"
        ) from error
    if (
        not isinstance(embedding, np.ndarray)
        or embedding.ndim != 1
        or not np.issubdtype(embedding.dtype, np.floating)
    ):
        raise EmbeddingError(f"{path} does not hold one vector of floats; make one with `autovoice embed`")
    return embedding.astype(np.float32)


def save_embedding(path: str | os.PathLike[str], embedding: npt.ArrayLike) -> None:
    """Write a voice embedding as `.npy`, whole or not at all.

    Raises:
        EmbeddingError: no vector of numbers.
        OutputError: when it cannot be written.
    """
    vector = _as_vector(embedding, "embedding").astype(np.float32)
    with atomic_path(path) as temporary:
        try:
            with temporary.open("wb") as file:
                np.save(file, vector, allow_pickle=False)
        except OSError as error:
            raise OutputError(full_disk(path, error)) from error


def _as_vector(embedding: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    try:
        values = np.asarray(embedding)
    except ValueError:
        raise EmbeddingError(f"{name} is a ragged sequence; give one vector made by embed()") from None
    if values.dtype.kind not in "fiu":
        raise EmbeddingError(f"{name} is not an array of numbers; give one vector made by embed()")
    if values.ndim not in (1, 2) or values.size != values.shape[-1]:
        raise EmbeddingError(f"{name} has shape {values.shape}; give one vector [E], made by embed()")
    return values.reshape(-1).astype(np.float64)
