"""Pairs of aligned crops from the corpus: the source says it, the target shows how it should sound."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autovoice_export.base.stages.timing import FEATURE_DELAY_FRAMES, LOOKAHEAD
from autovoice_plugins.geometry import HOP
from autovoice_training.corpus.reader import Corpus, Utterance
from autovoice_training.train.equaliser import colour, equalise, move_formants, random_curve, random_factor
from autovoice_training.train.features import SpeakerFeatures, read_features

DELAY_SAMPLES = LOOKAHEAD
UNKNOWN_PHONE = -1
# Chance that an aligned source is perturbed as well, so that unheard voices meet a hardened encoder.
PERTURB_ALIGNED = 0.5
EMBEDDING_NOISE = 0.02
# Share of unpaired items whose voice is a mixture of two: voices of no speaker of the corpus.
BLENDED = 0.5
# Weight of frames in which one of the two voices says another sound than the sentence has, because its
# language lacks it: enough to learn the voice from, too little to learn the accent.
APPROXIMATE_WEIGHT = 0.15


@dataclass(frozen=True)
class Pair:
    """One item of a batch.

    Attributes:
        source: utterance that is encoded.
        target: utterance that should come out; of an unpaired item only its speaker counts.
        perturb: whether the source is perturbed.
        blend: for an unpaired item, another speaker whose voice is mixed in (or the same); None for a pair.
    """

    source: Utterance
    target: Utterance
    perturb: bool
    blend: str | None = None


@dataclass(frozen=True)
class Batch:
    """Aligned crops of ``B`` pairs, ``F`` frames each; the unpaired items come first.

    Attributes:
        source: audio that is encoded, [B, 240 F].
        target: audio that should come out, [B, 240 F].
        f0: of the target in Hz, [B, F]; index j holds frame j - 2.
        periodicity: of the target, [B, F], likewise.
        phones: codes of the source's frames, [B, F], likewise; -1 where unknown or only approximated.
        weight: of the target's frames in the spectral loss, [B, F], not delayed; 0 for unpaired items.
        embedding: of other utterances of the target speaker, [B, 1282]; of an altered voice its envelopes are
            the altered ones, its identity is not.
        sample: a crop of the target speaker, [B, 240 F].
        altered: the same in the altered voice, [B, 240 F].
        source_embedding: of the source's speaker, [B, 1282].
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
    sample: Tensor
    altered: Tensor
    source_embedding: Tensor
    native_rate: Tensor
    perturb: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in values.items()})


