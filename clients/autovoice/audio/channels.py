"""Which channel of a recording is taken, and how several are mixed by their places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from autovoice.audio.levels import LevelMeter, Powers, loud_level
from autovoice.errors import AudioInputError, ConfigurationError
from autovoice.results import FloatArray

MIX, LEFT, RIGHT, LOUDEST = "mix", "left", "right", "loudest"
MAX_CHANNELS = 64
_HALF = 0.5**0.5
# ITU-R BS.775 folds all channels into two, with no low-frequency channel; mono is the mean of these.
_WEIGHTS = {"FC": _HALF, "BC": 0.5, "LFE": 0.0, "LFE2": 0.0}
_FRONT = frozenset({"FL", "FR", "FLC", "FRC", "DL", "DR"})
_SURROUND = ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR")
_DEAD = 0.05  # of the loudest channel's level: 26 dB below it
_CANCELS = 0.6  # of the power that the mix of unrelated channels would have


def check_channel(channel: Any) -> str | int:
    """Return the name of a channel, or its number from 1 on.

    Raises:
        ConfigurationError: it is neither.
    """
    if isinstance(channel, str):
        if channel in (MIX, LEFT, RIGHT, LOUDEST):
            return channel
        if channel.isascii() and channel.isdigit():
            channel = int(channel)
    if isinstance(channel, int) and not isinstance(channel, bool) and 1 <= channel <= MAX_CHANNELS:
        return channel
    raise ConfigurationError(
        f"channel is {channel!r}; give mix, left, right, loudest, or the number of a channel from 1 on"
    )


def usual_names(channels: int) -> tuple[str, ...]:
    """The places of so many channels where nothing names them, as 5.1 and 7.1 have them; else empty."""
    return _SURROUND[:channels] if channels in (6, 8) else ()


def mix_weights(names: Sequence[str], channels: int) -> FloatArray:
    """How much each channel counts in the mix [channels].

    Args:
        names: of the channels' places, such as `"FL"`; empty where they are not known, and all count alike.
        channels: how many there are.
    """
    if not names or channels <= 2:
        return np.full(channels, 1.0 / channels, np.float32)
    surround = 0.5 * _HALF
    weights = [_WEIGHTS.get(name, 0.5 if name in _FRONT else surround) for name in names]
    return np.array(weights, np.float32)


def choose_channel(channel: str | int, powers: Powers, weights: FloatArray) -> tuple[int | None, str | None]:
    """Which channel to take, counted from 0, or None for the mix; and why it is not what was asked for.

    Args:
        channel: checked by `check_channel`.
        powers: of every frame of every channel and of their mix [channels + 1, frames].
        weights: of the channels in the mix [channels].

    Raises:
        AudioInputError: there is no such channel.
    """
    count = len(weights)
    if channel not in (MIX, LOUDEST):
        number = {LEFT: 1, RIGHT: 2}.get(str(channel), channel)
        if not 1 <= int(number) <= count:
            raise AudioInputError(
                f"channel {channel} was asked for, but there are {count}; give another or mix"
            )
        return int(number) - 1, None
    levels = np.array([loud_level(row) for row in powers[:count]])
    loudest = int(levels.argmax())
    if count == 1 or not levels[loudest] > 0:
        return (None if channel == MIX else loudest), None
    if channel == LOUDEST:
        return loudest, None
    if np.sort(levels)[-2] <= _DEAD * levels[loudest]:
        return loudest, f"only channel {loudest + 1} of {count} has sound; it is taken alone"
    mean = powers.mean(axis=1)
    if mean[count] < _CANCELS * float(np.square(weights) @ mean[:count]):
        return loudest, f"its channels cancel each other; channel {loudest + 1} of {count} is taken alone"
    return None, None


def mix_down(channels: FloatArray, sample_rate: int) -> tuple[FloatArray, str | None]:
    """Mix a recording [channels, T] down to mono [T], or take its loudest channel.

    Returns:
        The audio, and why it is one channel alone; None for the mix.
    """
    names = usual_names(len(channels))
    mixed = mix(channels, names)
    if len(channels) == 1:
        return mixed, None
    meter = LevelMeter(sample_rate)
    meter.push(np.concatenate((channels, mixed[np.newaxis])))
    taken, reason = choose_channel(MIX, meter.powers(), mix_weights(names, len(channels)))
    return (mixed if taken is None else channels[taken]), reason


def mix(audio: FloatArray, names: Sequence[str]) -> FloatArray:
    """Mix channels [channels, n] down to mono [n]."""
    mixed: npt.NDArray[np.float64] = mix_weights(names, len(audio)).astype(np.float64) @ audio
    return mixed.astype(np.float32)
