"""The phone set of the corpus, and how each diphone voice says every phone of it.

The labels of the corpus are the 40 phones of the CMU lexicon plus ``pau``. A diphone voice of another
language has no exact counterpart for some of them; :data:`TABLES` lists, best first, what it says instead,
and :data:`APPROXIMATE` names the phones for which even the best counterpart is audibly another sound.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

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


def _table(text: str) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Read ``phone=a b|c`` items: alternatives separated by ``|``, best first, each a sequence of phones."""
    items = (line.split("=") for line in text.split(";"))
    return {
        name.strip(): tuple(tuple(alternative.split()) for alternative in said.split("|"))
        for name, said in items
    }


_ENGLISH = {phone: ((phone,),) for phone in PHONES} | _table(
    "ax=ax|ah|ih; er=er|ax r|ah r; ng=ng|n g|n; hh=hh|f; y=y|iy; w=w|uw; zh=zh|z; ch=ch|t sh; jh=jh|d "
    "zh; uh=uh|uw"
)
_ITALIAN = _table(
    "pau=#; aa=a1|a; ae=E1|E|e1; ah=a|a1; ao=O1|O|o1; aw=a1 u|a u; ax=e|a|E; ay=a1 i|a i; b=b; ch=tS; "
    "d=d; dh=v|d; eh=E1|E|e1; er=e r|E r|E1 r; ey=e1 i|e i; f=f; g=g; hh=f|#; ih=i|i1; iy=i1|i; jh=dZ; "
    "k=k; l=l; m=m; n=n; ng=ng|n g|n; ow=o1 u|o u; oy=O1 i|O i; p=p; r=r; s=s; sh=S; t=t; th=f|s; "
    "uh=u|u1; uw=u1|u; v=v; w=w|u; y=j|i; z=z|dz; zh=Z|dZ|S"
)
_CZECH = _table(
    "pau=#; aa=a:|a; ae=e:|e|a; ah=a; ao=o:|o; aw=a u|a: u; ax=e|a; ay=a j|a: j|a i; b=b|p; ch=c~|dz~; "
    "d=d|t; dh=d|v|t; eh=e; er=e r|e: r; ey=e j|e: j|e i; f=f|v; g=g|k; hh=ch|h; ih=i; iy=i:|i|j; "
    "jh=dz~|c~|d z~; k=k|g; l=l; m=m; n=n; ng=n*|n g|n; ow=o u|o: u; oy=o j|o: j|o i; p=p|b; r=r; s=s|z; "
    "sh=s~|z~; t=t|d; th=f|s; uh=u; uw=u:|u; v=v|f; w=u|v; y=j|i; z=z|s; zh=z~|s~"
)
_FINNISH = _table(
    "pau=#; aa=a:|a; ae=@|@:|e; ah=a; ao=o:|o; aw=a u|a: u; ax=7|e|a; ay=a i|a: i; b=b|p; ch=t S|t s|t; "
    "d=d|t; dh=d|v; eh=e; er=7: r|7 r|7:|7; ey=e i|e: i; f=f|v; g=g|k; hh=h; ih=i; iy=i:|i; jh=d S|d s|d "
    "j|t s; k=k|k:; l=l|l:; m=m|m:; n=n|n:|N; ng=N|N:|n g|n; ow=o u|o: u; oy=o i|o: i; p=p|p:; r=r|r:; "
    "s=s|s:; sh=S|s; t=t|t:; th=T|f|t; uh=u; uw=u:|u; v=v|v:; w=w|v|u; y=j|i; z=s; zh=S|s"
)
TABLES: Mapping[str, Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "english": _ENGLISH,
    "italian": _ITALIAN,
    "czech": _CZECH,
    "finnish": _FINNISH,
}
APPROXIMATE: Mapping[str, tuple[str, ...]] = {
    "english": (),
    "italian": ("ae", "ax", "er", "dh", "hh", "r", "th"),
    "czech": ("ae", "ax", "er", "dh", "hh", "r", "th", "w"),
    "finnish": ("er", "dh", "r", "jh", "sh", "ch", "th", "z", "zh"),
}

_MISSING_COST = 10.0  # one absent diphone outweighs any preference among alternatives
_FIRST_SHARE = (
    0.55  # of a diphthong or affricate said as two phones, the part of its time the first one takes
)


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


def read_diphones(group_file: Path) -> frozenset[tuple[str, str]]:
    """Read the diphones a festival voice has from the text header of its ``.group`` file.

    Raises:
        ValueError: the file is not a grouped diphone index.
    """
    with group_file.open("rb") as file:
        head = file.read(1 << 18)
    count = re.search(rb"NumEntries (\d+)", head)
    if count is None or b"EST_Header_End\n" not in head:
        raise ValueError(
            f"{group_file} is not a grouped festival diphone file; reinstall the voice's package"
        )
    lines = head.split(b"EST_Header_End\n", 1)[1].split(b"\n")[: int(count[1])]
    names = (line.split()[0].decode("latin-1").rpartition("-") for line in lines)
    return frozenset((left, right) for left, _, right in names)


def say(
    phones: Sequence[str],
    table: Mapping[str, tuple[tuple[str, ...], ...]],
    diphones: frozenset[tuple[str, str]],
) -> tuple[list[tuple[str, ...]], int]:
    """Choose what a voice says for each phone so that the fewest diphones are missing.

    A Viterbi search over the alternatives of ``table``; among equals the earlier alternative wins.

    Returns:
        For every phone the sequence said in its place, and the number of diphones that remain missing.
    """

    def joins(sequence: Sequence[str]) -> float:
        pairs = itertools.pairwise(sequence)
        return _MISSING_COST * sum(pair not in diphones for pair in pairs)

    best: list[tuple[float, list[tuple[str, ...]]]] = [(0.0, [])]
    for phone in phones:
        nxt = []
        for rank, said in enumerate(table[phone]):
            own = rank + joins(said)
            cost, path = min(
                ((c + (joins((p[-1][-1], said[0])) if p else 0.0), p) for c, p in best),
                key=lambda item: item[0],
            )
            nxt.append((cost + own, [*path, said]))
        best = nxt
    cost, path = min(best, key=lambda item: item[0])
    flat = [phone for said in path for phone in said]
    return path, round(joins(flat) / _MISSING_COST)


def split_duration(duration: float, parts: int) -> list[float]:
    """Divide a phone's time among the phones said in its place; the sum is ``duration``."""
    if parts == 1:
        return [duration]
    first = duration * _FIRST_SHARE
    return [first] + [(duration - first) / (parts - 1)] * (parts - 1)
