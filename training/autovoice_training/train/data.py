"""Pairs of aligned crops from the corpus: the source says it, the target shows how it should sound."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autovoice_export.stages.timing import FEATURE_DELAY_FRAMES, LOOKAHEAD
from autovoice_plugins.geometry import HOP
from autovoice_training.corpus.reader import Corpus, Utterance
from autovoice_training.train.features import SpeakerFeatures, read_features

DELAY_SAMPLES = LOOKAHEAD
UNKNOWN_PHONE = -1
# Chance that an aligned source is perturbed as well, so that unheard voices meet a hardened encoder.
PERTURB_ALIGNED = 0.5
EMBEDDING_NOISE = 0.02
# Weight of frames in which one of the two voices says another sound than the sentence has, because its
# language lacks it: enough to learn the voice from, too little to learn the accent.
APPROXIMATE_WEIGHT = 0.15


@dataclass(frozen=True)
class Batch:
    """Aligned crops of ``B`` pairs, ``F`` frames each.

    Attributes:
        source: audio that is encoded, [B, 240 F].
        target: audio that should come out, [B, 240 F].
        f0: of the target in Hz, [B, F]; index j holds frame j - 2.
        periodicity: of the target, [B, F], likewise.
        phones: codes of the source's frames, [B, F], likewise; -1 where unknown or only approximated.
        weight: of the target's frames in the spectral loss, [B, F], not delayed.
        embedding: of other utterances of the target speaker, [B, 256].
        native_rate: sample rate at which the target was made, [B].
        perturb: whether the source is perturbed, [B].
    """

    source: Tensor
    target: Tensor
    f0: Tensor
    periodicity: Tensor
    phones: Tensor
    weight: Tensor
    embedding: Tensor
    native_rate: Tensor
    perturb: Tensor


class PairSampler:
    """Draws batches that depend on the seed and the step alone.

    Args:
        corpus: the rendered corpus.
        features: folder that ``features.extract`` has filled.
        seed: of all draws.
        batch_size: pairs in a batch.
        crop_frames: frames in a crop.
        human_share: share of targets that are the engines' own voices.
        self_share: share of pairs that use the target itself as source although aligned voices exist.
    """

    def __init__(
        self,
        corpus: Corpus,
        features: Path,
        *,
        seed: int,
        batch_size: int,
        crop_frames: int,
        human_share: float,
        self_share: float,
    ) -> None:
        self.corpus = corpus
        self.phone_set = corpus.phone_set
        self.seed, self.batch_size, self.crop_frames = seed, batch_size, crop_frames
        self.human_share, self.self_share = human_share, self_share
        self.features: dict[str, SpeakerFeatures] = {}
        self.groups: dict[str, list[Utterance]] = defaultdict(list)
        self.targets: dict[str, list[Utterance]] = defaultdict(list)
        self.validation: list[Utterance] = []
        for utterance in corpus.utterances:
            if utterance.frames < crop_frames // 2:
                continue
            self.groups[utterance.group].append(utterance)
            if utterance.split == "train":
                self.targets[utterance.speaker].append(utterance)
            elif utterance.split == "valid":
                self.validation.append(utterance)
        for speaker in {utterance.speaker for utterance in corpus.utterances}:
            self.features[speaker] = read_features(features, speaker)
        speakers = corpus.speakers
        # One more entry than phones, False: where the unknown phone, -1, points to.
        self.approximate = {
            name: np.array([phone in speaker.approximate for phone in corpus.phone_set] + [False])
            for name, speaker in speakers.items()
        }
        natural = [
            name for name in self.targets if not speakers[name].pseudo and speakers[name].engine != "espeak"
        ]
        self.natural = sorted(natural)
        self.synthetic = sorted(set(self.targets) - set(natural))

    def batch(self, step: int) -> Batch:
        """The training batch of a step."""
        random = np.random.default_rng((self.seed, step))
        return self._collate([self._training_pair(random) for _ in range(self.batch_size)], random)

    def validation_batch(self, index: int) -> Batch:
        """One of the fixed validation batches: the validation voice as target, aligned sources."""
        random = np.random.default_rng((self.seed, 2**40 + index))
        pairs = []
        for _ in range(self.batch_size):
            target = self.validation[random.integers(len(self.validation))]
            pairs.append((self._source(target, random, self_share=0.0), target, False))
        return self._collate(pairs, random)

    def _training_pair(self, random: np.random.Generator) -> tuple[Utterance, Utterance, bool]:
        pool = self.natural if random.random() < self.human_share or not self.synthetic else self.synthetic
        utterances = self.targets[pool[random.integers(len(pool))]]
        target = utterances[random.integers(len(utterances))]
        source = self._source(target, random, self.self_share)
        return source, target, source is target or random.random() < PERTURB_ALIGNED

    def _source(self, target: Utterance, random: np.random.Generator, self_share: float) -> Utterance:
        others = [u for u in self.groups[target.group] if u is not target and u.split == target.split]
        if not others or random.random() < self_share:
            return target
        return others[random.integers(len(others))]

    def _collate(self, pairs: list[tuple[Utterance, Utterance, bool]], random: np.random.Generator) -> Batch:
        rows: dict[str, list[NDArray[Any]]] = defaultdict(list)
        for source, target, perturb in pairs:
            frames = min(source.frames, target.frames)
            first = int(random.integers(max(1, frames - self.crop_frames + 1)))
            gain = 10.0 ** (random.uniform(-14.0, 8.0) / 20.0)
            voice = self.features[target.speaker]
            rows["source"].append(self._audio(source, first) * gain)
            rows["target"].append(self._audio(target, first) * gain)
            late = first - FEATURE_DELAY_FRAMES
            rows["f0"].append(self._frames(voice.f0, target, late, 0.0))
            rows["periodicity"].append(self._frames(voice.periodicity, target, late, 0.0))
            labels = self.corpus.phones(source.speaker)
            phones = self._frames(labels, source, late, UNKNOWN_PHONE)
            doubtful = self.approximate[source.speaker][phones]
            rows["phones"].append(np.where(doubtful, UNKNOWN_PHONE, phones).astype(np.int64))
            rows["weight"].append(
                self._weight(source, target, self._frames(labels, source, first, UNKNOWN_PHONE))
            )
            rows["embedding"].append(voice.draw_embedding(random, EMBEDDING_NOISE))
            rows["native_rate"].append(np.float32(self.corpus.speakers[target.speaker].native_rate))
            rows["perturb"].append(np.bool_(perturb))
        tensors = {name: torch.from_numpy(np.stack(values)) for name, values in rows.items()}
        floats = {name: value.float() for name, value in tensors.items() if value.is_floating_point()}
        return Batch(**(tensors | floats))

    def _weight(self, source: Utterance, target: Utterance, phones: NDArray[np.int16]) -> NDArray[np.float32]:
        speakers = self.corpus.speakers
        first, second = speakers[source.speaker], speakers[target.speaker]
        if (first.base or first.name) == (second.base or second.name):
            return np.ones(len(phones), np.float32)
        doubtful = self.approximate[source.speaker] | self.approximate[target.speaker]
        return np.where(doubtful[phones], APPROXIMATE_WEIGHT, 1.0).astype(np.float32)

    def _audio(self, utterance: Utterance, first: int) -> NDArray[np.float32]:
        """``crop_frames`` frames from frame ``first`` of the utterance on, zeros behind its end."""
        start = (utterance.start_frame + first) * HOP
        count = min(self.crop_frames, utterance.frames - first) * HOP
        audio = self.corpus.audio(utterance.speaker)[start : start + count].astype(np.float32) / 32768.0
        return np.pad(audio, (0, self.crop_frames * HOP - count))

    def _frames(self, values: NDArray[Any], utterance: Utterance, first: int, filler: float) -> NDArray[Any]:
        """Frame values from frame ``first`` (may be negative) on; ``filler`` outside of the utterance."""
        result = np.full(self.crop_frames, filler, dtype=values.dtype)
        low, high = max(first, 0), min(first + self.crop_frames, utterance.frames)
        result[low - first : high - first] = values[
            utterance.start_frame + low : utterance.start_frame + high
        ]
        return result
