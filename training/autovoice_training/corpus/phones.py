"""The phone set of the corpus, the 40 phones of the CMU lexicon plus ``pau``, and labels at frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PHONES: tuple[str, ...] = (
    "pau",
    "aa",
    "ae",
    "ah",
    "ao",
    "aw",
    "ax",
    "ay",
    "b",
    "ch",
    "d",
    "dh",
    "eh",
    "er",
    "ey",
    "f",
    "g",
    "hh",
    "ih",
    "iy",
    "jh",
    "k",
    "l",
    "m",
    "n",
    "ng",
    "ow",
    "oy",
    "p",
    "r",
    "s",
    "sh",
    "t",
    "th",
    "uh",
    "uw",
    "v",
    "w",
    "y",
    "z",
    "zh",
)
UNKNOWN = -1
_ALIASES = {
    "axr": "er",
    "dx": "t",
    "hv": "hh",
    "nx": "n",
    "el": "l",
    "em": "m",
    "en": "n",
    "h#": "pau",
    "brth": "pau",
    "#": "pau",
    "ssil": "pau",
}
_CODES = {phone: code for code, phone in enumerate(PHONES)}


def code_of(phone: str) -> int:
    """Return the label of a phone as an engine names it.

    Raises:
        ValueError: the phone is not in the set and is no known alias.
    """
    name = _ALIASES.get(phone, phone)
    if name not in _CODES:
        raise ValueError(f"phone {phone!r} is not in the corpus phone set; add it or an alias to phones.py")
    return _CODES[name]


def labels_at_frames(
    codes: Sequence[int], ends: Sequence[float], frames: int, frame_seconds: float
) -> np.ndarray:
    """Sample segment labels at frame centres.

    Args:
        codes: phone code of each segment, [S].
        ends: end of each segment in seconds, ascending, [S].
        frames: number of frames F.
        frame_seconds: length of a frame in seconds.

    Returns:
        int16 [F]; frames past the last segment carry ``pau``.
    """
    centres = (np.arange(frames) + 0.5) * frame_seconds
    index = np.searchsorted(np.asarray(ends), centres, side="right")
    padded = np.append(np.asarray(codes, dtype=np.int16), np.int16(_CODES["pau"]))
    return padded[np.minimum(index, len(codes))]
