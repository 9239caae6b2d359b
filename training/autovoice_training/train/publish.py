"""The end of a run: averaged weights and the pitch regression become the checkpoint that is exported."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from autovoice_export.base.checkpoint import save_checkpoint
from autovoice_export.base.stages.pitch_extractor import PitchExtractor
from autovoice_export.base.stages.synthesizer import Synthesizer
from autovoice_export.base.stages.target_pitch import TargetPitch, fit
from autovoice_training.train.config import TrainConfig
from autovoice_training.train.content import ContentTraining
from autovoice_training.train.data import Sampler
from autovoice_training.train.loop import TrainingLoop


def fit_target_pitch(sampler: Sampler) -> TargetPitch:
    """Fits the regression from identity to median F0 on the training speakers.

    Every speaker counts alike, however much it has said: its identities are averaged in at most four groups.
    """
    identities, medians = [], []
    for _, features in sorted(sampler.features.items()):
        for part in np.array_split(features.identities, 4):
            if len(part):
                mean = part.mean(axis=0)
                identities.append(torch.from_numpy(mean / max(float(np.linalg.norm(mean)), 1e-12)))
                medians.append(features.median_f0)
    return fit(torch.stack(identities), torch.tensor(medians))


def publish(
    settings: TrainConfig,
    content: ContentTraining,
    synthesizer: TrainingLoop,
    pitch_extractor: PitchExtractor,
    path: Path,
    console: Console,
) -> None:
    """Writes the checkpoint of a run, with the pitch extractor that measured its corpus."""
    corpus = synthesizer.sampler.corpus
    hours = {
        engine: round(
            sum(u.frames for u in corpus.utterances if corpus.speakers[u.speaker].engine == engine) / 360_000,
            2,
        )
        for engine in sorted({speaker.engine for speaker in corpus.speakers.values()})
    }
    metadata = {
        "train": asdict(settings),
        "steps": {loop.name: loop.step for loop in (content, synthesizer)},
        "training_hours": {loop.name: round(loop.seconds / 3600, 2) for loop in (content, synthesizer)},
        "device": torch.cuda.get_device_name(content.device) if content.device.type == "cuda" else "cpu",
        "corpus": {"seed": corpus.seed, "speakers": len(corpus.speakers), "hours": hours},
    }
    finished = cast(Synthesizer, synthesizer.average.module.cpu())
    with torch.no_grad():
        cast(Tensor, finished.share.bias).add_(settings.synthesizer.share_shift)
    encoders = content.average.module.cpu()
    save_checkpoint(
        path,
        encoders.encoder,
        encoders.reference,
        finished,
        fit_target_pitch(synthesizer.sampler),
        pitch_extractor,
        metadata,
    )
    console.print(f"checkpoint of step {synthesizer.step} written to {path}")