class PairSampler:
    """Draws batches that depend on the seed and the step alone.

    Args:
        corpus: the rendered corpus.
        features: folder that ``features.extract`` has filled.
        seed: of all draws.
        batch_size: items in a batch.
        unpaired_items: of those, items whose target voice is drawn freely, so that there is nothing to
            compare with but the voice itself.
        crop_frames: frames in a crop.
        human_share: share of targets that are the engines' own voices.
        self_share: share of pairs that use the target itself as source although aligned voices exist.
        recorded_share: share of people who recorded words, whom nothing is aligned with, among the voices of
            such pairs and of unpaired items.
        altered: share of items whose target voice, and with it its reference, gets other formants and colour.
    """

    def __init__(
        self,
        corpus: Corpus,
        features: Path,
        *,
        seed: int,
        batch_size: int,
        unpaired_items: int,
        crop_frames: int,
        human_share: float,
        self_share: float,
        recorded_share: float,
        altered: float,
    ) -> None:
        self.corpus = corpus
        self.phone_set = corpus.phone_set
        self.seed, self.crop_frames = seed, crop_frames
        self.batch_size, self.unpaired_items = batch_size, unpaired_items
        self.human_share, self.self_share = human_share, self_share
        self.recorded_share, self.altered = recorded_share, altered
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
        self.partnered = {
            name: [utterance for utterance in utterances if self._partners(utterance)]
            for name, utterances in self.targets.items()
        }
        speakers = corpus.speakers
        # One more entry than phones, False: where the unknown phone, -1, points to.
        self.approximate = {
            name: np.array([phone in speaker.approximate for phone in corpus.phone_set] + [False])
            for name, speaker in speakers.items()
        }
        recorded = {name for name in self.targets if speakers[name].engine == "recording"}
        made = {name for name in self.targets if speakers[name].pseudo or speakers[name].engine == "espeak"}
        self.recorded, self.synthetic = sorted(recorded), sorted(made)
        self.natural = sorted(set(self.targets) - recorded - made)

    def batch(self, step: int) -> Batch:
        """The training batch of a step."""
        random = np.random.default_rng((self.seed, step))
        unpaired = [self._unpaired(random) for _ in range(self.unpaired_items)]
        pairs = [self._training_pair(random) for _ in range(self.batch_size - self.unpaired_items)]
        return self._collate(unpaired + pairs, random, self.altered)

    def validation_batch(self, index: int) -> Batch:
        """One of the fixed validation batches: the validation voice as target, aligned sources."""
        random = np.random.default_rng((self.seed, 2**40 + index))
        pairs = []
        for _ in range(self.batch_size):
            target = self.validation[random.integers(len(self.validation))]
            partners = self._partners(target) or [target]
            pairs.append(Pair(partners[random.integers(len(partners))], target, perturb=False))
        return self._collate(pairs, random)

    def _partners(self, utterance: Utterance) -> list[Utterance]:
        """Aligned utterances of other voices in the same split."""
        return [u for u in self.groups[utterance.group] if u is not utterance and u.split == utterance.split]

    def _speaker(self, random: np.random.Generator) -> str:
        pool = self.natural if random.random() < self.human_share or not self.synthetic else self.synthetic
        return pool[random.integers(len(pool))]

    def _any_speaker(self, random: np.random.Generator) -> str:
        if self.recorded and random.random() < self.recorded_share:
            return self.recorded[random.integers(len(self.recorded))]
        return self._speaker(random)

    def _training_pair(self, random: np.random.Generator) -> Pair:
        utterances = self.partnered[self._speaker(random)]
        if not utterances or random.random() < self.self_share:
            utterances = self.targets[self._any_speaker(random)]
            target = utterances[random.integers(len(utterances))]
            return Pair(target, target, perturb=True)
        target = utterances[random.integers(len(utterances))]
        partners = self._partners(target)
        source = partners[random.integers(len(partners))]
        return Pair(source, target, perturb=random.random() < PERTURB_ALIGNED)

    def _unpaired(self, random: np.random.Generator) -> Pair:
        said = self.targets[self._any_speaker(random)]
        voices = self.targets[self._any_speaker(random)]
        target = voices[random.integers(len(voices))]
        blend = self._any_speaker(random) if random.random() < BLENDED else target.speaker
        return Pair(said[random.integers(len(said))], target, perturb=random.random() < 0.5, blend=blend)

    def _collate(self, pairs: list[Pair], random: np.random.Generator, altered: float = 0.0) -> Batch:
        rows: dict[str, list[NDArray[Any]]] = defaultdict(list)
        for pair in pairs:
            source, target = pair.source, pair.target
            frames = source.frames if pair.blend else min(source.frames, target.frames)
            first = int(random.integers(max(1, frames - self.crop_frames + 1)))
            gain = 10.0 ** (random.uniform(-14.0, 8.0) / 20.0)
            late = first - FEATURE_DELAY_FRAMES
            # An unpaired item keeps its source's melody, moved to the register of the voice asked for.
            sung = source if pair.blend else target
            voice = self.features[target.speaker]
            embedding, ratio = voice.draw_embedding(random, EMBEDDING_NOISE), 1.0
            if pair.blend:
                other, share = self.features[pair.blend], random.uniform(0.2, 0.8)
                embedding = share * embedding + (1.0 - share) * other.draw_embedding(random, EMBEDDING_NOISE)
                register = voice.median_f0**share * other.median_f0 ** (1.0 - share)
                ratio = register / self.features[source.speaker].median_f0
            rows["source"].append(self._audio(source, first) * gain)
            wanted = self._audio(sung, first) * gain
            start = int(random.integers(max(1, target.frames - self.crop_frames + 1)))
            sample = changed = self._audio(target, start) if pair.blend else wanted
            if random.random() < altered:
                factor, curve = random_factor(random), random_curve(random)
                changed = equalise(move_formants(sample, factor), curve)
                embedding = colour(embedding, factor, curve)
            rows["sample"].append(sample)
            rows["altered"].append(changed)
            rows["target"].append(wanted if pair.blend else changed)
            melody = self.features[sung.speaker]
            rows["f0"].append(self._frames(melody.f0, sung, late, 0.0) * np.float32(ratio))
            rows["periodicity"].append(self._frames(melody.periodicity, sung, late, 0.0))
            labels = self.corpus.phones(source.speaker)
            phones = self._frames(labels, source, late, UNKNOWN_PHONE)
            doubtful = self.approximate[source.speaker][phones]
            rows["phones"].append(np.where(doubtful, UNKNOWN_PHONE, phones).astype(np.int64))
            weight = self._weight(source, target, self._frames(labels, source, first, UNKNOWN_PHONE))
            rows["weight"].append(weight * np.float32(pair.blend is None))
            rows["embedding"].append(embedding.astype(np.float32))
            rows["source_embedding"].append(self.features[source.speaker].draw_embedding(random, 0.0))
            rows["native_rate"].append(np.float32(self.corpus.speakers[target.speaker].native_rate))
            rows["perturb"].append(np.bool_(pair.perturb))
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
