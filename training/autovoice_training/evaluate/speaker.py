"""The judge of identity: the resemblyzer package with its own preprocessing.

Its network is the GE2E encoder of Wan et al., "Generalized end-to-end loss for speaker verification" (2018).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from resemblyzer import VoiceEncoder, preprocess_wav

from autovoice_training.evaluate.dataset import Audio

Embedding = NDArray[np.float32]

EMBEDDING_SIZE = 256


@dataclass(frozen=True)
class Identity:
    """Whose voice a recording is.

    Attributes:
        similarity_target: cosine with the target's mean embedding.
        similarity_source: cosine with the source's mean embedding.
        nearer_target: whether the first is the greater.
        similarities: cosine with every enrolled speaker.
        identified_as: the enrolled speaker it is most similar to; empty where no speech was found.
    """

    similarity_target: float
    similarity_source: float
    nearer_target: bool
    similarities: dict[str, float]
    identified_as: str


@functools.cache
def _encoder() -> VoiceEncoder:
    torch.set_num_threads(1)
    return VoiceEncoder("cpu", verbose=False)


def embed(audio: Audio) -> Embedding:
    """Embeds the speech of a recording.

    Args:
        audio: samples [T] at JUDGE_RATE.

    Returns:
        Embedding [256] of unit length; zeros, similar to nobody, where the package's voice activity detector
        finds no speech.
    """
    # The package divides by the level of the signal, and its embedding of an empty recording means nothing.
    speech = preprocess_wav(np.clip(audio, -1.0, 1.0)) if audio.any() else audio[:0]
    if len(speech) == 0:
        return np.zeros(EMBEDDING_SIZE, dtype=np.float32)
    embedding: Embedding = _encoder().embed_utterance(speech).astype(np.float32)
    return embedding


def mean_embedding(embeddings: Sequence[Embedding]) -> Embedding:
    """The mean direction [256] of several embeddings [256] of one speaker."""
    mean = np.mean(embeddings, axis=0)
    direction: Embedding = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
    return direction


def identify(embedding: Embedding, enrolled: Mapping[str, Embedding], source: str, target: str) -> Identity:
    """Compares a recording with every enrolled speaker.

    Args:
        embedding: of the recording [256].
        enrolled: mean embedding [256] by speaker, source and target among them.
        source: speaker converted from.
        target: speaker converted to.
    """
    similarity = {speaker: float(embedding @ mean) for speaker, mean in enrolled.items()}
    return Identity(
        similarity[target],
        similarity[source],
        similarity[target] > similarity[source],
        similarity,
        max(similarity, key=lambda speaker: similarity[speaker]) if embedding.any() else "",
    )


def equal_error_rate(genuine: Sequence[float], impostors: Sequence[float]) -> float:
    """Share of wrong decisions at the threshold that refuses as many targets as it lets others pass.

    Args:
        genuine: similarities of results to their targets.
        impostors: similarities of results to everybody else.
    """
    scores = np.concatenate([genuine, impostors])
    best = 1.0
    for threshold in np.unique(scores):
        refused = float(np.mean(np.asarray(genuine) < threshold))
        taken = float(np.mean(np.asarray(impostors) >= threshold))
        best = min(best, max(refused, taken))
    return best
