"""Trains the phone classifier of the voice encoder, on the labelled voices of the corpus."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from autovoice.atomic import atomic_path
from autovoice_export.base.stages.mel import HIGH_HZ, LOW_HZ
from autovoice_export.base.stages.voice_encoder import PhoneClassifier
from autovoice_plugins.geometry import HOP
from autovoice_training.corpus.reader import Corpus, Utterance
from autovoice_training.train.perturbation import perturb_mel
from autovoice_training.train.warm_start import take_matching

BATCH_SIZE = 24
CROP_FRAMES = 160
LEARNING_RATE = 2e-3
NOISE_DB = (5.0, 55.0)
UNKNOWN_PHONE = -1


def train_classifier(
    corpus: Corpus,
    path: Path,
    steps: int,
    seed: int,
    device: torch.device,
    console: Console,
    start_from: Path | None = None,
) -> PhoneClassifier:
    """Trains the classifier, or reads it where it has been trained before.

    The speaker is drawn before the sentence, so that voices count alike. Mel frames are warped, filtered and
    made noisy as in training, so that the classifier depends on phones and not on speakers.

    Args:
        corpus: its training utterances with phone labels are used.
        path: its weights, written when trained; what they were trained with stands beside them, in a file
            of the same name that ends in .json.
        steps: optimiser steps of 38 s of speech; 0 keeps the classifier that it begins with.
        seed: of the draws and the weights.
        device: to train on.
        console: for progress and accuracy.
        start_from: checkpoint of another voice whose classifier a new one begins with.

    Raises:
        ValueError: there are neither steps nor a classifier to begin with, or it was trained with other
            settings.
    """
    torch.manual_seed(seed)
    classifier = PhoneClassifier()
    made_with: dict[str, object] = {"classifier_steps": steps, "seed": seed}
    if start_from is not None:
        made_with["start_from"] = hashlib.sha256(start_from.read_bytes()).hexdigest()
    record = path.with_suffix(".json")
    if path.exists():
        if record.exists():  # weights that were put there by hand have none
            _check_record(json.loads(record.read_text()), made_with, path)
        classifier.load_state_dict(torch.load(path, weights_only=True))
        return classifier.eval()
    if start_from is not None:
        take_matching(classifier, start_from, "phone_classifier.")
    elif not steps:
        raise ValueError("classifier_steps = 0 needs a classifier: name a checkpoint with --start-from")
    if steps:
        _fit(classifier.to(device), corpus, steps, seed, device, console)
    classifier = classifier.cpu().eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(record) as temporary:
        temporary.write_text(json.dumps(made_with))
    with atomic_path(path) as temporary:
        torch.save(classifier.state_dict(), temporary)
    return classifier


def _check_record(saved: dict[str, object], made_with: dict[str, object], path: Path) -> None:
    for name, value in made_with.items():
        if saved.get(name) != value:
            raise ValueError(
                f"{path} was trained with {name} = {saved.get(name)}, and now it is {value}: set it back, or "
                "name another folder with --run"
            )


def _fit(
    classifier: PhoneClassifier,
    corpus: Corpus,
    steps: int,
    seed: int,
    device: torch.device,
    console: Console,
) -> None:
    speakers = _labelled(corpus)
    names = sorted(speakers)
    random = np.random.default_rng((seed, 1))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(classifier.parameters(), LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.1)
    accuracy = 0.0
    for _ in track(range(steps), "phone classifier", console=console):
        drawn = [speakers[names[random.integers(len(names))]] for _ in range(BATCH_SIZE)]
        audio, labels = _batch(corpus, [u[random.integers(len(u))] for u in drawn], random)
        mel = classifier.mel(audio.to(device)).cpu()
        perturbed = perturb_mel(mel, LOW_HZ, HIGH_HZ, NOISE_DB, generator)
        some = torch.rand(len(mel), 1, 1, generator=generator) < 0.7
        logits, _ = classifier(torch.where(some, perturbed, mel).to(device))
        labels = labels.to(device)
        loss = functional.cross_entropy(logits, labels, ignore_index=UNKNOWN_PHONE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        right = (logits.argmax(dim=1) == labels)[labels >= 0].float().mean().item()
        accuracy = 0.98 * accuracy + 0.02 * right
    console.print(f"phone classifier: {100 * accuracy:.1f} % of the last training frames right")


def _labelled(corpus: Corpus) -> dict[str, list[Utterance]]:
    speakers: dict[str, list[Utterance]] = {}
    for utterance in corpus.utterances:
        start = utterance.start_frame
        labels = corpus.phones(utterance.speaker)[start : start + utterance.frames]
        if utterance.split == "train" and (labels != UNKNOWN_PHONE).any():
            speakers.setdefault(utterance.speaker, []).append(utterance)
    return speakers


def _batch(corpus: Corpus, utterances: list[Utterance], random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Audio [B, 240 F] and phones [B, F] of random crops; approximated phones are unknown."""
    audio, phones = [], []
    for utterance in utterances:
        first = int(random.integers(max(1, utterance.frames - CROP_FRAMES + 1)))
        count = min(CROP_FRAMES, utterance.frames - first)
        start = utterance.start_frame + first
        samples = corpus.audio(utterance.speaker)[start * HOP : (start + count) * HOP] / np.float32(32768.0)
        approximate = corpus.speakers[utterance.speaker].approximate
        doubtful = [code for code, phone in enumerate(corpus.phone_set) if phone in approximate]
        labels: NDArray[np.int64] = corpus.phones(utterance.speaker)[start : start + count].astype(np.int64)
        labels = np.where(np.isin(labels, doubtful), UNKNOWN_PHONE, labels)
        gain = np.float32(10.0 ** (random.uniform(-14.0, 8.0) / 20.0))
        audio.append(np.pad(samples * gain, (0, (CROP_FRAMES - count) * HOP)))
        phones.append(np.pad(labels, (0, CROP_FRAMES - count), constant_values=UNKNOWN_PHONE))
    return torch.from_numpy(np.stack(audio)), torch.from_numpy(np.stack(phones))
