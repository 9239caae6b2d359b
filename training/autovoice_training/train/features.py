"""Pitch and speaker embeddings of the corpus, measured once with the stages that will serve the voice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from autovoice.atomic import atomic_path
from autovoice_export.base.stages.pitch_extractor import PitchExtractor
from autovoice_export.base.stages.timing import FEATURE_DELAY_FRAMES
from autovoice_export.base.stages.voice import IDENTITY_SIZE, PHONES, unpack
from autovoice_export.base.stages.voice_encoder import PhoneClassifier, VoiceEncoder
from autovoice_plugins.geometry import HOP
from autovoice_training.corpus.reader import Corpus, Utterance

BLOCK_FRAMES = 3000
EMBEDDED_UTTERANCES = 24
MINIMUM_EMBEDDED_FRAMES = 160


@dataclass(frozen=True)
class SpeakerFeatures:
    """Features of one speaker's audio.

    Attributes:
        f0: Hz per frame of the speaker's whole store, 0 = unvoiced, [F].
        periodicity: in [0, 1], [F].
        embeddings: unit length, one an utterance, [N, 1282].
    """

    f0: NDArray[np.float32]
    periodicity: NDArray[np.float32]
    embeddings: NDArray[np.float32]

    @cached_property
    def median_f0(self) -> float:
        """Median F0 of the voiced frames in Hz."""
        return float(np.median(self.f0[self.f0 > 0]))

    def draw_embedding(self, random: np.random.Generator, noise: float) -> NDArray[np.float32]:
        """Embedding of one to three random utterances, its identity a little off, unit length, [1282]."""
        rows = self.embeddings[random.integers(len(self.embeddings), size=random.integers(1, 4))]
        mean = rows.mean(axis=0)
        identity = mean[:IDENTITY_SIZE]
        identity += noise * np.linalg.norm(identity) * random.standard_normal(identity.shape)
        return (mean / np.linalg.norm(mean)).astype(np.float32)


def average_voice(features: Iterable[SpeakerFeatures]) -> Tensor:
    """Mean envelope of each phone over voices, [41, 24]; every voice counts by its share of the phone."""
    shares, sums = torch.zeros(PHONES, 1), 0.0
    for voice in features:
        one = unpack(torch.from_numpy(voice.embeddings.mean(axis=0, keepdims=True)))
        shares, sums = shares + one.shares[0].unsqueeze(1), sums + one.sums[0]
    return sums / torch.clamp(shares, min=1e-4)


def read_features(folder: Path, speaker: str) -> SpeakerFeatures:
    """Reads what ``extract`` wrote."""
    with np.load(folder / f"{speaker}.npz") as stored, np.load(folder / f"{speaker}.voice.npz") as voice:
        return SpeakerFeatures(stored["f0"], stored["periodicity"], voice["embeddings"])


@torch.no_grad()
def pitch_of_store(
    audio: NDArray[np.int16], extractor: PitchExtractor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """F0 and periodicity of every frame of a speaker's store, streamed through the stage's state."""
    state = torch.zeros(1, extractor.state_size)
    late = np.zeros(FEATURE_DELAY_FRAMES * HOP, dtype=np.int16)
    f0, periodicity = [], []
    for start in range(0, len(audio) + len(late), BLOCK_FRAMES * HOP):
        stop = start + BLOCK_FRAMES * HOP
        block = audio[start:stop]
        if stop > len(audio):
            block = np.concatenate([block, late[: stop - max(start, len(audio))]])
        samples = torch.from_numpy(block[: len(block) // HOP * HOP].astype(np.float32)) / 32768.0
        pitch, voicing, state = extractor(samples.unsqueeze(0), state)
        f0.append(pitch[0].numpy())
        periodicity.append(voicing[0].numpy())
    return np.concatenate(f0)[FEATURE_DELAY_FRAMES:], np.concatenate(periodicity)[FEATURE_DELAY_FRAMES:]


@torch.no_grad()
def extract(
    corpus: Corpus,
    folder: Path,
    classifier: PhoneClassifier,
    pitch_extractor: PitchExtractor,
    console: Console,
) -> None:
    """Writes the features of every speaker; safe to interrupt and run again.

    What is there already is kept where it was measured on the same audio, cut into the same utterances, with
    stages that measure the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoder = VoiceEncoder(classifier)
    pitch_version, encoder_version = _pitch_version(pitch_extractor), _digest(encoder)
    for speaker in track(sorted(corpus.speakers), "features", console=console):
        audio = corpus.audio(speaker)
        heard = hashlib.sha256(audio).hexdigest()
        path, made_with = folder / f"{speaker}.npz", f"{pitch_version} {heard}"
        if _made_with(path) != made_with:
            f0, periodicity = pitch_of_store(audio, pitch_extractor)
            _write(path, f0=f0, periodicity=periodicity, made_with=np.array(made_with))
        utterances = _embedded_utterances(corpus, speaker)
        places = [(utterance.start_frame, utterance.frames) for utterance in utterances]
        path, made_with = folder / f"{speaker}.voice.npz", f"{encoder_version} {heard} {places}"
        if _made_with(path) != made_with:
            rows = [_embedding(audio, utterance, encoder) for utterance in utterances]
            _write(path, embeddings=np.stack(rows), made_with=np.array(made_with))


def _embedded_utterances(corpus: Corpus, speaker: str) -> list[Utterance]:
    own = [u for u in corpus.utterances if u.speaker == speaker and u.frames >= MINIMUM_EMBEDDED_FRAMES]
    step = max(1, len(own) // EMBEDDED_UTTERANCES)
    return own[::step][:EMBEDDED_UTTERANCES]


def _embedding(audio: NDArray[np.int16], utterance: Utterance, encoder: VoiceEncoder) -> NDArray[np.float32]:
    """Embedding of one utterance in its speaker's audio, [1282]."""
    start = utterance.start_frame * HOP
    samples = audio[start : start + utterance.frames * HOP].astype(np.float32) / 32768.0
    embedding: NDArray[np.float32] = encoder(torch.from_numpy(samples).unsqueeze(0))[0].numpy()
    return embedding


def _pitch_version(extractor: PitchExtractor) -> str:
    """Names what the pitch extractor measures: a digest of its answers on a fixed signal.

    The signal has glides, noise, and voices that leap by an octave as they fade. Its answers are rounded, so
    that two processors agree.
    """
    random = np.random.default_rng(0)
    time = np.arange(6 * 100 * HOP) / (100 * HOP)
    octave = np.where((time % 0.5 > 0.4) & (time > 2), 0.5, 1.0)
    f0 = 150.0 * 2.0 ** np.sin(2 * np.pi * 0.4 * time) * octave
    phase = 2 * np.pi * np.cumsum(f0) / (100 * HOP)
    voice = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 8))
    fading = np.exp(-6.0 * (time % 0.5))
    noisy = voice * fading * (time % 1.5 < 1.2) + random.standard_normal(time.size) * 0.3 * (time / 6.0)
    f0, periodicity = pitch_of_store((3000.0 * noisy).astype(np.int16), extractor)
    answers = np.concatenate([np.round(f0), np.round(100.0 * periodicity)]).astype(np.int16)
    return hashlib.sha256(answers).hexdigest()


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


def _made_with(path: Path) -> str:
    if not path.exists():
        return ""
    with np.load(path) as stored:
        return str(stored["made_with"]) if "made_with" in stored else ""


def _write(path: Path, **arrays: NDArray[Any]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
