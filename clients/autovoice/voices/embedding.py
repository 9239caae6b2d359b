"""Voice embeddings: from a reference recording to the unit vector that names its speaker."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from autovoice.atomic import atomic_path, full_disk, reason_of
from autovoice.audio.samples import resample
from autovoice.audio.source import Source, check_duration
from autovoice.engines.engine import Engine
from autovoice.errors import AudioInputError, EmbeddingError, OutputError
from autovoice.results import FloatArray
from autovoice.voices.clock import FrameClock

SPEAKER_ENCODER = "speaker_encoder"
SEGMENT_SECONDS = 30
SILENCE_RMS = 1e-4  # -80 dB of full scale


def check_embedding(embedding: npt.ArrayLike, size: int) -> FloatArray:
    """Return an embedding as a unit vector [size].

    Averages of embeddings are welcome: only the direction counts, so the length is normalised here.

    Raises:
        EmbeddingError: wrong size, not finite, or without direction.
    """
    try:
        vector = np.asarray(embedding, dtype=np.float64)
    except (TypeError, ValueError):
        raise EmbeddingError(
            f"target embedding is not an array of numbers; give {size} floats made by embed()"
        ) from None
    if vector.shape not in ((size,), (1, size)):
        raise EmbeddingError(
            f"target embedding has shape {vector.shape}; this repository takes ({size},), made by embed()"
        )
    vector = vector.reshape(size)
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

    The reference is taken in segments of 30 s; their embeddings are averaged by the length of the segment,
    leaving silent segments out, and the mean is normalised.

    Returns:
        Unit vector [E].

    Raises:
        AudioInputError: less than one frame, or silent.
    """
    total = np.zeros(clock.embedding_size)
    samples = 0
    for segment in source.blocks(SEGMENT_SECONDS * source.sample_rate):
        samples += segment.size
        rms = float(np.sqrt(np.mean(np.square(segment, dtype=np.float64))))
        if rms < SILENCE_RMS or segment.size * clock.frames_per_second < source.sample_rate:
            continue
        audio = resample(segment, source.sample_rate, clock.sample_rate)
        vector = engine.infer(SPEAKER_ENCODER, {"REFERENCE_AUDIO": audio[np.newaxis]})["EMBEDDING"][0]
        total += segment.size * vector.astype(np.float64)
    check_duration(samples, source.sample_rate, clock.frames_per_second, name)
    norm = float(np.linalg.norm(total))
    if norm == 0.0 or not np.isfinite(norm):
        raise AudioInputError(
            f"{name} is silent (below -80 dB throughout); give a recording of the target's voice"
        )
    return (total / norm).astype(np.float32)


class EmbeddingCache:
    """Keeps the latest embeddings by the content of their reference audio.

    Args:
        capacity: entries kept, 0 for none.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, FloatArray] = OrderedDict()

    def get(self, audio: FloatArray, sample_rate: int, make: Callable[[], FloatArray]) -> FloatArray:
        """Return a copy of the embedding of `audio`, made by `make` when it is not held."""
        if not self._capacity:
            return make()
        key = hashlib.sha256(f"{sample_rate}:".encode() + audio.tobytes()).digest()
        with self._lock:
            held = self._entries.get(key)
            if held is not None:
                self._entries.move_to_end(key)
        if held is None:
            held = make()
            with self._lock:
                self._entries[key] = held
                while len(self._entries) > self._capacity:
                    self._entries.popitem(last=False)
        return np.array(held)


def load_embedding(path: str | os.PathLike[str]) -> FloatArray:
    """Read a voice embedding written by `save_embedding` (a NumPy `.npy` file).

    Raises:
        EmbeddingError: missing, or not a one-dimensional numeric array.
    """
    try:
        embedding = np.load(path, allow_pickle=False)
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
        OutputError: when it cannot be written.
    """
    with atomic_path(path) as temporary:
        try:
            with temporary.open("wb") as file:
                np.save(file, np.asarray(embedding, np.float32), allow_pickle=False)
        except OSError as error:
            raise OutputError(full_disk(path, error)) from error
