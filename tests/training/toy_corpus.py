"""A corpus of tones, and samplers and trainers small enough for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from autovoice_export.base.stages.mel import ENVELOPE_SIZE
from autovoice_export.base.stages.voice import IDENTITY_SIZE, pack
from autovoice_export.base.stages.voice import PHONES as CLASSES
from autovoice_export.base.stages.voice_encoder import PhoneClassifier
from autovoice_plugins.geometry import HOP, SAMPLE_RATE
from autovoice_training.corpus.reader import Corpus
from autovoice_training.corpus.store import FORMAT
from autovoice_training.train.config import TrainConfig
from autovoice_training.train.data import PairSampler
from autovoice_training.train.trainer import VoiceConversionTrainer

FRAMES = 165
PHONES = ["pau", "aa", "th"]
VOICES = {"low": (110.0, ()), "high": (220.0, ("th",)), "low_w0": (140.0, ())}


def tone(pitch: float, frames: int) -> np.ndarray:
    time = np.arange(frames * HOP) / SAMPLE_RATE
    return (3000 * sum(np.sin(2 * np.pi * k * pitch * time) / k for k in range(1, 8))).astype(np.int16)


def embeddings_of(pitch: float, random: np.random.Generator) -> np.ndarray:
    """Four embeddings of a voice: high and low voices point to opposite sides."""
    identity = random.standard_normal((4, IDENTITY_SIZE)) * 0.1 + np.sign(pitch - 150)
    identity /= np.linalg.norm(identity, axis=1, keepdims=True)
    shares = np.full((4, CLASSES), 1.0 / CLASSES)
    sums = random.standard_normal((4, CLASSES, ENVELOPE_SIZE)) / CLASSES
    tensors = (torch.from_numpy(part.astype(np.float32)) for part in (identity, shares, sums))
    return pack(*tensors).numpy()


def make_corpus(root: Path) -> Path:
    """Three voices, the same four sentences each; the last one of "low" is the validation set."""
    speakers, utterances = [], []
    random = np.random.default_rng(0)
    for name, (pitch, approximate) in VOICES.items():
        folder = root / "speakers" / name
        folder.mkdir(parents=True)
        np.save(folder / "audio.npy", np.tile(tone(pitch, FRAMES), 4))
        np.save(folder / "phones.npy", np.tile(np.repeat(np.arange(3, dtype=np.int16), FRAMES // 3), 4))
        pseudo = "_" in name
        speakers.append(
            {"name": name, "human": name, "sex": "male", "engine": "world" if pseudo else "diphone",
             "native_rate": 16000, "split": "train", "pseudo": pseudo, "base": "low" if pseudo else None,
             "approximate": approximate}
        )  # fmt: skip
        for index in range(4):
            split = "valid" if index == 3 else "train"
            utterances.append(
                {
                    "id": f"{name}_{index}",
                    "speaker": name,
                    "sentence": f"p{index}",
                    "start_frame": index * FRAMES,
                    "frames": FRAMES,
                    "split": split,
                    "group": f"p{index}",
                }
            )
        features = root / "features"
        features.mkdir(exist_ok=True)
        np.savez(
            features / f"{name}.npz",
            f0=np.arange(4 * FRAMES, dtype=np.float32) + pitch,
            periodicity=np.ones(4 * FRAMES, np.float32),
        )
        np.savez(features / f"{name}.voice.npz", embeddings=embeddings_of(pitch, random))
    (root / "index.json").write_text(
        json.dumps(
            {"format": FORMAT, "seed": 0, "phones": PHONES, "speakers": speakers, "utterances": utterances}
        )
    )
    return root


def make_sampler(folder: Path, **options: float) -> PairSampler:
    shares = {"human_share": 1.0, "self_share": 0.0, "recorded_share": 0.0, "altered": 0.5}
    size = {"batch_size": 6, "unpaired_items": 2, "crop_frames": 100}
    return PairSampler(Corpus(folder), folder / "features", seed=5, **{**shares, **size, **options})


def make_trainer(folder: Path, run: Path, steps: int, device: str = "cpu") -> VoiceConversionTrainer:
    size = {"seed": 5, "batch_size": 2, "unpaired_items": 1, "crop_frames": 40}
    shares = {"human_share": 0.5, "self_share": 0.2, "recorded_share": 0.0, "altered": 0.5}
    sampler = PairSampler(Corpus(folder), folder / "features", **size, **shares)
    config = TrainConfig(
        steps=steps, warmup_steps=2, checkpoint_steps=2, validation_batches=1, ema_decay=0.5, **size, **shares
    )
    torch.manual_seed(0)
    return VoiceConversionTrainer(sampler, config, run, PhoneClassifier(), torch.device(device))
