"""What training knows of the corpus beside its audio, measured with the stages that will serve the voice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from autovoice.atomic import atomic_path
from autovoice_export.base.stages.mel import MelAnalysis
from autovoice_export.base.stages.pitch_extractor import PitchExtractor
from autovoice_export.base.stages.sizes import KEY_SIZE
from autovoice_export.base.stages.speaker_encoder import SpeakerEncoder
from autovoice_export.base.stages.timing import FEATURE_DELAY_FRAMES
from autovoice_export.base.stages.voice_encoder import ReferenceEncoder
from autovoice_plugins.geometry import HOP
from autovoice_training.corpus.reader import Corpus

BLOCK_FRAMES = 3000
LOG_FLOOR = 1e-12


def samples_of(audio: NDArray[np.int16]) -> torch.Tensor:
    """Audio of the corpus in [-1, 1], float32, [1, T]."""
    return torch.from_numpy(audio.astype(np.float32) / 32768.0).unsqueeze(0)


@torch.no_grad()
def pitch_of(audio: NDArray[np.int16], extractor: PitchExtractor) -> NDArray[np.float32]:
    """F0 and periodicity of every frame of a speaker's audio, [F, 2]."""
    state = torch.zeros(1, extractor.state_size)
    late = np.zeros(FEATURE_DELAY_FRAMES * HOP, dtype=np.int16)
    padded = np.concatenate([audio, late])
    parts = []
    for start in range(0, len(padded), BLOCK_FRAMES * HOP):
        f0, periodicity, state = extractor(samples_of(padded[start : start + BLOCK_FRAMES * HOP]), state)
        parts.append(torch.stack([f0[0], periodicity[0]], dim=1).numpy())
    return np.concatenate(parts)[FEATURE_DELAY_FRAMES:]


@torch.no_grad()
def mel_of(audio: NDArray[np.int16], analysis: MelAnalysis) -> NDArray[np.float16]:
    """Natural log of the mel power of every frame of a speaker's audio, [F, 80]."""
    silence = np.zeros(HOP, dtype=np.int16)
    padded = np.concatenate([silence, audio, silence])
    parts = []
    for start in range(0, len(audio), BLOCK_FRAMES * HOP):
        mel = analysis(samples_of(padded[start : start + (BLOCK_FRAMES + 2) * HOP]))[0]
        parts.append(torch.log(mel + LOG_FLOOR).numpy().astype(np.float16))
    return np.concatenate(parts)


def measure(corpus: Corpus, folder: Path, extractor: PitchExtractor, console: Console) -> None:
    """Writes pitch, mel and identities of every speaker; safe to interrupt and run again.

    What is there already is kept where it was measured on the same audio by the same pitch extractor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    analysis, speaker_encoder = MelAnalysis(), SpeakerEncoder.from_resemblyzer()
    version = pitch_version(extractor)
    for speaker in track(sorted(corpus.speakers), "features", console=console):
        audio = corpus.audio(speaker)
        made_with = f"{version} {hashlib.sha256(audio).hexdigest()}"
        path = folder / f"{speaker}.npz"
        if _made_with(path) == made_with:
            continue
        identities = [
            _identity(audio[u.start_frame * HOP : (u.start_frame + u.frames) * HOP], speaker_encoder)
            for u in corpus.utterances
            if u.speaker == speaker
        ]
        _write(
            path,
            pitch=pitch_of(audio, extractor),
            mel=mel_of(audio, analysis),
            identities=np.stack(identities),
            made_with=np.array(made_with),
        )


@torch.no_grad()
def _identity(audio: NDArray[np.int16], encoder: SpeakerEncoder) -> NDArray[np.float32]:
    identity: NDArray[np.float32] = encoder(samples_of(audio))[0].numpy()
    return identity


@torch.no_grad()
def keys_of(
    mel: NDArray[np.float16], utterances: Sequence[tuple[int, int]], encoder: ReferenceEncoder
) -> NDArray[np.float32]:
    """Keys of every frame of a speaker, [F, 24]; each utterance, (first frame, frames), is a recording."""
    keys = np.zeros((len(mel), KEY_SIZE), np.float32)
    for first, frames in utterances:
        power = torch.exp(torch.from_numpy(mel[first : first + frames].astype(np.float32)))
        keys[first : first + frames] = encoder(power.unsqueeze(0))[0][0].numpy()
    return keys


def pitch_version(extractor: PitchExtractor) -> str:
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
    answers = pitch_of((3000.0 * noisy).astype(np.int16), extractor)
    return hashlib.sha256(np.round(answers * np.array([1.0, 100.0])).astype(np.int16)).hexdigest()


def _made_with(path: Path) -> str:
    if not path.exists():
        return ""
    with np.load(path) as stored:
        return str(stored["made_with"])


def _write(path: Path, **arrays: NDArray[Any]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
