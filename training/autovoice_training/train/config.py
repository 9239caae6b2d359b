"""What a training run is made of, read from a TOML file."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from autovoice_export.base.stages.synthesizer import FORMANT_FACTORS

# What may be changed when a run is resumed; the rest decides what the weights so far have learnt from.
CHANGEABLE = ("steps", "learning_rate", "checkpoint_steps", "validation_batches")
DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "train.toml"


@dataclass(frozen=True)
class TrainConfig:
    """One run of the trainer.

    Attributes:
        seed: of the sampler and the initial weights.
        steps: optimiser steps of the whole run; the learning rate's schedule spans them.
        batch_size: items in a step.
        unpaired_items: of those, items without a recording of the target saying the same; they count in the
            speaker loss alone.
        crop_frames: frames of 10 ms in a pair.
        learning_rate: peak, after the warm-up.
        warmup_steps: linear rise to the peak, then a cosine to a hundredth of it.
        weight_decay: of AdamW.
        gradient_clip: norm.
        relative_weight: weight of the distance in plain mel magnitude beside that in its logarithm.
        envelope_weight: weight of the distance of spectral envelopes.
        speaker_weight: weight of the distance to the target's embedding.
        speaker_items: items of a batch for which that is measured, unpaired ones first.
        phone_weight: weight of the phone cross-entropy on the content.
        words_weight: weight of the distance between the phones heard in the source and in the result.
        classifier_steps: optimiser steps of the phone classifier, before everything else; 0 keeps the one of
            the checkpoint that the run starts from.
        ema_decay: of the averaged weights, which are the ones evaluated and exported.
        human_share: share of targets that are the engines' own voices; the rest are warped ones and espeak.
        self_share: share of pairs in which an aligned rendition is not used although there is one.
        recorded_share: share of people who recorded words, whom nothing is aligned with, among the voices of
            such pairs and of unpaired items.
        checkpoint_steps: a checkpoint is written every so many steps.
        validation_batches: fixed batches of the validation voice and sentences.
        bfloat16: run the convolutions in bfloat16.
        noise_db: how far below the speech the noise of a perturbed source is, least and most.
        altered: share of items whose target voice, and with it its reference, gets other formants and colour.
        formant_factors: see `SynthesizerConfig`.
    """

    seed: int = 1
    steps: int = 4000
    batch_size: int = 16
    unpaired_items: int = 4
    crop_frames: int = 200
    learning_rate: float = 1.5e-3
    warmup_steps: int = 200
    weight_decay: float = 1e-2
    gradient_clip: float = 1.0
    relative_weight: float = 0.5
    envelope_weight: float = 1.5
    speaker_weight: float = 0.5
    speaker_items: int = 6
    phone_weight: float = 0.2
    words_weight: float = 0.3
    classifier_steps: int = 700
    ema_decay: float = 0.998
    human_share: float = 0.5
    self_share: float = 0.15
    recorded_share: float = 0.4
    checkpoint_steps: int = 200
    validation_batches: int = 4
    bfloat16: bool = True
    noise_db: tuple[float, float] = (5.0, 55.0)
    altered: float = 0.5
    formant_factors: tuple[float, ...] = FORMANT_FACTORS

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "crop_frames", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.classifier_steps < 0:
            raise ValueError(f"classifier_steps must be at least 0, not {self.classifier_steps}")
        for name in ("human_share", "self_share", "recorded_share", "ema_decay", "altered"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """Reads a TOML file, refusing keys that mean nothing here."""
        values = tomllib.loads(path.read_text())
        return cls().changed(values, str(path))

    def changed(self, values: Mapping[str, Any], where: str) -> TrainConfig:
        """These settings with other values, as TOML has them; ``where`` they stand is named in errors.

        Raises:
            ValueError: an unknown setting or a bad value.
        """
        unknown = sorted(set(values) - {field.name for field in fields(self)})
        if unknown:
            raise ValueError(f"{where}: unknown setting {', '.join(unknown)}; see TrainConfig for the names")
        return replace(self, **{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})

    def check_saved(self, saved: Mapping[str, Any], where: Path, accepted: Collection[str] = ()) -> None:
        """Compare with the settings that a run was begun with.

        Args:
            saved: those, by name.
            where: they were read from.
            accepted: those of CHANGEABLE that may differ.

        Raises:
            ValueError: naming the first one that differs, or an accepted one that may not.
        """
        fixed = [name for name in accepted if name not in CHANGEABLE]
        if fixed:
            raise ValueError(f"{fixed[0]} cannot be changed in a run; only {', '.join(CHANGEABLE)} can")
        now = asdict(self)
        for name in {**now, **saved}:
            before, after = (repr(values.get(name, "not set")) for values in (saved, now))
            if before != after and name not in accepted:
                how = f", or accept the change with --accept {name}" if name in CHANGEABLE else ""
                raise ValueError(
                    f"{where} was made with {name} = {before}, and now it is {after}: set it back, name "
                    f"another folder with --run{how}"
                )
