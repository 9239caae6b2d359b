"""The end of a run: averaged weights and the pitch regression become the checkpoint that is exported."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.console import Console

from autovoice_export.base.checkpoint import save_checkpoint
from autovoice_export.base.stages.content_encoder import ContentEncoder
from autovoice_export.base.stages.pitch_extractor import PitchExtractor
from autovoice_export.base.stages.synthesizer import Synthesizer
from autovoice_export.base.stages.target_pitch import TargetPitch, fit
from autovoice_export.base.stages.voice import unpack
from autovoice_training.train.data import PairSampler
from autovoice_training.train.trainer import VoiceConversionTrainer


def fit_target_pitch(sampler: PairSampler) -> TargetPitch:
    """Fits the regression from embedding to median F0 on the training speakers.

    Every speaker counts alike, however much it has said: its embeddings are averaged in a few groups.
    """
    embeddings, medians = [], []
    for speaker in sampler.targets:
        features = sampler.features[speaker]
        for part in np.array_split(features.embeddings, 4):
            if len(part):
                embeddings.append(unpack(torch.from_numpy(part.mean(axis=0, keepdims=True))).identity[0])
                medians.append(features.median_f0)
    return fit(torch.stack(embeddings), torch.tensor(medians))


def publish(
    trainer: VoiceConversionTrainer, pitch_extractor: PitchExtractor, path: Path, console: Console
) -> None:
    """Writes the checkpoint of a run, with the pitch extractor that measured its corpus."""
    average = trainer.average.module.cpu()
    corpus = trainer.sampler.corpus
    hours = sum(u.frames for u in corpus.utterances if u.split == "train") / 100 / 3600
    metadata = {
        "train": asdict(trainer.config),
        "step": trainer.step,
        "training_hours": round(trainer.seconds / 3600, 2),
        "device": trainer.device_name,
        "started_from": trainer.started_from,
        "audio_hours_seen": round(trainer.audio_hours, 1),
        "corpus": {"seed": corpus.seed, "speakers": len(corpus.speakers), "training_hours": round(hours, 2)},
    }
    save_checkpoint(
        path,
        cast(ContentEncoder, average["content_encoder"]),
        cast(Synthesizer, average["synthesizer"]),
        fit_target_pitch(trainer.sampler),
        trainer.classifier.cpu(),
        pitch_extractor,
        metadata,
    )
    console.print(f"checkpoint of step {trainer.step} written to {path}")
