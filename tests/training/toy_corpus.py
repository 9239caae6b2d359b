"""A corpus of gliding tones, and samplers and training loops small enough for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autovoice_export.base.stages.mel import MelAnalysis
from autovoice_export.base.stages.synthesizer import Synthesizer, SynthesizerConfig
from autovoice_export.base.stages.voice import IDENTITY_SIZE
from autovoice_plugins.geometry import HOP, SAMPLE_RATE
from autovoice_training.corpus.reader import Corpus
from autovoice_training.corpus.store import FORMAT
from autovoice_training.train.config import ContentConfig, StageConfig, SynthesizerTraining
from autovoice_training.train.content import ContentTraining, KeyedEncoder
from autovoice_training.train.data import Sampler
from autovoice_training.train.features import mel_of
from autovoice_training.train.synthesizer import SynthesizerLoop

FRAMES = 165
UTTERANCES = 4
PHONES = ["pau", "aa", "th"]
VOICES = {"reader": (110.0, "people"), "low": (140.0, "kokoro"), "high": (220.0, "kokoro")}
"""Usual pitch in Hz and engine; those of Kokoro say the same in time with each other."""


def glide(pitch: float, frames: int) -> np.ndarray:
    """A tone around a pitch whose frames all differ, int16 [240 frames]."""
    time = np.arange(frames * HOP) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(melody(pitch, time)) / SAMPLE_RATE
    colours = [1 / k + 0.5 * np.sin(0.7 * k + 3.0 * time) ** 2 for k in range(1, 12)]
    return (1500 * sum(c * np.sin(k * phase) for k, c in enumerate(colours, start=1))).astype(np.int16)


def melody(pitch: float, time: np.ndarray) -> np.ndarray:
    return pitch * (1.0 + 0.1 * np.sin(2.0 * time))


def make_corpus(root: Path, names: tuple[str, ...] = tuple(VOICES)) -> Path:
    """Voices with four utterances each; the last ones are the validation set."""
    speakers, utterances = [], []
    random, analysis = np.random.default_rng(0), MelAnalysis()
    frames = FRAMES * UTTERANCES
    (root / "features").mkdir(parents=True)
    for name in names:
        pitch, engine = VOICES[name]
        folder = root / "speakers" / name
        folder.mkdir(parents=True)
        audio = glide(pitch, frames)
        labels = np.tile(np.repeat(np.arange(3, dtype=np.int16), FRAMES // 3), UTTERANCES)
        np.save(folder / "audio.npy", audio)
        np.save(folder / "phones.npy", labels if engine == "kokoro" else np.full_like(labels, -1))
        speakers.append(
            {"name": name, "human": name, "sex": "female", "engine": engine, "native_rate": 16000,
             "split": "train"}
        )  # fmt: skip
        for index in range(UTTERANCES):
            utterances.append(
                {
                    "id": f"{name}_{index}",
                    "speaker": name,
                    "sentence": f"p{index}",
                    "start_frame": index * FRAMES,
                    "frames": FRAMES,
                    "split": "valid" if index == UTTERANCES - 1 else "train",
                    "group": f"p{index}" if engine == "kokoro" else None,
                }
            )
        f0 = melody(pitch, (np.arange(frames) + 0.5) / 100)
        identities = random.standard_normal((UTTERANCES, IDENTITY_SIZE)) * 0.1 + np.sign(pitch - 150)
        np.savez(
            root / "features" / f"{name}.npz",
            pitch=np.stack([f0, np.ones(frames)], axis=1).astype(np.float32),
            mel=mel_of(audio, analysis),
            identities=(identities / np.linalg.norm(identities, axis=1, keepdims=True)).astype(np.float32),
        )
    index = {"format": FORMAT, "seed": 0, "phones": PHONES, "speakers": speakers, "utterances": utterances}
    (root / "index.json").write_text(json.dumps(index))
    return root


def make_sampler(folder: Path, config: StageConfig | None = None, **options: Any) -> Sampler:
    config = config or StageConfig(batch_size=4, crop_frames=100)
    return Sampler(Corpus(folder), folder / "features", config, **{"seed": 5, **options})


SMALL = {"batch_size": 3, "crop_frames": 40, "warmup_steps": 2, "checkpoint_steps": 2, "ema_decay": 0.5}


def make_content(folder: Path, run: Path, device: str = "cpu", **changes: Any) -> ContentTraining:
    config = ContentConfig(**{"steps": 4, "reference_frames": 60, **SMALL, **changes})
    sampler = make_sampler(folder, config, reference_frames=config.reference_frames)
    torch.manual_seed(0)
    return ContentTraining("content", KeyedEncoder(), sampler, config, 5, run, torch.device(device))


def make_synthesizer(folder: Path, run: Path, device: str = "cpu", **changes: Any) -> SynthesizerLoop:
    """A loop whose discriminators take part from the first step on."""
    options = {"steps": 4, "unpaired_items": 1, "history_frames": 30, "adversarial_from": 0}
    config = SynthesizerTraining(**{**options, **SMALL, **changes})
    torch.manual_seed(0)
    encoders = KeyedEncoder().eval()
    sampler = make_sampler(
        folder,
        config,
        history=config.history_frames,
        unpaired_items=config.unpaired_items,
        plain_share=config.plain_share,
        reversed_share=config.reversed_share,
        encoder=encoders.reference,
    )
    synthesizer = Synthesizer(SynthesizerConfig(channels=16, dilations=(1, 4), condition_size=16))
    return SynthesizerLoop(encoders, synthesizer, sampler, config, 5, run, torch.device(device))
