"""What a training run is made of, read from a TOML file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "train.toml"


@dataclass(frozen=True)
class StageConfig:
    """What both parts of the training have.

    Attributes:
        steps: optimiser steps; the learning rate's schedule spans them.
        batch_size: items in a step.
        crop_frames: frames of 10 ms in an item.
        learning_rate: peak, after the warm-up.
        warmup_steps: linear rise to the peak, then a cosine to a hundredth of it.
        weight_decay: of AdamW.
        gradient_clip: norm.
        ema_decay: of the averaged weights, which are the ones evaluated and exported.
        checkpoint_steps: a checkpoint is written every so many steps.
        aligned_share: share of items whose source is another voice that says the same in time with the
            target.
        people_share: share of people among the targets of the others.
    """

    steps: int = 2000
    batch_size: int = 16
    crop_frames: int = 165
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-2
    gradient_clip: float = 1.0
    ema_decay: float = 0.995
    checkpoint_steps: int = 200
    aligned_share: float = 0.5
    people_share: float = 0.7

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "crop_frames", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("ema_decay", "aligned_share", "people_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class ContentConfig(StageConfig):
    """Training of the content encoder.

    Attributes:
        reference_frames: frames of the target in which the sounds of an item are looked up.
        phone_weight: weight of the cross-entropies of the phones beside the distance of the looked-up
            envelopes.
        match_weight: weight of the attention's cross-entropy to the frames of the same sound.
        distil_from: step from which on the reference encoder's phones are those of unlabelled frames.
    """

    reference_frames: int = 300
    phone_weight: float = 0.5
    match_weight: float = 0.3
    distil_from: int = 300


@dataclass(frozen=True)
class SynthesizerTraining(StageConfig):
    """Training of the synthesizer, with the content encoder as it is.

    Attributes:
        unpaired_items: items of a batch without a recording of the target saying the same; they count in the
            losses of words and speaker alone.
        plain_share: share of items without another voice as source whose source is left as it is: a voice
            into itself.
        reversed_share: share of those whose source is the recording, converted by the voice so far into
            another one: what comes out should be the recording again.
        history_frames: most frames of the source that the voice has heard before an item.
        envelope_weight: weight of the distance of the filters from the target's envelope.
        relative_weight: weight of the distance in plain mel magnitude beside that in its logarithm.
        speaker_weight: weight of the distance to the target's identity.
        words_weight: weight of the distance between the phones heard in the source and in the result.
        adversarial_from: step from which on discriminators take part.
        adversarial_weight: weight of their scores.
        matching_weight: weight of the distance of their features.
        discriminator_rate: their learning rate.
        share_shift: added at the end to the log odds of the target's share of every cosine: below 0 more
            words stay, above 0 less of the source's voice. It is decided on the development sets.
    """

    unpaired_items: int = 4
    plain_share: float = 0.3
    reversed_share: float = 0.4
    history_frames: int = 300
    envelope_weight: float = 1.0
    relative_weight: float = 0.5
    speaker_weight: float = 0.5
    words_weight: float = 0.3
    adversarial_from: int = 1000
    adversarial_weight: float = 0.3
    matching_weight: float = 0.3
    discriminator_rate: float = 5e-4
    share_shift: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
        seed: of the samplers and the initial weights.
        content: see `ContentConfig`.
        synthesizer: see `SynthesizerTraining`.
    """

    seed: int = 1
    content: ContentConfig = field(default_factory=ContentConfig)
    synthesizer: SynthesizerTraining = field(default_factory=SynthesizerTraining)

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """Reads a TOML file, refusing keys that mean nothing here.

        Raises:
            ValueError: an unknown setting or a bad value; the message names the file.
        """
        values = tomllib.loads(path.read_text())
        try:
            content = _section(ContentConfig, values.pop("content", {}), "content.")
            synthesizer = _section(SynthesizerTraining, values.pop("synthesizer", {}), "synthesizer.")
            return _section(cls, {**values, "content": content, "synthesizer": synthesizer}, "")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


_Section = TypeVar("_Section", ContentConfig, SynthesizerTraining, TrainConfig)


def _section(kind: type[_Section], values: Mapping[str, Any], prefix: str) -> _Section:
    unknown = sorted(set(values) - {one.name for one in fields(kind)})
    if unknown:
        names = ", ".join(prefix + name for name in unknown)
        raise ValueError(f"unknown setting {names}; see {kind.__name__} for the names")
    return kind(**values)
