"""Items of training: crops of a source and of the target that should come out, and the target's reference."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autovoice_export.base.stages.voice import TOKENS
from autovoice_export.base.stages.voice_encoder import SPEECH_RANGE_DB, ReferenceEncoder
from autovoice_plugins.geometry import HOP
from autovoice_training.corpus.reader import Corpus, Utterance
from autovoice_training.train.config import StageConfig
from autovoice_training.train.features import LOG_FLOOR, keys_of

UNKNOWN_PHONE = -1
SILENCE = float(np.log(LOG_FLOOR))
MOST_REFERENCES = 3


@dataclass(frozen=True)
class Features:
    """Features of one speaker's audio.

    Attributes:
        pitch: F0 in Hz, 0 = unvoiced, and periodicity in [0, 1], [F, 2].
        mel: natural log of the mel power, [F, 80].
        identities: of the utterances, in their order, [N, 256].
        median_f0: of the voiced frames, Hz.
    """

    pitch: NDArray[np.float32]
    mel: NDArray[np.float16]
    identities: NDArray[np.float32]
    median_f0: float


@dataclass(frozen=True)
class Item:
    """What one item of a batch is made of.

    Attributes:
        source: utterance that is encoded.
        target: utterance that should come out; of an unpaired item only its speaker counts.
        paired: whether the target says what the source says, in time with it.
        perturb: whether the source is perturbed.
        reverse: whether the source is the recording converted into another voice.
    """

    source: Utterance
    target: Utterance
    paired: bool
    perturb: bool
    reverse: bool = False


@dataclass(frozen=True)
class Batch:
    """``B`` items of ``F`` frames; the unpaired ones come first.

    Attributes:
        source: log mel power of the source with ``H`` frames of the past and one of the future, [B, H + F +
            1, 80].
        past: frames of the past that there are, [B].
        perturb: whether the source is perturbed, [B].
        reverse: whether the source is first converted into another voice, [B].
        melody: F0 and periodicity of the source's past and its frames, [B, H + F, 2].
        usual_f0: median F0 of the target, Hz, [B].
        phones: of the source's frames, -1 where unknown, [B, F].
        target: log mel power of the target, [B, F, 80].
        audio: of the target, [B, 240 F].
        pitch: F0 and periodicity of what should come out, [B, F, 2].
        identity: of the target's reference, [B, 256].
        reference: log mel power of the reference, [B, R, 80]: of consecutive frames, or of TOKENS frames of
            speech.
        keys: keys of the same frames, [B, TOKENS, 24]; none before there is an encoder.
        reference_phones: of the same frames where they are consecutive, -1 where unknown, [B, R].
        source_identity: [B, 256].
        native_rate: Hz at which the target was recorded, [B].
        paired: [B].
    """

    source: Tensor
    past: Tensor
    perturb: Tensor
    reverse: Tensor
    melody: Tensor
    usual_f0: Tensor
    phones: Tensor
    target: Tensor
    audio: Tensor
    pitch: Tensor
    identity: Tensor
    reference: Tensor
    keys: Tensor
    reference_phones: Tensor
    source_identity: Tensor
    native_rate: Tensor
    paired: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in values.items()})


class Sampler:
    """Draws batches that depend on the seed and the step alone.

    Args:
        corpus: the corpus.
        folder: that `features.measure` has filled.
        config: shares and sizes.
        seed: of all draws.
        history: frames of the source's past in a batch.
        unpaired_items: items of a batch whose target is drawn freely.
        plain_share: share of items without another voice as source whose source is left as it is.
        reversed_share: share of those whose source is converted into another voice.
        reference_frames: consecutive frames of reference; None for TOKENS frames of speech of up to three
            utterances.
        encoder: gives the reference's frames their keys.
    """

    def __init__(
        self,
        corpus: Corpus,
        folder: Path,
        config: StageConfig,
        *,
        seed: int,
        history: int = 0,
        unpaired_items: int = 0,
        plain_share: float = 0.0,
        reversed_share: float = 0.0,
        reference_frames: int | None = None,
        encoder: ReferenceEncoder | None = None,
    ) -> None:
        self.corpus, self.config, self.seed = corpus, config, seed
        self.history, self.unpaired_items, self.plain_share = history, unpaired_items, plain_share
        self.reversed_share, self.reference_frames = reversed_share, reference_frames
        self.features = {name: _read(folder / f"{name}.npz") for name in corpus.speakers}
        self.utterances: dict[str, list[Utterance]] = defaultdict(list)
        self.number: dict[tuple[str, int], int] = {}
        groups: dict[str, list[Utterance]] = defaultdict(list)
        for utterance in corpus.utterances:
            own = self.utterances[utterance.speaker]
            self.number[utterance.speaker, utterance.start_frame] = len(own)
            own.append(utterance)
            groups[utterance.group].append(utterance)
        long = config.crop_frames * 3 // 4
        self.of_split: dict[str, dict[str, list[Utterance]]] = {}
        for split in ("train", "valid"):
            self.of_split[split] = {
                name: [u for u in said if u.split == split and u.frames >= long]
                for name, said in sorted(self.utterances.items())
            }
        self.groups = {
            split: [
                sorted(group, key=lambda u: u.speaker)
                for _, group in sorted(groups.items())
                if len(group) > 1 and group[0].split == split and group[0].frames >= long
            ]
            for split in self.of_split
        }
        if not any(self.of_split["valid"].values()):  # a corpus that is too small for a validation split
            self.of_split["valid"], self.groups["valid"] = self.of_split["train"], self.groups["train"]
        self.keys: dict[str, NDArray[np.float32]] = {}
        if encoder is not None:
            said = {name: [(u.start_frame, u.frames) for u in own] for name, own in self.utterances.items()}
            self.keys = {name: keys_of(one.mel, said[name], encoder) for name, one in self.features.items()}

    def batch(self, step: int, split: str = "train") -> Batch:
        """The batch of a step, of the training or the validation split."""
        random = np.random.default_rng((self.seed, step, split == "valid"))
        items = [self._unpaired(random, split) for _ in range(self.unpaired_items)]
        items += [self._pair(random, split) for _ in range(self.config.batch_size - self.unpaired_items)]
        return self._collate(items, random)

    def _speaker(self, random: np.random.Generator, split: str) -> str:
        people = random.random() < self.config.people_share
        speakers = self.corpus.speakers
        pools = [
            [
                name
                for name, said in self.of_split[split].items()
                if said and (speakers[name].engine == "people") == kind
            ]
            for kind in (people, not people)
        ]
        pool = pools[0] or pools[1]
        return pool[random.integers(len(pool))]

    def _utterance(self, random: np.random.Generator, split: str) -> Utterance:
        said = self.of_split[split][self._speaker(random, split)]
        return said[random.integers(len(said))]

    def _pair(self, random: np.random.Generator, split: str) -> Item:
        groups = self.groups[split]
        if groups and random.random() < self.config.aligned_share:
            group = groups[random.integers(len(groups))]
            first, second = random.permutation(len(group))[:2]
            return Item(group[first], group[second], paired=True, perturb=bool(random.random() < 0.5))
        own = self._utterance(random, split)
        kind = random.random()
        reverse = kind < self.reversed_share
        plain = not reverse and kind < self.reversed_share + self.plain_share
        perturb = not plain and (not reverse or random.random() < 0.5)
        return Item(own, own, paired=True, perturb=bool(perturb), reverse=bool(reverse))

    def _unpaired(self, random: np.random.Generator, split: str) -> Item:
        source, target = self._utterance(random, split), self._utterance(random, split)
        return Item(source, target, paired=False, perturb=bool(random.random() < 0.3))

    def _references(self, random: np.random.Generator, item: Item) -> list[Utterance]:
        """Utterances of the target's speaker, where there are others than what should come out."""
        others = [u for u in self.utterances[item.target.speaker] if u is not item.target]
        if not others or not item.paired:
            others = self.utterances[item.target.speaker]
        count = 1 if self.reference_frames else int(random.integers(1, MOST_REFERENCES + 1))
        return [others[i] for i in random.permutation(len(others))[:count]]

    def _collate(self, items: list[Item], random: np.random.Generator) -> Batch:
        rows: dict[str, list[Any]] = defaultdict(list)
        frames = self.config.crop_frames
        for item in items:
            source, target = item.source, item.target
            first = int(random.integers(max(1, source.frames - frames + 1)))
            gain = float(np.exp(random.uniform(-1.6, 0.9)))
            own, wanted = self.features[source.speaker], self.features[target.speaker]
            start = source.start_frame + first
            past = min(self.history, start)
            mel = _cut(own.mel, start - self.history, start + min(frames, source.frames - first) + 1, SILENCE)
            rows["source"].append(_fit(mel, self.history + frames + 1, SILENCE) + 2.0 * np.log(gain))
            rows["past"].append(past)
            rows["perturb"].append(item.perturb)
            rows["reverse"].append(item.reverse)
            stop = start + min(frames, source.frames - first)
            melody = _cut(own.pitch, start - self.history, stop, 0.0)
            rows["melody"].append(_fit(melody, self.history + frames, 0.0))
            rows["usual_f0"].append(np.float32(wanted.median_f0))
            rows["phones"].append(
                self._frames(self.corpus.phones(source.speaker), source, first, UNKNOWN_PHONE)
            )
            # What comes out of an unpaired item has the source's melody in the target's register.
            sung = target if item.paired else source
            melody = self._frames(self.features[sung.speaker].pitch, sung, first, 0.0)
            if not item.paired:
                melody[:, 0] *= wanted.median_f0 / own.median_f0
            rows["pitch"].append(melody)
            rows["target"].append(
                self._frames(self.features[sung.speaker].mel, sung, first, SILENCE) + 2.0 * np.log(gain)
            )
            rows["audio"].append(self._audio(sung, first) * gain)
            references = self._references(random, item)
            rows["identity"].append(_unit(np.mean([self._identity(one) for one in references], axis=0)))
            rows["source_identity"].append(self._identity(source))
            mel, keys, phones = self._reference(references, random)
            rows["reference"].append(mel)
            rows["keys"].append(keys)
            rows["reference_phones"].append(phones)
            rows["native_rate"].append(self.corpus.speakers[sung.speaker].native_rate)
            rows["paired"].append(item.paired)
        tensors = {name: torch.from_numpy(np.stack(values)) for name, values in rows.items()}
        for name in ("phones", "reference_phones"):
            tensors[name] = tensors[name].long()
        return Batch(**{k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})

    def _reference(
        self, references: list[Utterance], random: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int16]]:
        """Log mel power, keys and phones of a reference."""
        store = self.features[references[0].speaker].mel
        if self.reference_frames:
            one = references[0]
            first = one.start_frame + int(random.integers(max(1, one.frames - self.reference_frames + 1)))
            last = min(first + self.reference_frames, one.start_frame + one.frames)
            mel = _fit(store[first:last].astype(np.float32), self.reference_frames, SILENCE)
            phones = self.corpus.phones(one.speaker)[first:last]
            return mel, np.zeros((0, 1), np.float32), _fit(phones, self.reference_frames, UNKNOWN_PHONE)
        rows = np.concatenate([np.arange(u.start_frame, u.start_frame + u.frames) for u in references])
        energy = np.exp(store[rows].astype(np.float32)).sum(axis=1)
        loud = (energy**2).sum() / max(energy.sum(), 1e-14)
        rows = rows[energy >= loud * 10.0 ** (-0.1 * SPEECH_RANGE_DB)]
        offset = random.random()
        chosen = rows[((np.arange(TOKENS) + offset) / TOKENS * len(rows)).astype(np.int64)]
        unknown = np.zeros(0, np.int16)
        return store[chosen].astype(np.float32), self.keys[references[0].speaker][chosen], unknown

    def _identity(self, utterance: Utterance) -> NDArray[np.float32]:
        number = self.number[utterance.speaker, utterance.start_frame]
        identity: NDArray[np.float32] = self.features[utterance.speaker].identities[number]
        return identity

    def _audio(self, utterance: Utterance, first: int) -> NDArray[np.float32]:
        start = (utterance.start_frame + first) * HOP
        count = min(self.config.crop_frames, utterance.frames - first) * HOP
        audio = self.corpus.audio(utterance.speaker)[start : start + count].astype(np.float32) / 32768.0
        return _fit(audio, self.config.crop_frames * HOP, 0.0)

    def _frames(self, values: NDArray[Any], utterance: Utterance, first: int, filler: float) -> NDArray[Any]:
        """Values of the crop's frames, ``filler`` behind the end of the utterance."""
        start, stop = utterance.start_frame + first, utterance.start_frame + utterance.frames
        cut = values[start : min(stop, start + self.config.crop_frames)]
        if np.issubdtype(cut.dtype, np.floating):
            cut = cut.astype(np.float32)
        return _fit(cut, self.config.crop_frames, filler)


def _read(path: Path) -> Features:
    with np.load(path) as stored:
        pitch = stored["pitch"]
        voiced = pitch[pitch[:, 0] > 0, 0]
        median = float(np.median(voiced)) if len(voiced) else 150.0
        return Features(pitch, stored["mel"], stored["identities"], median)


def _cut(values: NDArray[Any], start: int, stop: int, filler: float) -> NDArray[np.float32]:
    """Rows from ``start``, which may be negative, to ``stop``, which may be behind the end."""
    before = np.full((max(0, -start), values.shape[1]), filler, np.float32)
    return np.concatenate([before, values[max(0, start) : stop].astype(np.float32)])


def _fit(values: NDArray[Any], size: int, filler: float) -> NDArray[Any]:
    """The first ``size`` rows, followed by ``filler`` where there are fewer."""
    missing = size - len(values)
    if missing <= 0:
        return values[:size]
    return np.concatenate([values, np.full((missing, *values.shape[1:]), filler, values.dtype)])


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return unit
