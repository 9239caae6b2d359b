"""`RvcSettings`: how an RVC voice is to be used."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from autovoice.errors import ConfigurationError

RANGES = {"index_rate": (0.0, 1.0), "protect": (0.0, 0.5), "rms_mix": (0.0, 1.0)}


@dataclass(frozen=True)
class RvcSettings:
    """Settings of a voice that was imported from an RVC checkpoint; None is the voice's own default.

    Attributes:
        speaker: number of the speaker in a checkpoint of several, 0 or more.
        index_rate: how much of the content is taken from the voice's index, 0 (none) to 1 (all).
        protect: how much voiceless sounds are kept from the index, 0 (most) to 0.5 (not at all).
        rms_mix: loudness of the result, 0 (the source's) to 1 (the voice's own).

    Raises:
        ConfigurationError: naming the first value that makes no sense.
    """

    speaker: int | None = None
    index_rate: float | None = None
    protect: float | None = None
    rms_mix: float | None = None

    def __post_init__(self) -> None:
        speaker: Any = self.speaker
        if speaker is not None and not (is_number(speaker, Integral) and speaker >= 0):
            raise ConfigurationError(f"speaker is {speaker!r}; give a speaker's number, 0 or more")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not (is_number(value) and low <= value <= high):  # NaN neither
                raise ConfigurationError(f"{name} is {value!r}; give a number from {low:g} to {high:g}")

    def over(self, others: RvcSettings) -> RvcSettings:
        """These settings, with those of `others` where these are None."""
        merged = {
            name: getattr(others, name) if value is None else value for name, value in vars(self).items()
        }
        return RvcSettings(**merged)


def is_number(value: Any, kind: type = Real) -> bool:
    """Whether `value` is a number of `kind` from `numbers`; truth values are none."""
    return isinstance(value, kind) and not isinstance(value, bool)
